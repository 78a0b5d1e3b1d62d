"""How queries and keys know their positions.

A row of POSITIONS gives the angles by which a block turns the pairs of a head, or None where it
turns nothing. Every way of stretching a rotary context is a divisor for each frequency and one
factor on cosine and sine (`RopeConfig.factors`, `scale`).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_massact.nn.block_config import AttentionConfig, PositionKind, RopeConfig
from jax_massact.settings import check_float, check_int


class Rotation(NamedTuple):
    """Cosine and sine of each token's angles, in float32, times `RopeConfig.scale`."""

    cos: Float[Array, "T P"]
    sin: Float[Array, "T P"]

    def turn(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        """Turns each pair (i, i + P) of a head by its token's angle (Su et al. 2021, eq. 34).

        What lies behind the P pairs stays as it is.
        """
        return _turned(x, self.cos, self.sin)

    def turn_back(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        """The inverse of `turn`, up to rounding."""
        size = jnp.square(self.cos[:1, :1]) + jnp.square(self.sin[:1, :1])
        return _turned(x, self.cos / size, -self.sin / size)

    def first(self, tokens: int) -> "Rotation":
        """The rotation of the first tokens only."""
        return Rotation(self.cos[:tokens], self.sin[:tokens])


def _turned(x, cos, sin):
    cos, sin = (y[:, None, :].astype(x.dtype) for y in (cos, sin))
    dims = 2 * cos.shape[-1]
    rest = [] if dims == x.shape[-1] else [x[..., dims:]]
    a, b = jnp.split(x[..., :dims] if rest else x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin, *rest], axis=-1)


def _rope(config: AttentionConfig, positions: Int[Array, " T"], length: int) -> Rotation:
    rope = config.rope.at(length)
    angles = rotary_angles(rope, rope.turned(config.head_dim), positions)
    return Rotation(rope.scale * jnp.cos(angles), rope.scale * jnp.sin(angles))


def _rope_2d(config: AttentionConfig, places: Float[Array, "T 2"], length: int) -> Rotation:
    """DINOv3's: half of the pairs turn by the row, half by the column, both in [-1, 1]."""
    del length
    quarter = config.head_dim // 4
    frequency = 2 * np.pi / config.rope.base ** (np.arange(quarter) / quarter)
    angles = (places[:, :, None] * frequency.astype(np.float32)).reshape(-1, 2 * quarter)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def _nothing(config: AttentionConfig, positions: Array, length: int) -> None:
    del config, positions, length


# (configuration, positions, the sequence's length counted from position 0). Positions are those of
# the tokens [T], or the rows and columns of patches [T, 2] with 0 for CLS and registers. ALiBi
# turns nothing: it is a part of the logits (`Mask.slopes`).
POSITIONS: dict[PositionKind, Callable[[AttentionConfig, Array, int], Rotation | None]] = {
    "rope": _rope, "rope_2d": _rope_2d, "alibi": _nothing, "alibi_rounded": _nothing,
    "none": _nothing,
}


def alibi_slopes(heads: int, largest: float = 8.0) -> tuple[float, ...]:
    """ALiBi's slopes for any number of heads (Press et al. 2022, and BLOOM's and MPT's code).

    Args:
      largest: head i of a power of two p has the slope 2^(-largest i / p); further heads have those
        of 2p, every second one.
    """
    p = 2 ** int(np.log2(heads))
    first = [2 ** (-largest * i / p) for i in range(1, p + 1)]
    more = [2 ** (-largest * i / (2 * p)) for i in range(1, 2 * (heads - p), 2)]
    return tuple(first + more)


def rotary_angles(
    rope: RopeConfig, dims: int, positions: Int[Array, " T"]
) -> Float[Array, "T P"]:
    """Angles in radians: position x base^(-2i/R), each frequency divided by its factor.

    Args:
      dims: how many coordinates are turned (R).
    """
    exponent = jnp.arange(0, dims, 2, dtype=jnp.float32) / dims
    frequency = 1.0 / (rope.base**exponent)
    if rope.factors is not None:
        frequency = frequency / jnp.asarray(rope.factors, jnp.float32)
    return positions.astype(jnp.float32)[:, None] * frequency


def llama3_factors(
    rope: RopeConfig, head_dim: int, *, factor: float, low: float, high: float, context: int
) -> tuple[float, ...]:
    """Llama 3's context extension as one divisor for each frequency (`rope_type: llama3`).

    Wavelengths above context / low are slowed down by `factor`, those below context / high are
    kept, those between are interpolated.

    Args:
      context: the context length, in tokens, that the model was trained with before.

    Raises:
      ConfigError: `high` is not above `low`, or `factor`, `low` or `context` is out of range.
    """
    check_float("rope factor", factor, 1.0)
    check_float("rope low frequency factor", low, 0.0, open_low=True)
    check_float("rope high frequency factor", high, low, open_low=True)
    check_int("rope original context", context, 1)
    wavelengths = 2 * np.pi * rope.base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    # Frequencies are interpolated, not wavelengths: 1/divisor = (1 - smooth)/factor + smooth.
    return tuple((1.0 / ((1.0 - smooth) / factor + smooth)).tolist())
