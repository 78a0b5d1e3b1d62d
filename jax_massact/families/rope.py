"""Rotary settings of Hugging Face files, and back: divisors of the frequencies and one scale.

Defaults and precedence are those of transformers 5 (`modeling_rope_utils`). A setting that a kind
of scaling does not have is refused: somebody meant it to change the numbers.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jax_massact.nn.config import AttentionConfig, RopeConfig
from jax_massact.nn.positions import llama3_factors
from jax_massact.weights.settings import Settings

# What every published model with Llama 3's extension has, and the contexts that it may extend.
_LLAMA3 = {"low": 1.0, "high": 4.0}
_LLAMA3_CONTEXTS = tuple(1 << n for n in range(10, 18))
# Within the rounding of files that hold the factors themselves, in float32.
_LLAMA3_ERROR = 1e-6


class _Scaling(NamedTuple):
    """The settings of a way to stretch the context, and what else it depends on.

    Attributes:
      context: the model's context length.
      original: that before it was stretched.
    """

    settings: Settings
    rope: RopeConfig
    head_dim: int
    context: int
    original: int

    @property
    def factor(self) -> float:
        return self.settings.number("factor", self.context / self.original)


def read_rope(settings: Settings, head_dim: int, context_length: int) -> RopeConfig:
    """The rotary settings of a `config.json`.

    As in transformers, `rope_scaling` replaces `rope_parameters` as a whole unless it is empty.

    Args:
      context_length: the model's.

    Raises:
      WeightsError: a kind of scaling or a setting is not supported, or one is missing or wrong.
      ConfigError: a factor is out of its range.
    """
    settings.one_of("rope_interleaved", (False,), False)
    name = "rope_scaling" if settings.get("rope_scaling") else "rope_parameters"
    stated = settings.get(name, {})
    if not isinstance(stated, Mapping):
        raise settings.error(name, "an object or null")
    inner = Settings({f"{name}.{k}": v for k, v in stated.items()}, settings.file, f"{name}.")
    for source in (settings, inner):
        if source.get("partial_rotary_factor", 1.0) != 1.0:
            raise source.error("partial_rotary_factor", "1.0, the whole head")
    rope = RopeConfig(base=inner.number("rope_theta", settings.number("rope_theta", 10_000.0)))
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
    return read(_Scaling(inner, rope, head_dim, context_length, original))


_ORIGINAL = "original_max_position_embeddings"
# Settings that stand in files of every kind; where one means nothing to a kind, transformers does
# not use it either.
_ANY = ("rope_type", "type", "rope_theta", "partial_rotary_factor", _ORIGINAL, "finetuned")


def _default(scaling: _Scaling) -> RopeConfig:
    return scaling.rope


def _linear(scaling: _Scaling) -> RopeConfig:
    factors = (scaling.settings.number("factor"),) * (scaling.head_dim // 2)
    return dataclasses.replace(scaling.rope, factors=factors)


def _dynamic(scaling: _Scaling) -> RopeConfig:
    # Frequencies change beyond the context length, where no sequence goes here.
    scaling.settings.number("factor")
    return scaling.rope


def _llama3(scaling: _Scaling) -> RopeConfig:
    factors = llama3_factors(
        scaling.rope,
        scaling.head_dim,
        factor=scaling.settings.number("factor"),
        low=scaling.settings.number("low_freq_factor"),
        high=scaling.settings.number("high_freq_factor"),
        context=scaling.original,
    )
    return dataclasses.replace(scaling.rope, factors=factors)


def _yarn(scaling: _Scaling) -> RopeConfig:
    """Peng et al. (2023): fast pairs keep their frequency, slow ones are interpolated."""
    settings, base, H = scaling.settings, scaling.rope.base, scaling.head_dim

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


def _longrope(scaling: _Scaling) -> RopeConfig:
    """Ding et al. (2024), where short and long sequences have the same factors."""
    factors = scaling.settings.numbers("short_factor")
    if scaling.settings.numbers("long_factor") != factors:
        raise scaling.settings.error("long_factor", "short_factor's numbers, whatever the length")
    grown = math.log(max(scaling.factor, 1.0))
    scale = math.sqrt(1 + grown / math.log(scaling.original)) if grown else 1.0
    scale = scaling.settings.number("attention_factor", scale)
    return dataclasses.replace(scaling.rope, factors=factors, scale=scale)


# Kind -> its reader and the settings that it has beside those of any kind.
_KINDS = {
    "default": (_default, ()),
    "linear": (_linear, ("factor",)),
    "dynamic": (_dynamic, ("factor",)),
    "llama3": (_llama3, ("factor", "low_freq_factor", "high_freq_factor")),
    "yarn": (_yarn, (
        "factor", "attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
        "truncate",
    )),
    "longrope": (_longrope, ("factor", "short_factor", "long_factor", "attention_factor")),
}  # fmt: skip


def write_rope(attention: AttentionConfig, context_length: int) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling`, which transformers 4 and 5 both read."""
    return {
        "rope_theta": attention.rope.base,
        "rope_scaling": _write_scaling(attention, context_length),
    }


def _write_scaling(attention: AttentionConfig, context_length: int) -> dict[str, Any] | None:
    rope = attention.rope
    if attention.position != "rope" or rope.factors is None:
        return None
    if rope.scale == 1.0 and len(set(rope.factors)) == 1:
        return {"rope_type": "linear", "factor": rope.factors[0]}
    return _llama3_scaling(rope, attention.head_dim) or {
        # The one kind that states a factor for each pair; for sequences of any length the same.
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": list(rope.factors),
        "long_factor": list(rope.factors),
        "attention_factor": rope.scale,
        _ORIGINAL: context_length,
    }


def _llama3_scaling(rope: RopeConfig, head_dim: int) -> dict[str, Any] | None:
    """Llama 3's settings, if they give these factors."""
    if rope.factors is None or rope.scale != 1.0:
        return None
    if max(rope.factors) < 1 or len(set(rope.factors)) == 1:
        return None
    for context in _LLAMA3_CONTEXTS:
        found = _llama3_factors(rope, head_dim, max(rope.factors), context)
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
    rope: RopeConfig, head_dim: int, factor: float, context: int
) -> tuple[float, ...]:
    return llama3_factors(rope, head_dim, factor=factor, context=context, **_LLAMA3)


def readable_rope(attention: AttentionConfig) -> RopeConfig:
    """The settings as they will be read again: Llama 3's factors are exactly its formula's."""
    if attention.position != "rope":
        return RopeConfig()
    scaling = _llama3_scaling(attention.rope, attention.head_dim)
    if scaling is None:
        return attention.rope
    factors = _llama3_factors(
        attention.rope, attention.head_dim, scaling["factor"], scaling[_ORIGINAL]
    )
    return dataclasses.replace(attention.rope, factors=factors)
