"""GPT-2 as Sun et al. (2024) train it, against PyTorch's numbers, stored by `make_fixtures.py`.

Logits, losses and gradients may be off by 1e-5, unscaled, and parameters after six updates with
learning rates of up to 1e-2 by 3e-6.
"""

import dataclasses
import functools
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import varied

from jax_massact.nn.transformer import (
    Transformer,
    abstract,
    from_parameters,
    parameters,
)
from jax_massact.train.config import (
    OptimizerConfig,
    TrainConfig,
    WatchConfig,
    gpt2,
)
from jax_massact.train.optimizer import make_optimizer
from jax_massact.train.step import State, loss, update

FIXTURE = Path(__file__).parent / "fixtures" / "gpt2.npz"
DEPTH, HEADS, HEAD_DIM = 2, 3, 4
WIDTH = HEADS * HEAD_DIM
# What is not stated here is at its default, which is the authors'.
MODEL = gpt2(
    vocab_size=96, depth=DEPTH, width=WIDTH, heads=HEADS, context_length=20, dtype="float32"
)
RUN = TrainConfig(
    model=MODEL,
    optimizer=OptimizerConfig(lr=1e-2, final_lr=1e-3, warmup=2, decay_end=4),
    watch=WatchConfig(every=0),
    steps=6,
    batch_size=5,
    sequence_length=16,
)
# The authors' variants by this project's names, and what each has beside the others.
VARIANTS = {
    "standard": set(),
    "sink": {"prefix"},
    "kv_bias": {"blocks.attn.variant.k", "blocks.attn.variant.v"},
}
EACH = pytest.mark.parametrize("variant", VARIANTS)


@functools.cache
def stored() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURE))


def below(prefix: str) -> dict[str, np.ndarray]:
    return {k.removeprefix(prefix): x for k, x in stored().items() if k.startswith(prefix)}


def transplanted(tensors: dict[str, np.ndarray]) -> dict[str, jax.Array]:
    """The authors' tensors, or gradients by them, as the parameters of a decoder.

    Their matrices are [out, in], with all of q before all of k and v, and k' and v' [1, N, 1, H].
    """
    left = dict(tensors)

    def blocks(name):
        return np.stack([left.pop(f"transformer.h.{l}.{name}") for l in range(DEPTH)])

    qkv = blocks("attn.c_attn.weight").reshape(DEPTH, 3, HEADS, HEAD_DIM, WIDTH)
    q, k, v = np.moveaxis(qkv, (1, -1), (0, 2))
    out = blocks("attn.c_proj.weight").reshape(DEPTH, WIDTH, HEADS, HEAD_DIM)
    params = {
        "embed": left.pop("transformer.wte.weight"),
        "positions": left.pop("transformer.wpe.weight"),
        "blocks.attn_norm.scale": blocks("ln_1.weight"),
        "blocks.attn.q": q,
        "blocks.attn.k": k,
        "blocks.attn.v": v,
        "blocks.attn.out": np.moveaxis(out, 1, -1),
        "blocks.mlp_norm.scale": blocks("ln_2.weight"),
        "blocks.mlp.up": np.swapaxes(blocks("mlp.c_fc.weight"), 1, 2),
        "blocks.mlp.down": np.swapaxes(blocks("mlp.c_proj.weight"), 1, 2),
        "final_norm.scale": left.pop("transformer.ln_f.weight"),
    }
    if "reg_token" in left:
        params["prefix"] = left.pop("reg_token")[0]
    if "transformer.h.0.attn.k_bias" in left:
        params["blocks.attn.variant.k"] = blocks("attn.k_bias")[:, :, :, 0]
        params["blocks.attn.variant.v"] = blocks("attn.v_bias")[:, :, :, 0]
    assert not left
    return {name: jnp.asarray(x) for name, x in params.items()}


def run_of(variant: str) -> TrainConfig:
    return dataclasses.replace(RUN, model=MODEL.with_attention(variant=variant))


def weights_of(variant: str) -> dict[str, jax.Array]:
    """Those that the authors' model of this variant has gradients of."""
    names = below(f"{variant}/grads/")
    return transplanted({name: x for name, x in below("weights/").items() if name in names})


def close(found, expected, atol, what=""):
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol, err_msg=what)


@EACH
def test_logits_loss_and_gradients(variant):
    config, params, tokens = run_of(variant), weights_of(variant), stored()["tokens"][0]
    logits, _ = jax.jit(lambda p: from_parameters(config.model, p)(tokens[:, :-1]))(params)
    close(logits, stored()[f"{variant}/logits"], 1e-5)
    model = from_parameters(config.model, params)
    value, grads = jax.jit(jax.value_and_grad(loss), static_argnums=2)(model, tokens, config)
    grads = parameters(grads)
    close(value, stored()[f"{variant}/losses"][0], 1e-5)
    expected = transplanted(below(f"{variant}/grads/"))
    assert grads.keys() == expected.keys()
    for name, grad in grads.items():
        close(grad, expected[name], 1e-5, name)


