"""A model's configuration as flat settings: dotted paths such as `block.attention.window`.

Readers of files state some of them, and the group `massact` of a file replaces others, before a
configuration is built and checked as a whole.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

from jax_massact.nn.block_config import AttentionConfig, BlockConfig, MLPConfig
from jax_massact.nn.config import EmbedConfig, ModelConfig
from jax_massact.settings import from_mapping

# Values by path. `others` is a tuple of mappings: what each further kind of block, with paths that
# begin at the block, has in place of the first kind's.
Fields = Mapping[str, Any]

_LEAST = ModelConfig(
    depth=1,
    width=1,
    context_length=1,
    embed=EmbedConfig(vocab_size=1),
    block=BlockConfig(
        attention=AttentionConfig(heads=1, kv_heads=1, head_dim=2), mlp=MLPConfig(hidden=1)
    ),
)


def build(fields: Fields) -> ModelConfig:
    """The configuration with these settings and the defaults of all others.

    Raises:
      ConfigError: a setting is missing, unknown or out of range, or two contradict each other.
    """
    config = from_mapping(ModelConfig, _nested({**fields, "others": ()}))
    others = fields.get("others", ())
    if not others:
        return config
    kinds = tuple(
        from_mapping(BlockConfig, _nested(change), "block", config.block) for change in others
    )
    return dataclasses.replace(config, others=kinds)


def flat(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `build`: every setting by its path."""
    block = _leaves(config.block)
    others = tuple(
        {path: value for path, value in _leaves(kind).items() if value != block[path]}
        for kind in config.others
    )
    return {**_leaves(dataclasses.replace(config, others=())), "others": others}


@functools.cache
def defaults() -> Fields:
    """What `build` takes for a setting that has a default and is not stated."""
    return flat(_LEAST)


def in_all_norms(**settings: Any) -> dict[str, Any]:
    """Fields in which all norms have these settings."""
    norms = ("block.norm", "final_norm")
    return {f"{norm}.{name}": value for norm in norms for name, value in settings.items()}


def pattern(layers: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Fields in which settings of the block have these values, one for each layer.

    Args:
      layers: by path, beginning at the block, such as `attention.window`.
    """
    rows = zip(*layers.values(), strict=True)
    kinds = [dict(zip(layers, values, strict=True)) for values in rows]
    period = next(
        n
        for n in range(1, len(kinds) + 1)
        if all(kind == kinds[i % n] for i, kind in enumerate(kinds))
    )
    first, *rest = kinds[:period]
    others = tuple(
        {path: value for path, value in kind.items() if value != first[path]} for kind in rest
    )
    return {**{f"block.{path}": value for path, value in first.items()}, "others": others}


def per_layer(config: ModelConfig, path: str) -> list[Any]:
    """The values of a setting of the blocks, one for each layer; the inverse of `pattern`."""
    kinds = [_leaves(kind)[path] for kind in config.pattern]
    return [kinds[layer % len(kinds)] for layer in range(config.depth)]


def _leaves(config: Any, prefix: str = "") -> dict[str, Any]:
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            found |= _leaves(value, f"{prefix}{field.name}.")
        else:
            found[prefix + field.name] = value
    return found


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for path, value in fields.items():
        *parents, name = path.split(".")
        group = nested
        for parent in parents:
            group = group.setdefault(parent, {})
        group[name] = value
    return nested
