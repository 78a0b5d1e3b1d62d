"""What a model and a run look like: frozen dataclasses, checked once when they are made."""

import dataclasses
import math
from collections.abc import Collection
from typing import Any, Literal

from jax_massact.errors import ConfigError

NormKind = Literal["rms", "layer"]
PositionKind = Literal["rope", "learned"]
RopePairs = Literal["interleaved", "halves"]
ActivationKind = Literal["silu", "gelu_tanh", "gelu"]
DType = Literal["float32", "bfloat16"]


def check_in(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        choices = ", ".join(repr(a) for a in allowed)
        raise ConfigError(f"{name} is {value!r}; allowed: {choices}")


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ConfigError unless `value` is a whole number in [low, high]."""
    limit = f"a whole number of at least {low}" + ("" if high is None else f" and at most {high}")
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):
        raise ConfigError(f"{name} is {value!r}; allowed: {limit}")


def check_float(
    name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Raises ConfigError unless `value` is a finite number in [low, high], or (low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    inside = is_number and math.isfinite(value) and (low < value if open_low else low <= value)
    if not inside or value > high:
        above = f"above {low:g}" if open_low else f"of at least {low:g}"
        limit = f"a number {above}" + ("" if high == math.inf else f" and at most {high:g}")
        raise ConfigError(f"{name} is {value!r}; allowed: {limit}")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """Llama-3's frequency scaling: long wavelengths are slowed down, short ones left alone.

    Wavelengths above `original_context / low_freq_factor` are divided by `factor`, those below
    `original_context / high_freq_factor` are kept, those between are interpolated
    (Llama 3 Herd of Models, 2024; `rope_type: llama3` in Hugging Face configurations).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    def __post_init__(self) -> None:
        check_float("rope.scaling.factor", self.factor, 1.0)
        check_float("rope.scaling.low_freq_factor", self.low_freq_factor, 0.0, open_low=True)
        check_float("rope.scaling.high_freq_factor", self.high_freq_factor, 0.0, open_low=True)
        check_int("rope.scaling.original_context", self.original_context, 1)
        if self.high_freq_factor <= self.low_freq_factor:
            raise ConfigError(
                f"rope.scaling.high_freq_factor is {self.high_freq_factor:g}; allowed: above "
                f"low_freq_factor, which is {self.low_freq_factor:g}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021).

    `pairs` says which two coordinates of a head turn together: `interleaved` (2i, 2i+1), as in
    the paper and in LLaMA's GGUF files, or `halves` (i, i+H/2), as in Hugging Face's files.
    """

    base: float = 10_000.0
    pairs: RopePairs = "halves"
    scaling: RopeScaling | None = None

    def __post_init__(self) -> None:
        check_float("rope.base", self.base, 0.0, open_low=True)
        check_in("rope.pairs", self.pairs, ("interleaved", "halves"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder-only transformer: everything that is not a weight.

    Letters used for sizes all over the package: V vocabulary, L layers (`depth`), D residual
    stream (`width`), N query heads, K key/value heads, H head dimension, F hidden units of the MLP,
    P learned positions, B sequences, T tokens.

    Raises:
      ConfigError: a size is out of range, or two settings contradict each other.
    """

    family: str
    vocab_size: int
    depth: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    context_length: int
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    position: PositionKind = "rope"
    rope: RopeConfig = RopeConfig()
    first_position: int = 0
    activation: ActivationKind = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    tied_head: bool = False
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in ("vocab_size", "depth", "width", "num_heads", "num_kv_heads", "head_dim",
                     "mlp_dim", "context_length"):
            check_int(name, getattr(self, name), 1)
        check_int("first_position", self.first_position, 0)
        check_float("norm_eps", self.norm_eps, 0.0, open_low=True)
        check_in("norm", self.norm, ("rms", "layer"))
        check_in("position", self.position, ("rope", "learned"))
        check_in("activation", self.activation, ("silu", "gelu_tanh", "gelu"))
        check_in("dtype", self.dtype, ("float32", "bfloat16"))
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads is {self.num_kv_heads}; allowed: a divisor of num_heads, "
                f"which is {self.num_heads}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ConfigError(
                f"head_dim is {self.head_dim}; allowed with rotary positions: an even number"
            )
        if self.sliding_window is not None:
            check_int("sliding_window", self.sliding_window, 1)
        if self.norm_bias and self.norm == "rms":
            raise ConfigError("norm_bias is True; allowed with norm='rms': False")
