"""Configurations that run in milliseconds, one for each way a model can be put together."""

import dataclasses
from typing import Any

import jax
import numpy as np

from jax_massact.nn.block_config import (
    AttentionConfig,
    BlockConfig,
    MLPConfig,
    MoEConfig,
    RopeConfig,
)
from jax_massact.nn.config import EmbedConfig, ModelConfig
from jax_massact.nn.positions import alibi_slopes
from jax_massact.nn.transformer import Transformer, abstract, from_parameters, parameters

LLAMA = ModelConfig(
    depth=3, width=16, context_length=64, embed=EmbedConfig(vocab_size=64),
    block=BlockConfig(
        attention=AttentionConfig(heads=4, kv_heads=2, head_dim=8), mlp=MLPConfig(hidden=24)
    ),
)
FAR = (1.0, 1.5, 2.5, 8.0)
# Short names of settings that lie deep in a configuration.
PATHS = {
    **{name: f"block.attention.{name}" for name in (
        "heads", "kv_heads", "head_dim", "variant", "position", "rope", "slopes", "window", "scale",
        "softcap", "clip", "qk_norm", "qkv_bias", "out_bias", "extra_keys", "implementation")},
    **{name: f"block.mlp.{name}" for name in ("hidden", "activation", "gated", "moe")},
    **{name: f"block.{name}" for name in ("norms", "parallel", "shared_norm", "residual_scale")},
    "mlp_bias": "block.mlp.bias", "vocab_size": "embed.vocab_size",
    "positions": "embed.positions", "embed_scale": "embed.scale", "embed_norm": "embed.norm",
    "tied": "head.tied", "head_bias": "head.bias", "head_scale": "head.scale",
    "head_softcap": "head.softcap",
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


def alternating(config: ModelConfig, *changes: dict[str, Any]) -> ModelConfig:
    """`config` with further kinds of blocks, which differ from the first in attention."""
    others = tuple(varied(config, **change).block for change in changes)
    return dataclasses.replace(config, others=others)


_LAYER = varied(LLAMA, norm_kind="layer", norm_bias=True, norm_eps=1e-2)
# Every switch that only some families use, at a value that is not its default; several to a model.
SWITCHES = {
    "gemma": alternating(
        varied(
            LLAMA, norm_offset=1.0, norm_wide=True, norms="both", embed_scale=4.0, qk_norm="head",
            scale=0.2, softcap=2.0, head_softcap=3.0, tied=True, activation="gelu_tanh", window=3,
        ),
        {"window": None, "rope": RopeConfig(base=50.0)},
    ),
    "neox": varied(_LAYER, parallel=True, rope=RopeConfig(dims=4, factors=(1.0, 3.0))),
    "falcon": varied(_LAYER, parallel=True, shared_norm=True, gated=False, activation="gelu"),
    "bloom": alternating(
        varied(_LAYER, position="alibi", slopes=alibi_slopes(4), embed_norm=True),
        {"slopes": (0.3, 0.0, 1.0, 0.1), "window": 3},
    ),
    # Slopes and positions that have no bfloat16, and a scale that is no power of two.
    "falcon_rw": varied(
        _LAYER, position="alibi_rounded", slopes=(0.3, 0.7, 1.1, 0.9), scale=0.3,
        first_position=260, context_length=300,
    ),
    "olmo": varied(LLAMA, norm_kind="layer", norm_scale=False, clip=0.3),
    "olmo2": varied(LLAMA, norms="out", qk_norm="all", norm_eps=1e-2),
    "granite": varied(LLAMA, residual_scale=0.4, head_scale=0.25, scale=0.1, embed_scale=3.0),
    "phi": varied(
        _LAYER, head_bias=True, activation="relu", gated=False, mlp_bias=True, qk_norm="per_head",
    ),
    "dyt": varied(LLAMA, norm_kind="dyt", norm_bias=True, norms="both"),
    "longrope": varied(
        LLAMA, rope=RopeConfig(factors=(1.0,) * 4, long_factors=FAR, original_context=6, scale=1.2)
    ),
    "qwen2_moe": varied(
        LLAMA, moe=MoEConfig(experts=5, active=2, renormalize=False, shared=8, shared_gate=True)
    ),
    "gpt_oss": varied(
        LLAMA, moe=MoEConfig(experts=4, active=3, score="top_softmax", router_bias=True),
        mlp_bias=True, activation="clamped_swiglu", variant="sink_logit",
    ),
}


def decoder(config: ModelConfig, seed: int = 0, spread: float = 0.3) -> Transformer:
    """A model in which every parameter matters: no bias is 0, no scale is 1."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        one = name.endswith(("scale", "scales"))
        return put(one + spread * rng.standard_normal(shape), np.float32)

    leaves = parameters(abstract(config))
    return from_parameters(config, {name: draw(name, x.shape) for name, x in leaves.items()})


def ids(config: ModelConfig, batch: int, length: int, seed: int = 1) -> jax.Array:
    rng = np.random.default_rng(seed)
    return put(rng.integers(0, config.embed.vocab_size, (batch, length)), np.int32)


def put(x: np.ndarray, dtype: type) -> jax.Array:
    """An array of this type on the device; `jnp.asarray` compiles a program for each shape."""
    return jax.device_put(np.asarray(x, dtype))
