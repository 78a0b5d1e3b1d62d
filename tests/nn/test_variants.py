"""Every attention variant: values and gradients against a dense float64 reference, causality."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS, LLAMA, decoder, ids, varied

from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import Transformer, from_parameters, parameters
from jax_massact.nn.variants import VARIANTS

EACH = pytest.mark.parametrize("variant", VARIANTS)
FAMILY = pytest.mark.parametrize("family", ["llama", "gpt2"])


def config_of(family: str, variant: str) -> ModelConfig:
    return varied(CONFIGS[family], variant=variant, tied=False)


def dense_attention(p, config, normed, q, k, v):
    """One block's attention output in float64, one head and one query at a time."""
    B, T, N, H = q.shape
    group = N // config.block.attention.kv_heads
    variant = config.block.attention.variant
    z = np.zeros((B, T, N, H))
    gamma = 4 / config.context_length
    for n in range(N):
        kv = n // group
        for t in range(T):
            scores = np.einsum("bh,bsh->bs", q[:, t, n], k[:, : t + 1, kv]) / np.sqrt(H)
            values = v[:, : t + 1, kv]
            add = None
            if variant in ("kv_bias", "k_bias"):
                add = q[:, t, n] @ p["attn.variant.k"][0, kv] / np.sqrt(H)
            elif variant == "sink_logit":
                add = np.full(B, p["attn.variant.logit"][n])
            elif variant == "softmax1":
                add = np.zeros(B)
            if add is not None:
                value = p["attn.variant.v"][0, kv] if variant == "kv_bias" else np.zeros(H)
                scores = np.concatenate([scores, add[:, None]], axis=1)
                values = np.concatenate([values, np.broadcast_to(value, (B, 1, H))], axis=1)
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            if variant == "clipped":
                weights = np.clip((1 + gamma) * weights - gamma, 0, 1)
            z[:, t, n] = np.einsum("bs,bsh->bh", weights, values)
        if variant == "v_bias":
            z[:, :, n] += p["attn.variant.v_bias"][kv]
        if variant == "gated":
            z[:, :, n] /= 1 + np.exp(-(normed @ p["attn.variant.gate"][:, n]))[..., None]
    out = np.einsum("btnh,nhd->btd", z, p["attn.out"])
    return out + p.get("attn.out_bias", 0)


@EACH
@FAMILY
def test_attention_is_that_of_a_dense_reference(family, variant):
    config = config_of(family, variant)
    model, tokens = decoder(config), ids(config, 2, 7)
    _, acts = jax.jit(lambda m: m(tokens, tap=lambda acts: acts))(model)
    acts = jax.tree.map(np.float64, acts)
    prefix = "blocks."
    for layer in range(config.depth):
        p = {n.removeprefix(prefix): np.float64(x[layer])
             for n, x in parameters(model).items() if n.startswith(prefix)}
        out = dense_attention(
            p, config, acts.attn_in[layer], acts.q[layer], acts.k[layer], acts.v[layer]
        )
        np.testing.assert_allclose(acts.attn_out[layer], out, rtol=0, atol=5e-6)


@EACH
@FAMILY
def test_gradients_are_those_of_finite_differences_in_float64(family, variant):
    """Directional derivatives of a loss, for every parameter by itself."""
    config = dataclasses.replace(config_of(family, variant), depth=2)
    model, tokens = decoder(config), ids(config, 2, 5)
    rng = np.random.default_rng(3)
    cotangent = rng.standard_normal((2, 5, config.width))

    def loss(params, cotangent):
        return (from_parameters(config, params).residual(tokens)[0] * cotangent).sum()

    params = parameters(model)
    params = {n: x for n, x in params.items()}
    grads = jax.jit(jax.grad(loss))(params, jnp.asarray(cotangent, jnp.float32))
    directions = {n: jnp.asarray(rng.standard_normal(x.shape), x.dtype) for n, x in params.items()}
    # One compilation for all parameters: a step along `direction` of the one that is chosen.
    shifted = jax.jit(lambda params, steps: loss(
        {n: x + steps[n] * directions[n] for n, x in params.items()},
        jnp.asarray(cotangent, jnp.float32),
    ))
    h = 3e-3
    for name in params:
        if name in ("head", "final_norm.scale", "final_norm.bias"):
            continue
        steps = {n: h * (n == name) for n in params}
        back = {n: -s for n, s in steps.items()}
        slope = (float(shifted(params, steps)) - float(shifted(params, back))) / (2 * h)
        expected = float((grads[name] * directions[name]).sum())
        # Keys' biases shift all logits alike: their derivative is 0 but for rounding.
        assert slope == pytest.approx(expected, rel=0.03, abs=0.05), name


@EACH
def test_no_token_sees_a_later_one(variant):
    config = config_of("llama", variant)
    model, tokens = decoder(config), np.arange(6)[None] + 3
    params = parameters(model)

    def residual(embed):
        return from_parameters(config, params | {"embed": embed}).residual(tokens)[0][0].sum(-1)

    rows = np.abs(jax.jit(jax.jacrev(residual))(params["embed"]))[:, tokens[0]].max(-1)
    np.testing.assert_array_equal(rows > 0, np.tri(6, dtype=bool))


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
    config = config_of("gpt2", "sink")
    model, tokens = decoder(config), ids(config, 2, 5)
    x, streams = jax.jit(lambda m: m.residual(tokens, tap=lambda acts: acts.resid_pre))(model)
    assert x.shape[1] == 5 and streams.shape[2] == 6
    # It has no position; the tokens have those of a model without it.
    front = parameters(model)["prefix"][0]
    np.testing.assert_array_equal(streams[0, :, 0], np.broadcast_to(front, (2, config.width)))
    params = {n: x for n, x in parameters(model).items() if n != "prefix"}
    plain = from_parameters(config.with_attention(variant="standard"), params)
    np.testing.assert_array_equal(streams[0, :, 1:], plain.embedded(tokens))