@EACH
def test_updates(variant):
    """Warm-up, cosine and what follows it; decay, clipping and Adam's averages."""
    config, params = run_of(variant), weights_of(variant)
    state = State(
        step=jnp.int32(0),
        halted=jnp.bool_(False),
        model=from_parameters(config.model, params),
        optimizer=make_optimizer(config).init(params),
    )
    one_update, losses = jax.jit(update, static_argnums=2), []
    for tokens in stored()["tokens"]:
        state, metrics = one_update(state, tokens[None], config)
        losses.append(metrics.loss)
    close(losses, stored()[f"{variant}/losses"], 1e-5)
    expected = transplanted(below(f"{variant}/trained/"))
    for name, x in state.params.items():
        close(x, expected[name], 3e-6, name)
        assert np.abs(x - params[name]).max() > 1e-3, name


def on_a_position(params):
    return params | {"prefix": params["prefix"] + params["positions"][:1]}


def key_not_divided(params):
    name = "blocks.attn.variant.k"
    return params | {name: params[name] * HEAD_DIM**0.5}


def one_for_all_heads(params):
    name = "blocks.attn.variant.v"
    return params | {name: jnp.broadcast_to(params[name][:, :, :1], params[name].shape)}


def own_head(params):
    other = np.random.default_rng(0).permutation(params["embed"]).T
    return params | {"head": other}


@pytest.mark.parametrize(("variant", "settings", "change"), [
    ("standard", {"activation": "gelu_tanh"}, dict),
    ("standard", {"norm_kind": "rms"}, dict),
    ("standard", {"norm_eps": 1e-6}, dict),
    ("standard", {"first_position": 1}, dict),
    ("standard", {"tied": False}, own_head),
    ("sink", {}, on_a_position),
    ("kv_bias", {}, key_not_divided),
    ("kv_bias", {}, one_for_all_heads),
])
def test_a_wrong_detail_would_be_seen(variant, settings, change):
    """At ten times the tolerance and more: the numbers above say something."""
    config = varied(run_of(variant).model, **settings)
    model = from_parameters(config, change(weights_of(variant)))
    logits, _ = jax.jit(lambda model, tokens: model(tokens))(model, stored()["tokens"][0, :, :-1])
    assert np.abs(logits - stored()[f"{variant}/logits"]).max() > 1e-4


@EACH
def test_new_parameters(variant):
    """Those of the authors and no others, drawn from the same distributions."""
    config = gpt2(vocab_size=384, depth=3, width=96, heads=4, context_length=64,
                  variant=variant)
    found = parameters(jax.jit(lambda key: Transformer(config, key))(jax.random.key(0)))
    scales = {"blocks.attn_norm.scale", "blocks.mlp_norm.scale", "final_norm.scale"}
    stds = dict.fromkeys(["embed", "positions", "blocks.attn.q", "blocks.attn.k", "blocks.attn.v",
                          "blocks.mlp.up", *VARIANTS[variant]], 0.02)
    stds |= dict.fromkeys(["blocks.attn.out", "blocks.mlp.down"], 0.02 / math.sqrt(2 * 3))
    assert found.keys() == stds.keys() | scales
    for name in scales:
        np.testing.assert_array_equal(found[name], 1.0, err_msg=name)
    for name, std in stds.items():
        z = np.asarray(found[name], np.float64).ravel() / std
        # Five standard errors of each statistic of a normal distribution.
        five = 5 / math.sqrt(z.size)
        assert abs(z.mean()) < five, name
        assert abs(z.std() - 1) < five / math.sqrt(2), name
        assert abs((np.abs(z) > 2).mean() - 0.0455) < five * 0.2084, name


@EACH
def test_the_defaults(variant):
    """Of GPT-2 124M and its optimizer."""
    model, config = gpt2(variant=variant), TrainConfig()
    shapes = {name: x.shape for name, x in parameters(abstract(model)).items()}
    assert shapes["embed"] == (50304, 768) and shapes["positions"] == (1024, 768)
    assert shapes["blocks.attn.q"] == (12, 768, 12, 64)
    assert shapes["blocks.mlp.up"] == (12, 768, 3072)
    for name in VARIANTS[variant]:
        assert shapes[name] == ((1, 768) if name == "prefix" else (12, 1, 12, 64))
    assert config.model == gpt2() and config.optimizer == OptimizerConfig()
    optimizer = config.optimizer
    assert (optimizer.lr, optimizer.final_lr, optimizer.warmup) == (6e-4, 6e-5, 2000)
    assert (config.decay_start, config.decay_end) == (2000, 600_000)
    # Betas, epsilon, decay and clipping are those that `test_updates` runs with.
    assert dataclasses.replace(RUN.optimizer, lr=6e-4, final_lr=6e-5, warmup=2000,
                               decay_end=600_000) == optimizer
