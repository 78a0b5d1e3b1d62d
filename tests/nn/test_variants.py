"""Every attention variant: values and gradients against the plain model, causality."""

import dataclasses
import functools

import in_numpy
import jax
import numpy as np
import oracle
import pytest
from tiny_models import CONFIGS, LLAMA, decoder, ids, varied

from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import Transformer, from_parameters, parameters
from jax_massact.nn.variants import VARIANTS

EACH = pytest.mark.parametrize("variant", VARIANTS)
FAMILY = pytest.mark.parametrize("family", ["llama", "gpt2"])


def config_of(family: str, variant: str) -> ModelConfig:
    return varied(CONFIGS[family], variant=variant, tied=False)


@functools.cache
def seen(family: str, variant: str):
    """A model, ids, and a compiled function of both that shows logits and activations."""
    config = config_of(family, variant)
    shown = lambda a: {"attn_out": a.attn_out, "z": a.z, "post": a.resid_post, "pre": a.resid_pre}
    return decoder(config), ids(config, 2, 7), in_numpy.jit(lambda m, t: m(t, tap=shown))


@EACH
@FAMILY
def test_every_activation_is_that_of_the_plain_model(family, variant):
    model, tokens, run = seen(family, variant)
    logits, acts = run(model, tokens)
    for s, row in enumerate(np.asarray(tokens)):
        plain = oracle.run(model, row)
        for name, found in {**acts, "logits": logits[None]}.items():
            expected = np.array(plain[name] if name in acts else [plain[name]])
            limit = 5e-6 * max(4, np.abs(expected).max())
            np.testing.assert_allclose(found[:, s], expected, rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize(
    ("family", "variant"), [*(("llama", variant) for variant in VARIANTS), ("gpt2", "kv_bias")]
)
def test_gradients_are_those_of_differences_in_float64(family, variant):
    """Directional derivatives of a loss, for every parameter by itself."""
    config = dataclasses.replace(config_of(family, variant), depth=2)
    model, (tokens,) = decoder(config), np.asarray(ids(config, 1, 5))
    rng = np.random.default_rng(3)
    cotangent = rng.standard_normal((5, config.width))
    params = parameters(model)
    exact = {n: np.float64(x) for n, x in params.items()}

    def loss(name, x):
        return (oracle.decode(config, exact | {name: x}, tokens)["last"] * cotangent).sum()

    @in_numpy.jit
    @jax.grad
    def gradient(params):
        return (from_parameters(config, params).residual(tokens[None])[0][0] * cotangent).sum()

    for name, found in gradient(params).items():
        direction = rng.standard_normal(found.shape)
        expected = oracle.slope(functools.partial(loss, name), exact[name], direction)
        limit = 1e-4 * max(1.0, np.abs(np.float64(found) * direction).sum())
        assert (np.float64(found) * direction).sum() == pytest.approx(expected, abs=limit), name
        unread = ("head", "final_norm.scale", "final_norm.bias", "blocks.attn.k_bias")
        assert name in unread or abs(expected) > 10 * limit, name


@EACH
def test_no_token_sees_a_later_one(variant):
    model, tokens, run = seen("llama", variant)
    before = run(model, tokens)[0]
    for t in range(tokens.shape[1]):
        after = run(model, tokens.at[:, t].set(tokens[:, t] + 1))[0]
        changed = np.any(after != before, axis=-1)
        np.testing.assert_array_equal(changed, np.broadcast_to(np.arange(7) >= t, changed.shape))


@EACH
def test_a_new_model_starts_as_gpt2_does(variant):
    config = varied(
        LLAMA, width=64, hidden=256, heads=8, kv_heads=8, vocab_size=512, variant=variant,
    )
    params = parameters(Transformer(config, jax.random.key(0)))
    for name, x in params.items():
        if "norm" in name or name.endswith("logit"):
            continue
        small = name in ("blocks.attn.out", "blocks.mlp.down")
        std = 0.02 / np.sqrt(2 * config.depth) if small else 0.02
        assert float(x.std()) == pytest.approx(std, rel=0.15), name


def test_the_sink_stands_in_front_and_is_dropped():
    model, tokens, run = seen("gpt2", "sink")
    logits, acts = run(model, tokens)
    streams = acts["pre"]
    assert logits.shape[1] == 7 and streams.shape[2] == 8
    # It has no position; the tokens have those of a model without it.
    front = parameters(model)["prefix"][0]
    np.testing.assert_array_equal(streams[0, :, 0], np.broadcast_to(front, (2, model.config.width)))
    params = {n: x for n, x in parameters(model).items() if n != "prefix"}
    plain = from_parameters(model.config.with_attention(variant="standard"), params)
    np.testing.assert_array_equal(streams[0, :, 1:], plain.embedded(tokens))
