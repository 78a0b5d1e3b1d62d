"""Configurations that run in milliseconds, one for each way a decoder can be put together."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.nn.config import ModelConfig, RopeConfig
from jax_massact.nn.transformer import (
    Transformer,
    abstract,
    from_parameters,
    parameters,
)

LLAMA = ModelConfig(
    family="llama", vocab_size=64, depth=3, width=16, num_heads=4, num_kv_heads=2, head_dim=8,
    mlp_dim=24, context_length=64,
)
CONFIGS = {
    "llama": LLAMA,
    "llama3": dataclasses.replace(
        LLAMA, rope=RopeConfig(base=5e5, pairs="interleaved", factors=(1.0, 1.0, 3.0, 8.0))
    ),
    "mistral": dataclasses.replace(LLAMA, family="mistral", sliding_window=3),
    "qwen2": dataclasses.replace(
        LLAMA, family="qwen2", qkv_bias=True, tied_head=True, num_kv_heads=1
    ),
    "gpt2": dataclasses.replace(
        LLAMA, family="gpt2", num_kv_heads=4, norm="layer", norm_bias=True, position="learned",
        activation="gelu_tanh", gated_mlp=False, qkv_bias=True, attn_out_bias=True, mlp_bias=True,
        tied_head=True, first_position=2,
    ),
}


def decoder(config: ModelConfig, seed: int = 0, spread: float = 0.3) -> Transformer:
    """A decoder in which every parameter matters: no bias is 0, no scale is 1."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        return jnp.asarray(name.endswith("scale") + spread * rng.standard_normal(shape), "float32")

    leaves = parameters(abstract(config))
    return from_parameters(config, {name: draw(name, x.shape) for name, x in leaves.items()})


def ids(config: ModelConfig, batch: int, length: int, seed: int = 1) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, config.vocab_size, (batch, length)), jnp.int32)
