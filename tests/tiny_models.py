"""Configurations that run in milliseconds, one for each way a model can be put together."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.nn.config import (
    AttentionConfig,
    BlockConfig,
    EmbedConfig,
    MLPConfig,
    ModelConfig,
    RopeConfig,
)
from jax_massact.nn.transformer import Transformer, abstract, from_parameters, parameters

LLAMA = ModelConfig(
    depth=3, width=16, context_length=64, embed=EmbedConfig(vocab_size=64),
    block=BlockConfig(
        attention=AttentionConfig(heads=4, kv_heads=2, head_dim=8), mlp=MLPConfig(hidden=24)
    ),
)
# Short names of settings that lie deep in a configuration.
PATHS = {
    **{name: f"block.attention.{name}" for name in (
        "heads", "kv_heads", "head_dim", "variant", "position", "rope", "window", "scale",
        "softcap", "qkv_bias", "out_bias", "extra_keys", "implementation")},
    **{name: f"block.mlp.{name}" for name in ("hidden", "activation", "gated")},
    "mlp_bias": "block.mlp.bias", "vocab_size": "embed.vocab_size",
    "positions": "embed.positions", "tied": "head.tied",
}


def varied(config: ModelConfig, **changes: Any) -> ModelConfig:
    """`config` with other settings, by short names; `norm_*` are of all norms."""
    changes = dict(changes)
    for name in [name for name in changes if name.startswith("norm_")]:
        value, field = changes.pop(name), name.removeprefix("norm_")
        changes |= {f"block.norm.{field}": value, f"final_norm.{field}": value}
    groups: dict[str, dict[str, Any]] = {}
    own = {}
    for name, value in changes.items():
        parent, _, field = PATHS.get(name, name).rpartition(".")
        if parent:
            groups.setdefault(parent, {})[field] = value
        else:
            own[field] = value
    for path, fields in groups.items():
        config = _replaced(config, path.split("."), fields)
    return dataclasses.replace(config, **own)


def _replaced(config: Any, path: list[str], fields: dict[str, Any]) -> Any:
    if path:
        child = getattr(config, path[0])
        fields = {path[0]: _replaced(child, path[1:], fields)}
    return dataclasses.replace(config, **fields)


CONFIGS = {
    "llama": LLAMA,
    "llama3": varied(LLAMA, rope=RopeConfig(base=5e5, factors=(1.0, 1.0, 3.0, 8.0))),
    "mistral": varied(LLAMA, window=3),
    "qwen2": varied(LLAMA, qkv_bias=True, tied=True, kv_heads=1),
    "gpt2": varied(
        LLAMA, kv_heads=4, norm_kind="layer", norm_bias=True, position="none",
        positions="learned", activation="gelu_tanh", gated=False, qkv_bias=True, out_bias=True,
        mlp_bias=True, tied=True, first_position=2,
    ),
}


def decoder(config: ModelConfig, seed: int = 0, spread: float = 0.3) -> Transformer:
    """A model in which every parameter matters: no bias is 0, no scale is 1."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        return jnp.asarray(name.endswith("scale") + spread * rng.standard_normal(shape), "float32")

    leaves = parameters(abstract(config))
    return from_parameters(config, {name: draw(name, x.shape) for name, x in leaves.items()})


def ids(config: ModelConfig, batch: int, length: int, seed: int = 1) -> jax.Array:
    rng = np.random.default_rng(seed)
    return jnp.asarray(rng.integers(0, config.embed.vocab_size, (batch, length)), jnp.int32)
