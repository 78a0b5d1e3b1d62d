"""Folding: the logits of the other tokens stay, and what the first token carried is gone."""

import dataclasses

import in_numpy
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from planted import BOS, DIM, VALUE, llama_written_and_removed, written_and_removed
from tiny_models import CONFIGS, SWITCHES, decoder, ids, varied

import jax_massact as ma
from jax_massact.nn.transformer import from_parameters, parameters

S, T = 3, 12


def planted():
    return {
        "gpt2": written_and_removed().louder().build(),
        "llama": llama_written_and_removed().louder().build(),
    }


def model_of(name):
    return planted()[name] if name in ("gpt2", "llama") else decoder(
        (CONFIGS | SWITCHES)[name.split()[1]]
    )


# ALiBi; and another variant than standard.
NEVER = ("bloom", "falcon_rw", "gpt_oss")
MODELS = ["gpt2", "llama", "random llama", "random llama3", "random gpt2", "random qwen2",
          "random mistral", *(f"random {name}" for name in SWITCHES if name not in NEVER)]


@pytest.mark.parametrize("name", MODELS)
def test_every_other_token_keeps_its_logits(name):
    model = model_of(name)
    tokens = np.array(ids(model.config, S, T))
    tokens[:, 0] = BOS
    folded = in_numpy.jit(ma.fold)(model, BOS)
    run = in_numpy.jit(lambda m, t: m(t)[0])
    whole, own = run(model, tokens)[:, 1:], run(folded, tokens[:, 1:])
    assert np.abs(whole - own).max() <= 1e-5 * np.abs(whole).max()
    # The extra key matters: with another one the logits are others.
    params = parameters(folded)
    silent = {n: 0 * x if "variant" in n else x for n, x in params.items()}
    without = run(from_parameters(folded.config, silent), tokens[:, 1:])
    assert np.abs(whole - without).max() > 1e-4 * np.abs(whole).max()


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_no_massive_activation_is_left(name):
    model = planted()[name]
    tokens = np.array(ids(model.config, S, T))
    tokens[tokens == BOS] = 5
    tokens[:, 0] = BOS
    folded = ma.fold(model, BOS)
    # No second copy of the weights.
    assert parameters(folded)["embed"] is parameters(model)["embed"]
    find = in_numpy.jit(lambda m, t: ma.find_massive(ma.magnitudes(m, t)))
    before, after = find(model, tokens), find(folded, tokens[:, 1:])
    assert np.nonzero(before.strict)[0].tolist() == [DIM]
    assert float(before.value_mean[DIM]) == pytest.approx(VALUE, rel=0.2)
    assert not after.relaxed.any()


def test_folded_k_and_v_are_those_of_the_plain_model():
    model = planted()["llama"]
    config = dataclasses.replace(model.config, first_position=3)
    model = from_parameters(config, parameters(model))
    folded = ma.fold(model, BOS)
    assert (folded.config.first_position, folded.config.bias_position) == (4, 3)
    plain = oracle.run(model, [BOS])
    params = parameters(folded)
    for layer in range(config.depth):
        key, value = (params[f"blocks.attn.variant.{n}"][layer] for n in "kv")
        np.testing.assert_allclose(key[0], plain["k_turned"][layer][0], rtol=0, atol=2e-4)
        np.testing.assert_allclose(value[0], plain["v"][layer][0], rtol=0, atol=2e-4)
    # And the folded model is the plain model with one more key.
    tokens = np.array(ids(config, 1, 6))[0]
    found = in_numpy.jit(lambda m: m(tokens[None])[0][0])(folded)
    expected = oracle.run(folded, tokens)["logits"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)


def test_massive_tokens_elsewhere_remain():
    """A token that is massive wherever it stands is not folded away."""
    model = planted()["llama"]
    tokens = np.array(ids(model.config, S, T))
    tokens[:, 0] = tokens[:, 7] = BOS
    after = in_numpy.jit(lambda m, t: ma.find_massive(ma.magnitudes(m, t)))(
        ma.fold(model, BOS), tokens[:, 1:]
    )
    assert np.nonzero(after.strict)[0].tolist() == [DIM]


@pytest.mark.parametrize("attention", ["kv_bias", "gated", "sink"])
def test_a_model_with_other_attention_is_refused(attention):
    config = CONFIGS["llama"].with_attention(variant=attention)
    with pytest.raises(ma.ConfigError, match=f"attention is '{attention}'"):
        ma.fold(decoder(config), BOS)


@pytest.mark.parametrize("name", ["bloom", "falcon_rw"])
def test_a_model_with_alibi_is_refused(name):
    with pytest.raises(ma.ConfigError, match="the model has ALiBi"):
        ma.fold(decoder(SWITCHES[name]), BOS)


def test_a_folded_model_cannot_be_folded_again_but_probed_and_edited():
    folded = ma.fold(planted()["llama"], BOS)
    with pytest.raises(ma.ConfigError):
        ma.fold(folded, BOS)
    tokens = ids(folded.config, 2, 5)
    edits = ma.Edits.set_to(1, np.arange(5) == 2, 4, 300.0)
    stats = in_numpy.jit(ma.magnitudes)(folded, tokens, edits=edits)
    assert (stats.top.position[1, :, 0] == 2).all() and (stats.top.dim[1, :, 0] == 4).all()
    limit = folded.config.context_length - 1
    with pytest.raises(ValueError, match=str(limit)):
        folded(jnp.zeros((1, limit + 1), jnp.int32))


@pytest.mark.parametrize("name", ["llama", "mistral", "gpt2"])
def test_several_first_tokens_are_folded(name):
    """Every later token keeps its logits, also where a window passes over the first tokens."""
    model, front = decoder(varied(CONFIGS[name], tied=False), spread=0.5), np.array([BOS, 7, 3])
    tokens = np.array(ids(model.config, S, 9))
    whole = np.concatenate([np.tile(front, (S, 1)), tokens], axis=1)
    run = in_numpy.jit(lambda m, t: m(t)[0])
    folded = in_numpy.jit(ma.fold)(model, front)
    assert parameters(folded)["blocks.attn.variant.k"].shape[1] == 3
    expected, found = run(model, whole)[:, 3:], run(folded, tokens)
    assert np.abs(expected - found).max() <= 1e-5 * np.abs(expected).max()
    one = run(ma.fold(model, front[2]), tokens)
    assert np.abs(expected - one).max() > 1e-3 * np.abs(expected).max()
