"""Rotary settings of Hugging Face files, and back: divisors of the frequencies and one scale.

Defaults and precedence are those of transformers 5 (`modeling_rope_utils`). A setting that a kind
of scaling does not have is refused: somebody meant it to change the numbers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jax_massact.nn.block_config import AttentionConfig, RopeConfig
from jax_massact.nn.positions import llama3_factors
from jax_massact.weights.settings import Settings

# What every published model with Llama 3's extension has, and the contexts that it may extend.
_LLAMA3 = {"low": 1.0, "high": 4.0}
_LLAMA3_CONTEXTS = tuple(1 << n for n in range(10, 18))
# Within the rounding of files that hold the factors themselves, in float32.
_LLAMA3_ERROR = 1e-6


class Scaling(NamedTuple):
    """The settings of a way to stretch the context, and what else it depends on.

    Attributes:
      dims: how many coordinates of a head are turned.
      context: the model's context length.
      original: that before it was stretched.
    """

    settings: Settings
    rope: RopeConfig
    dims: int
    context: int
    original: int

    @property
    def factor(self) -> float:
        return self.settings.number("factor", self.context / self.original)


def read_rope(
    settings: Settings,
    head_dim: int,
    context_length: int,
    *,
    partial: float | None = None,
    base: float = 10_000.0,
    layers: str = "",
) -> RopeConfig:
    """The rotary settings of a `config.json`.

    As in transformers, `rope_scaling` replaces `rope_parameters` as a whole unless it is empty.

    Args:
      context_length: the model's.
      partial: the share of a head that is turned, where none is stated; None: the family turns
        whole heads.
      base: `rope_theta` where none is stated.
      layers: the kind of layers, such as `full_attention`, where each may have its own settings.

    Raises:
      WeightsError: a kind of scaling or a setting is not supported, or one is missing or wrong.
      ConfigError: a factor is out of its range.
    """
    settings.one_of("rope_interleaved", (False,), False)
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    stated = settings.get(name, {})
    if not isinstance(stated, Mapping):
        raise settings.error(name, "an object or null")
    if layers and any(isinstance(value, Mapping) for value in stated.values()):
        name, stated = f"{name}.{layers}", stated.get(layers) or {}
        if not isinstance(stated, Mapping):
            raise settings.error(name.partition(".")[0], "an object for each kind of layers")
    inner = Settings({f"{name}.{k}": v for k, v in stated.items()}, settings.file, f"{name}.")
    dims = _turned(settings, inner, head_dim, partial)
    rope = RopeConfig(
        base=inner.number("rope_theta", settings.number("rope_theta", base)),
        dims=None if dims == head_dim else dims,
    )
    key = "type" if inner.has("type") and not inner.has("rope_type") else "rope_type"
    if any(isinstance(value, Mapping) for value in stated.values()):
        raise inner.error(key, "one kind for all layers")
    kind = inner.one_of(key, tuple(_KINDS), "default")
    read, known = _KINDS[kind]
    for setting in stated:
        if inner.has(setting) and setting not in (*_ANY, *known):
            raise inner.error(setting, f"nothing with {key} {kind!r}")
    # The model's own setting comes before the group's.
    original = settings.size(_ORIGINAL, inner.size(_ORIGINAL, context_length))
    return read(Scaling(inner, rope, dims, context_length, original))


def _turned(settings: Settings, inner: Settings, head_dim: int, partial: float | None) -> int:
    """How many coordinates of a head are turned."""
    name = "partial_rotary_factor"
    if partial is not None:
        return int(head_dim * inner.number(name, settings.number(name, partial)))
    for source in (settings, inner):
        if source.get(name, 1.0) != 1.0:
            raise source.error(name, "1.0, the whole head")
    return head_dim


_ORIGINAL = "original_max_position_embeddings"
# Settings that stand in files of every kind; where one means nothing to a kind, transformers does
# not use it either.
_ANY = ("rope_type", "type", "rope_theta", "partial_rotary_factor", _ORIGINAL, "finetuned")


def _default(scaling: Scaling) -> RopeConfig:
    return scaling.rope


def _linear(scaling: Scaling) -> RopeConfig:
    factors = (scaling.settings.number("factor"),) * (scaling.dims // 2)
    return dataclasses.replace(scaling.rope, factors=factors)


def _dynamic(scaling: Scaling) -> RopeConfig:
    # Frequencies change beyond the context length, where no sequence goes here.
    scaling.settings.number("factor")
    return scaling.rope


def _llama3(scaling: Scaling) -> RopeConfig:
    factors = llama3_factors(
        scaling.rope,
        scaling.dims,
        factor=scaling.settings.number("factor"),
        low=scaling.settings.number("low_freq_factor"),
        high=scaling.settings.number("high_freq_factor"),
        context=scaling.original,
    )
    return dataclasses.replace(scaling.rope, factors=factors)


def yarn(scaling: Scaling) -> RopeConfig:
    """Peng et al. (2023): fast pairs keep their frequency, slow ones are interpolated."""
    settings, base, H = scaling.settings, scaling.rope.base, scaling.dims

    def pair(turns: float) -> float:
        """The pair, counted as a real number, that turns so often within the original context."""
        return H * math.log(scaling.original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = pair(settings.number("beta_fast", 32)), pair(settings.number("beta_slow", 1))
    if settings.flag("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, H - 1)
    high += 0.001 if low == high else 0.0
    slow = np.clip((np.arange(H // 2) - low) / (high - low), 0.0, 1.0)
    # Frequencies are interpolated, not wavelengths: 1/divisor = slow/factor + (1 - slow).
    factors = 1.0 / (slow / scaling.factor + (1.0 - slow))
    grown = math.log(max(scaling.factor, 1.0))
    scale = 0.1 * grown + 1.0
    if settings.has("mscale") and settings.has("mscale_all_dim"):
        above, below = (settings.number(name) for name in ("mscale", "mscale_all_dim"))
        scale = (0.1 * above * grown + 1.0) / (0.1 * below * grown + 1.0)
    scale = settings.number("attention_factor", scale)
    return dataclasses.replace(scaling.rope, factors=tuple(factors.tolist()), scale=scale)


def _longrope(scaling: Scaling) -> RopeConfig:
    """Ding et al. (2024): sequences beyond the original context have factors of their own."""
    short, long = (scaling.settings.numbers(f"{name}_factor") for name in ("short", "long"))
    grown = math.log(max(scaling.factor, 1.0))
    scale = math.sqrt(1 + grown / math.log(scaling.original)) if grown else 1.0
    scale = scaling.settings.number("attention_factor", scale)
    rope = dataclasses.replace(scaling.rope, factors=short, scale=scale)
    if long == short:
        return rope
    return dataclasses.replace(rope, long_factors=long, original_context=scaling.original)


# Kind -> its reader and the settings that it has beside those of any kind.
_KINDS = {
    "default": (_default, ()),
    "linear": (_linear, ("factor",)),
    "dynamic": (_dynamic, ("factor",)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "yarn": (yarn, (
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "truncate",
    )),
    "longrope": (_longrope, ("factor", "short_factor", "long_factor", "attention_factor")),
}  # fmt: skip


def rope_fields(rope: RopeConfig) -> dict[str, Any]:
    """The fields of rotary settings."""
    return {
        f"block.attention.rope.{field.name}": getattr(rope, field.name)
        for field in dataclasses.fields(rope)
    }


def rope_in(fields: Mapping[str, Any]) -> RopeConfig:
    """The inverse of `rope_fields`."""
    names = (field.name for field in dataclasses.fields(RopeConfig))
    return RopeConfig(**{name: fields[f"block.attention.rope.{name}"] for name in names})


def turned_in(fields: Mapping[str, Any], layers: Sequence[bool]) -> dict[str, list[Any]]:
    """Settings for `fields.pattern` of a model in which some layers have no positions at all.

    Args:
      fields: of the model.
      layers: whether each has rotary positions.
    """
    found: dict[str, list[Any]] = {
        "attention.position": ["rope" if turned else "none" for turned in layers]
    }
    for field in dataclasses.fields(RopeConfig):
        stated = fields[f"block.attention.rope.{field.name}"]
        values = [stated if turned else field.default for turned in layers]
        found[f"attention.rope.{field.name}"] = values
    return found


def write_rope(attention: AttentionConfig, context_length: int) -> dict[str, Any]:
    """`rope_theta`, `rope_scaling` and, where a part of a head is turned, how large a part;
    transformers 4 and 5 both read them."""
    dims = attention.rope.dims
    return {
        "rope_theta": attention.rope.base,
        "rope_scaling": write_scaling(attention, context_length),
        **({} if dims is None else {"partial_rotary_factor": _share(dims, attention.head_dim)}),
    }


def _share(dims: int, head_dim: int) -> float:
    """The share of a head from which `int(head_dim * share)` gives `dims` again."""
    share = dims / head_dim
    return share if int(head_dim * share) == dims else (dims + 0.5) / head_dim


def write_scaling(attention: AttentionConfig, context_length: int) -> dict[str, Any] | None:
    """`rope_scaling`; None: frequencies are as they are."""
    rope = attention.rope
    if attention.position != "rope" or (rope.factors is None and rope.long_factors is None):
        return None
    dims = rope.turned(attention.head_dim)
    factors = rope.factors or (1.0,) * (dims // 2)
    if rope.scale == 1.0 and rope.long_factors is None and len(set(factors)) == 1:
        return {"rope_type": "linear", "factor": factors[0]}
    return _llama3_scaling(rope, dims) or {
        # The one kind that states a factor for each pair.
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": list(factors),
        "long_factor": list(rope.long_factors or factors),
        "attention_factor": rope.scale,
        _ORIGINAL: rope.original_context or context_length,
    }


def _llama3_scaling(rope: RopeConfig, dims: int) -> dict[str, Any] | None:
    """Llama 3's settings, if they give these factors."""
    if rope.factors is None or rope.long_factors is not None or rope.scale != 1.0:
        return None
    if max(rope.factors) < 1 or len(set(rope.factors)) == 1:
        return None
    for context in _LLAMA3_CONTEXTS:
        found = _llama3_factors(rope, dims, max(rope.factors), context)
        if np.allclose(found, rope.factors, rtol=_LLAMA3_ERROR, atol=0):
            return {
                "rope_type": "llama3",
                "factor": max(rope.factors),
                "low_freq_factor": _LLAMA3["low"],
                "high_freq_factor": _LLAMA3["high"],
                _ORIGINAL: context,
            }
    return None


def _llama3_factors(
    rope: RopeConfig, dims: int, factor: float, context: int
) -> tuple[float, ...]:
    return llama3_factors(rope, dims, factor=factor, context=context, **_LLAMA3)


def readable_rope(attention: AttentionConfig) -> RopeConfig:
    """The settings as they will be read again: Llama 3's factors are exactly its formula's."""
    if attention.position != "rope":
        return RopeConfig()
    dims = attention.rope.turned(attention.head_dim)
    scaling = _llama3_scaling(attention.rope, dims)
    if scaling is None:
        return attention.rope
    factors = _llama3_factors(attention.rope, dims, scaling["factor"], scaling[_ORIGINAL])
    return dataclasses.replace(attention.rope, factors=factors)
