"""Every switch that only some families use, against NumPy in float64; and what it leaves alone."""

import functools

import in_numpy
import numpy as np
import oracle
import pytest
from tiny_models import SWITCHES, decoder, ids, varied

from jax_massact.errors import ConfigError
from jax_massact.nn.block_config import MoEConfig, NormConfig, RopeConfig
from jax_massact.nn.positions import alibi_slopes
from jax_massact.nn.transformer import parameters

# Fields of `Acts`, and what the oracle calls them.
SEEN = {"attn_in": "normed", "attn_out": "attn_out", "resid_post": "post"}
EACH = pytest.mark.parametrize("name", SWITCHES)


def shown(acts):
    # The geometry of attention, which is static, differs between kinds of blocks.
    return acts._replace(mask=None)


@functools.cache
def run(name):
    """Logits and activations of two sequences."""
    model, tokens = decoder(SWITCHES[name]), ids(SWITCHES[name], 2, 7)
    return model, tokens, *in_numpy.jit(lambda m, t: m(t, tap=shown))(model, tokens)


@EACH
def test_a_switch_does_what_it_says(name):
    model, tokens, logits, acts = run(name)
    for s, row in enumerate(np.asarray(tokens)):
        plain = oracle.run(model, row)
        for field, name in SEEN.items():
            np.testing.assert_allclose(
                getattr(acts, field)[:, s], np.array(plain[name]), rtol=0, atol=5e-5, err_msg=field
            )
        np.testing.assert_allclose(logits[s], plain["logits"], rtol=0, atol=5e-5)


@EACH
def test_what_is_added_is_what_taps_see(name):
    acts = run(name)[3]
    np.testing.assert_allclose(
        acts.resid_pre + acts.attn_out + acts.mlp_out, acts.resid_post, rtol=0, atol=1e-5
    )
    assert acts.mlp_hidden.shape[-1] == SWITCHES[name].block.mlp.units


def test_the_context_that_was_trained_decides_the_rotary_factors():
    config = SWITCHES["longrope"]
    short = varied(config, rope=RopeConfig(factors=config.block.attention.rope.factors, scale=1.2))
    long = varied(
        config, rope=RopeConfig(factors=config.block.attention.rope.long_factors, scale=1.2)
    )
    logits = in_numpy.jit(lambda config, tokens: decoder(config)(tokens)[0], static=["config"])
    for length, same in ((6, short), (7, long)):
        tokens = ids(config, 1, length)
        np.testing.assert_array_equal(logits(config, tokens), logits(same, tokens))


@pytest.mark.parametrize("name", ["qwen2_moe", "gpt_oss"])
def test_the_router_is_shown_and_its_units_are_those_of_its_experts(name):
    model, _, _, acts = run(name)
    start = "blocks.mlp.experts."
    moe, F = SWITCHES[name].block.mlp.moe, SWITCHES[name].block.mlp.hidden
    weights, experts = np.float64(acts.router.weights), np.asarray(acts.router.experts)
    assert experts.shape == (3, 2, 7, moe.active)
    assert (np.diff(np.sort(experts)) > 0).all() and (np.diff(weights) <= 0).all()
    total = weights.sum(-1)
    assert np.allclose(total, 1) if moe.score == "top_softmax" else (total < 1).all()
    # The second expert of the last token of the first sequence.
    e, x = experts[2, 0, 6, 1], np.float64(acts.mlp_in[2, 0, 6])
    own = {n: np.float64(v) for n, v in parameters(model).items()}
    gate, up = (
        x @ own[f"{start}{n}"][2, e] + own.get(f"{start}{n}_bias", np.zeros((3, 9, 1)))[2, e]
        for n in ("gate", "up")
    )
    units = oracle.gated(SWITCHES[name].block.mlp.activation, gate, up)
    np.testing.assert_allclose(acts.mlp_hidden[2, 0, 6, F : 2 * F], units, rtol=0, atol=2e-5)


def test_alibis_slopes():
    assert alibi_slopes(4) == (2**-2, 2**-4, 2**-6, 2**-8)
    assert alibi_slopes(6) == (2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3)
    assert alibi_slopes(2, 4.0) == (2**-2, 2**-4)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: NormConfig(offset=1.0, scale=False), "norm.offset is 1; expected with"),
    (lambda: varied(SWITCHES["bloom"], slopes=None), "attention.slopes has 0 entries; expected"),
    (lambda: varied(SWITCHES["olmo"], slopes=(1.0,)), "position='rope': 0"),
    (lambda: varied(SWITCHES["neox"], rope=RopeConfig(dims=10)), "rope.dims is 10; expected: an"),
    (lambda: varied(SWITCHES["neox"], rope=RopeConfig(dims=3)), "rope.dims is 3; expected: an"),
    (lambda: RopeConfig(original_context=4), "rope.original_context is 4; expected"),
    (lambda: varied(SWITCHES["neox"], parallel=False, shared_norm=True), "shared_norm is True"),
    (lambda: MoEConfig(experts=2, active=3), "moe.active is 3; expected: at most moe.experts, 2"),
    (lambda: varied(SWITCHES["gpt_oss"], gated=False), "mlp.gated is False; expected"),
])  # fmt: skip
def test_contradictions_are_refused(make, message):
    with pytest.raises(ConfigError) as error:
        make()
    assert message in str(error.value)
