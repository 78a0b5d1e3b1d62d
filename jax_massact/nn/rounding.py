"""Simulated quantization, as data: activations that are rounded in the forward pass.

A number is divided by a scale, rounded to what the format holds, and multiplied by the scale again,
so that every other operation stays as it is. To divide is to multiply by the reciprocal: what XLA
makes of a division depends on shapes. Activations are rounded at sites of a block
(`nn.acts.SITES`): inputs of linear layers, residual sums, softmax, results. All of a `Rounding` is
arrays, so that one compilation serves every choice of sites, bits and ranges.
"""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_massact.nn.acts import SITES
from jax_massact.nn.edits import known

FLOAT, INTEGER, E4M3 = range(3)  # kinds of formats
# Of float8_e4m3fn, which has no infinity: a cast of 465 gives NaN.
E4M3_LARGEST = 448.0


def levels_of(bits: int) -> float:
    """The largest integer of a symmetric format: 127 for 8 bits."""
    return 2.0 ** (bits - 1) - 1


def to_format(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    kind: int | Int[Array, ""],
    largest: float | Float[Array, ""],
) -> Float[Array, "..."]:
    """x * (1 / scale) rounded to the nearest number of a format; of two, to the even one.

    What is beyond the largest is cut. NaN stays NaN. E4M3 gives the numbers of float8_e4m3fn: four
    significant bits, and steps of 2^-9 below 2^-6.

    Args:
      kind: INTEGER or E4M3.
      largest: number of the format.

    Returns:
      float32; to be multiplied by the scale again.
    """
    y = jnp.clip(x.astype(jnp.float32) * (1 / scale), -largest, largest)
    exponent = ((jax.lax.bitcast_convert_type(y, jnp.int32) >> 23) & 0xFF) - 127
    step = jnp.where(kind == E4M3, jnp.maximum(exponent, -6) - 3, 0)
    power = lambda of: jax.lax.bitcast_convert_type((of + 127) << 23, jnp.float32)
    return jnp.round(y * power(-step)) * power(step)


def scale_of(
    found: Float[Array, "..."], largest: float | Float[Array, "..."]
) -> Float[Array, "..."]:
    """The scale by which the largest magnitude that is found becomes the largest of a format; 1
    where that is 0, or too small to divide by."""
    scale = found * (1 / jnp.asarray(largest, jnp.float32))
    return jnp.where(scale < jnp.finfo(jnp.float32).tiny, 1, scale)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kind", "largest", "per_token", "limit", "kept", "rotations"],
    meta_fields=["sites"],
)
@dataclasses.dataclass(frozen=True)
class Rounding:
    """What is rounded where, and how.

    Attributes:
      kind: FLOAT (not rounded), INTEGER or E4M3.
      largest: number of the format: `levels_of` the bits, or E4M3_LARGEST.
      per_token: whether each token has a range of its own; else all of a sequence share one.
      limit: the range where it is known beforehand (static); 0: the largest magnitude that is met.
        The range of the softmax is 1, or the largest weight of each query.
      kept: tokens that stay in float, and whose values no range includes; [B, T], or [1, T] for
        every sequence alike, rows in front included.
      rotations: orthogonal matrices by their size, as a text: activations of that size are
        rounded after a rotation and turned back (QuaRot, Ashkboos et al. 2024). May be empty.
      sites: of `nn.acts.SITES`, those that the arrays are about (S); no other is ever rounded.
    """

    kind: Int[Array, "L S"]
    largest: Float[Array, "L S"]
    per_token: Bool[Array, "L S"]
    limit: Float[Array, "L S"]
    kept: Bool[Array, "B T"]
    rotations: Mapping[str, Float[Array, "D D"]] = dataclasses.field(default_factory=dict)
    sites: tuple[str, ...] = SITES

    def check(self, shape: tuple[int, int], depth: int) -> None:
        """Raises ValueError where an array does not fit activations [B, T] of `depth` blocks."""
        if unknown := set(self.sites) - set(SITES):
            raise ValueError(
                f"rounding.sites has {unknown.pop()!r}; expected: some of {', '.join(SITES)}"
            )
        for name in ("kind", "largest", "per_token", "limit"):
            found = getattr(self, name).shape
            if found != (depth, len(self.sites)):
                raise ValueError(
                    f"rounding.{name} has shape {found}; expected: {(depth, len(self.sites))}, one "
                    "entry for each block and each of rounding.sites"
                )
        if self.kept.shape not in (shape, (1, shape[1])):
            raise ValueError(
                f"rounding.kept is a mask of {self.kept.shape}; expected: {shape} (or 1 sequence "
                "for all), rows in front included"
            )
        if known(self.kind) and not bool(((self.kind >= FLOAT) & (self.kind <= E4M3)).all()):
            raise ValueError("rounding.kind is out of range; expected: FLOAT, INTEGER or E4M3")

    def apply(
        self, site: str, x: Float[Array, "B T ..."], layer: int | Int[Array, ""]
    ) -> Float[Array, "B T ..."]:
        """The activations at a site of block `layer`, rounded if they are to be."""
        if site not in self.sites:
            return x
        kind, largest, per_token, limit = self._at(site, layer)
        rotation = self.rotations.get(str(x[0, 0].size))

        def rounded(x):
            flat = x.reshape(*x.shape[:2], -1).astype(jnp.float32)
            flat = flat if rotation is None else turned(flat, rotation)
            of_token = jnp.where(self.kept, 0, jnp.abs(flat).max(-1))
            shared = jnp.where(limit > 0, limit, of_token.max(1, keepdims=True))
            scale = scale_of(jnp.where(per_token, of_token, shared), largest)[..., None]
            y = to_format(flat, scale, kind, largest) * scale
            y = y if rotation is None else turned(y, rotation.T)
            kept = self.kept.reshape(*self.kept.shape, *(1,) * (x.ndim - 2))
            return jnp.where(kept, x, y.reshape(x.shape).astype(x.dtype))

        return jax.lax.cond(kind == FLOAT, lambda x: x, rounded, x)

    def softmax(
        self,
        weights: Float[Array, "B K G Q S"],
        queries: Int[Array, " Q"],
        layer: int | Int[Array, ""],
    ) -> Float[Array, "B K G Q S"]:
        """The softmax of some queries over all that they see, rounded if it is to be."""
        if "weights" not in self.sites:
            return weights
        kind, largest, per_token, _ = self._at("weights", layer)

        def rounded(w):
            # What the softmax gives lies in [0, 1]: its range is known.
            scale = scale_of(jnp.where(per_token, w.max(-1, keepdims=True), 1), largest)
            kept = self.kept[:, queries][:, None, None, :, None]
            return jnp.where(kept, w, to_format(w, scale, kind, largest) * scale)

        return jax.lax.cond(kind == FLOAT, lambda w: w, rounded, weights)

    def _at(self, site: str, layer: int | Int[Array, ""]) -> tuple[jax.Array, ...]:
        place = layer, self.sites.index(site)
        fields = (self.kind, self.largest, self.per_token, self.limit)
        return tuple(jnp.asarray(field)[place] for field in fields)


def turned(x: Float[Array, "B T F"], rotation: Float[Array, "F F"]) -> Float[Array, "B T F"]:
    """The vectors of all tokens, rotated."""
    return jnp.matmul(x, rotation, precision=jax.lax.Precision.HIGHEST)
