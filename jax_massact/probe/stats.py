"""Statistics of activations that stay on the device: exact, per sequence, one layer at a time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Top(NamedTuple):
    """The k largest magnitudes of each sequence, largest first; equal ones by place.

    Attributes:
      value: signed.
      position: token, from 0.
      dim: dimension, from 0.
    """

    value: Float[Array, "B k"]
    position: Int[Array, "B k"]
    dim: Int[Array, "B k"]


def top_places(
    key: Float[Array, "B T D"], k: int
) -> tuple[Int[Array, "B k"], Int[Array, "B k"]]:
    """Positions and dimensions of the k largest entries of `key` in each sequence, largest first.

    Exact, at the cost of one pass: the k largest entries lie in the k tokens with the largest
    maxima, and only those tokens are sorted. Equal entries come in the order of (token, dimension).
    """
    B, T, D = key.shape
    k_tokens = min(k, T)
    k = min(k, T * D)

    def one(key):
        _, tokens = jax.lax.top_k(key.max(-1), k_tokens)
        tokens = jnp.sort(tokens)
        _, flat = jax.lax.top_k(key[tokens].reshape(-1), k)
        return tokens[flat // D], flat % D

    return jax.vmap(one)(key)


def gather_places(
    x: Float[Array, "B T D"], position: Int[Array, "B k"], dim: Int[Array, "B k"]
) -> Float[Array, "B k"]:
    """x[b, position[b, i], dim[b, i]]."""
    return jax.vmap(lambda x, p, d: x[p, d])(x, position, dim)


def top_magnitudes(x: Float[Array, "B T D"], k: int) -> Top:
    """The k largest |x| of each sequence, over tokens x dimensions."""
    position, dim = top_places(jnp.abs(x), k)
    return Top(gather_places(x, position, dim), position, dim)


def quantiles(magnitude: Float[Array, "B T D"], q: tuple[float, ...]) -> Float[Array, "B Q"]:
    """Exact quantiles over tokens x dimensions, as `numpy.quantile` with method "linear".

    `q` = 0.5 is the median. Non-negative floats are ordered as their bits are, so each order
    statistic is found by fixing its bits from the highest down, counting how many entries lie below
    the candidate: one pass a bit, no sort. The entries must not be negative; NaN counts as largest.
    """
    _, T, D = magnitude.shape
    width = magnitude.dtype.itemsize * 8
    integer = jnp.dtype(f"int{width}")
    # abs has cleared the sign bit, so as integers the bits are not negative either.
    bits = jax.lax.bitcast_convert_type(magnitude, integer)
    place = [x * (T * D - 1) for x in q]
    ranks = [int(p) for p in place]

    def fix_bit(i, found):
        bit = jnp.left_shift(jnp.asarray(1, integer), (width - 2 - i).astype(integer))
        candidates = found | bit
        below = _counts([bits < c[:, None, None] for c in candidates])
        return jnp.where(below <= jnp.asarray(ranks)[:, None], candidates, found)

    # [Q, B]: the lower neighbour of each quantile, then its successor in the sorted order.
    zeros = jnp.stack([jnp.zeros_like(bits[:, 0, 0])] * len(q))  # laid out over a mesh as B is
    lower = jax.lax.fori_loop(0, width - 1, fix_bit, zeros)
    at_most = _counts([bits <= low[:, None, None] for low in lower])
    largest = jnp.iinfo(integer).max
    results = []
    for p, rank, low, n in zip(place, ranks, lower, at_most, strict=True):
        above = jnp.where(bits > low[:, None, None], bits, largest).min((1, 2))
        high = jnp.where((n > rank + 1) | (rank == T * D - 1), low, above)
        low, high = (
            jax.lax.bitcast_convert_type(b, magnitude.dtype).astype(jnp.float32)
            for b in (low, high)
        )
        results.append(low + jnp.float32(p - rank) * (high - low) if p > rank else low)
    return jnp.stack(results, axis=-1)


def _counts(masks: list[Bool[Array, "B T D"]]) -> Int[Array, "masks B"]:
    """How many entries of each mask are true: one reduction, so that one pass serves all."""
    add = lambda a, b: [x + y for x, y in zip(a, b, strict=True)]
    zeros = [jnp.int32(0)] * len(masks)
    return jnp.stack(jax.lax.reduce([m.astype(jnp.int32) for m in masks], zeros, add, (1, 2)))


def kurtosis(x: Float[Array, "B T D"]) -> Float[Array, " B"]:
    """E[(x - mean)^4] / var^2 over tokens x dimensions; 3 for a Gaussian.

    Of a hidden state, as in Bondarenko et al. 2023, "Quantizable Transformers".
    """
    x = x.astype(jnp.float32)
    centred = x - x.mean((1, 2), keepdims=True)
    square = jnp.square(centred)
    return jnp.square(square).mean((1, 2)) / jnp.square(square.mean((1, 2)))


class CountsAbove(NamedTuple):
    """How many activations exceed each threshold, and how many dimensions and tokens hold one."""

    entries: Int[Array, "B thresholds"]
    dims: Int[Array, "B thresholds"]
    tokens: Int[Array, "B thresholds"]


def counts_above(
    magnitude: Float[Array, "B T D"], thresholds: tuple[float, ...]
) -> CountsAbove:
    """Counts of magnitude > threshold in each sequence, for each threshold."""
    per_dim, per_token = magnitude.max(1), magnitude.max(2)
    count = lambda mask: mask.reshape(mask.shape[0], -1).sum(-1, dtype=jnp.int32)
    return CountsAbove(
        entries=_counts([magnitude > t for t in thresholds]).T,
        dims=jnp.stack([count(per_dim > t) for t in thresholds], -1),
        tokens=jnp.stack([count(per_token > t) for t in thresholds], -1),
    )
