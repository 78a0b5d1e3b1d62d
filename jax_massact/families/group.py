"""The group `massact` of a `config.json`: settings of a model that Hugging Face has no name for.

They are fields of `ModelConfig` under their own names, and of `RopeConfig` with `rope_` in front.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, get_args

from jax_massact.errors import WeightsError
from jax_massact.nn.config import (
    AttentionKind,
    ModelConfig,
    NormKind,
    PositionKind,
    RopeConfig,
)
from jax_massact.settings import unknown_key
from jax_massact.weights.settings import Settings

GROUP = "massact"
_ROPE = {"rope_base": "base", "rope_factors": "factors"}


def _one_of(kinds: Any) -> Callable[[Settings, str], Any]:
    return lambda settings, name: settings.one_of(name, get_args(kinds))


def _flag(settings: Settings, name: str) -> bool:
    return settings.one_of(name, (True, False))


_READERS: Mapping[str, Callable[[Settings, str], Any]] = {
    "attention": _one_of(AttentionKind),
    "attn_out_bias": _flag,
    "bias_position": Settings.count,
    "first_position": Settings.count,
    "gated_mlp": _flag,
    "head_dim": Settings.size,
    "mlp_bias": _flag,
    "norm": _one_of(NormKind),
    "norm_bias": _flag,
    "num_kv_heads": Settings.size,
    "position": _one_of(PositionKind),
    "qkv_bias": _flag,
    "rope_base": Settings.number,
    "rope_factors": Settings.numbers,
    "sliding_window": Settings.size,
}


def group_of(settings: Settings, *, required: bool | None = None) -> Settings:
    """The group in a `config.json`.

    Args:
      required: whether the model must have it, or (False) must not; None: either.

    Raises:
      WeightsError: it is missing, out of place, or not a group of known settings.
    """
    if required is False and settings.has(GROUP):
        # Other programs would not see it, and run another model.
        raise settings.error(GROUP, f"nothing, unless model_type begins with {GROUP}-")
    values = settings.get(GROUP, None if required else {})
    if not isinstance(values, Mapping):
        raise settings.error(GROUP, "a group of settings")
    for key in values:
        if key not in _READERS:
            raise WeightsError(f"{settings.file}: {unknown_key(f'{GROUP}.{key}', key, _READERS)}")
    prefixed = {f"{GROUP}.{key}": value for key, value in values.items()}
    return Settings(prefixed, settings.file, f"{GROUP}.")


def model_config(fields: Mapping[str, Any], group: Settings) -> ModelConfig:
    """The configuration with these fields, and those of the group in their place.

    Raises:
      WeightsError: a setting of the group is out of its range.
      ConfigError: two settings contradict each other.
    """
    keys = [key.removeprefix(group.prefix) for key in group.values]
    given = {key: _READERS[key](group, key) for key in keys}
    turned = {field: given.pop(key) for key, field in _ROPE.items() if key in given}
    rope = dataclasses.replace(fields.get("rope", RopeConfig()), **turned)
    return ModelConfig(**{**fields, **given, "rope": rope})


def group_for(fields: Mapping[str, Any], config: ModelConfig) -> dict[str, Any]:
    """What the group must hold so that `model_config` makes `config` of these fields."""
    stated, wanted = _flat({**_defaults(), **fields}), _flat(_values(config))
    return {key: wanted[key] for key in _READERS if wanted[key] != stated[key]}


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    rope = {key: getattr(fields["rope"], field) for key, field in _ROPE.items()}
    return {**fields, **rope}


def _defaults() -> dict[str, Any]:
    return {field.name: field.default for field in dataclasses.fields(ModelConfig)}


def _values(config: ModelConfig) -> dict[str, Any]:
    # Not `asdict`, which would take the rotary settings apart.
    return {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
