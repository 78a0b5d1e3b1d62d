"""Statistics of activations that stay on the device: exact, per sequence, one layer at a time.

What takes time on an accelerator is how often an array is read, and how many small operations
follow one another. So several counts are made in one pass (`jax.lax.reduce` of several operands),
and rows are reduced first: XLA is fastest along the last axis.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_massact.measure.padding import without_padding
from jax_massact.nn import sharded
from jax_massact.nn.fused.vendor import platform

# Entries of a row that `top_places` looks at together.
BLOCK = 64
# Bits of the float that `quantiles` fixes in its first pass, and in every other. By the cost
# analysis of XLA for TPU, two at once take less than twice the time there.
BITS, TPU_BITS = (4, 1), (3, 2)


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
    maxima, and in these tokens in the k blocks of dimensions with the largest maxima; only those
    are sorted. Equal entries come in the order of (token, dimension).
    """
    B, T, D = key.shape
    k = min(k, T * D)
    size = max(n for n in range(1, BLOCK + 1) if D % n == 0)

    def one(key):
        tokens = jnp.sort(_top_k(key.max(-1), min(k, T)))
        rows = key[tokens]
        maxima = rows.reshape(len(tokens), D // size, size).max(-1).reshape(-1)
        best = jnp.sort(_top_k(maxima, min(k, maxima.size)))
        places = (best[:, None] * size + jnp.arange(size)).reshape(-1)
        place = places[_top_k(rows.reshape(-1)[places], k)]
        return tokens[place // D], place % D

    return jax.vmap(one)(key)


def _top_k(x: Float[Array, " n"], k: int) -> Int[Array, " k"]:
    # XLA for CPUs sorts all there is, and slowly, where it is not float32.
    return jax.lax.top_k(x.astype(jnp.float32) if platform() == "cpu" else x, k)[1]


def gather_places(
    x: Float[Array, "B T D"], position: Int[Array, "B k"], dim: Int[Array, "B k"]
) -> Float[Array, "B k"]:
    """x[b, position[b, i], dim[b, i]]."""
    return jax.vmap(lambda x, p, d: x[p, d])(x, position, dim)


def top_magnitudes(x: Float[Array, "B T D"], k: int) -> Top:
    """The k largest |x| of each sequence, over tokens x dimensions."""
    position, dim = top_places(jnp.abs(x), k)
    return Top(gather_places(x, position, dim).astype(jnp.float32), position, dim)


def quantiles(
    magnitude: Float[Array, "B T D"], q: tuple[float, ...], count: Int[Array, " B"] | None = None
) -> Float[Array, "B Q"]:
    """Exact quantiles over tokens x dimensions, as `numpy.quantile` with method "linear".

    `q` = 0.5 is the median. Non-negative floats are ordered as their bits are, so each order
    statistic is found by fixing its bits from the highest down, counting how many entries lie below
    the candidates: no sort. The first few bits take one pass for all quantiles together, and so
    does every other, or every two of them (`BITS`). The entries must not be negative; NaN counts as
    largest.

    Args:
      count: quantiles are over the first `count` tokens of each sequence; all others hold 0.
    """
    B, T, D = magnitude.shape
    width = magnitude.dtype.itemsize * 8
    integer = jnp.dtype(f"int{width}")
    # abs has cleared the sign bit, so as integers the bits are not negative either.
    bits = jax.lax.bitcast_convert_type(magnitude, integer)
    some = jnp.zeros_like(bits[:, 0, 0])  # laid out over a mesh as B is
    ranks, fractions = _ranks(q, T, D, some if count is None else count, count is not None)
    below = _counter(bits)

    first, step = TPU_BITS if platform() == "tpu" else BITS
    rest = width - 1 - first

    def fix_bits(number, shift, found):
        """`found` [Q, B] with its next bits, of which `shift` are behind them."""
        digits = [jnp.left_shift(jnp.asarray(d, integer), shift) for d in range(1, 1 << number)]
        counts = below([low | digit for digit in digits for low in found])
        counts = counts.reshape(len(digits), len(found), B)
        fixed = (counts <= ranks).sum(0, dtype=jnp.int32)
        return found | jnp.left_shift(fixed, shift.astype(jnp.int32)).astype(integer)

    # [Q, B]: the lower neighbour of each quantile, then its successor in the sorted order. The
    # first candidates are the same for all. Loops take time on accelerators, and unrolled ones time
    # to compile.
    found = fix_bits(first, jnp.asarray(rest, integer), some[None])
    lower = jax.lax.fori_loop(
        0, rest // step,
        lambda i, found: fix_bits(step, (rest - step * (i + 1)).astype(integer), found),
        found, unroll=1 if platform() == "cpu" else rest // step,
    )
    largest = jnp.iinfo(integer).max
    upto = [bits <= low[:, None, None] for low in lower]
    above = [jnp.where(m, largest, bits).astype(jnp.int32) for m in upto]
    above = _rows(jnp.minimum, jnp.int32(largest), above).min(-1).astype(integer)
    upper = jnp.where((_counts(upto) > ranks + 1) | (ranks == T * D - 1), lower, above)
    low, high = (
        jax.lax.bitcast_convert_type(x, magnitude.dtype).astype(jnp.float32) for x in (lower, upper)
    )
    # Where it lies on an entry, its neighbour may be infinite.
    return jnp.where(fractions > 0, low + fractions * (high - low), low).T


def _ranks(
    q: tuple[float, ...], T: int, D: int, index: Int[Array, " B"], counted: bool
) -> tuple[Int[Array, "Q B"], Float[Array, "Q B"]]:
    """Between which entries in ascending order each quantile lies, and how far from the lower.

    Args:
      index: how many tokens of each sequence are counted; where all are, zeros.
    """
    tokens = np.arange(T + 1) if counted else np.array([T])
    place = np.multiply.outer(np.maximum(tokens * D - 1, 0), q)
    # The zeros of the tokens that do not count come first.
    rank = place.astype(np.int32) + ((T - tokens) * D).astype(np.int32)[:, None]
    table = (jnp.asarray(rank), jnp.asarray(np.float32(place % 1)))
    ranks, fractions = (sharded.take_rows(x, index, out="bt").T for x in table)
    return ranks, fractions


def _counter(
    bits: Int[Array, "B T D"],
) -> Callable[[Sequence[Int[Array, " B"]]], Int[Array, "C B"]]:
    """A function that counts how many entries of each sequence are below each candidate."""
    _, T, D = bits.shape
    if bits.dtype.itemsize == 4 or D % 2:
        return lambda candidates: _counts([bits < c[:, None, None] for c in candidates])
    # 16 bit, the highest 0: two entries in one word. A set highest bit that is left after the
    # candidate was taken off says that the entry is not below it, and goes no further.
    if platform() == "tpu":
        # Neighbours lie in other lanes there: XLA would move them by a product of matrices.
        low, high = (x.astype(jnp.uint32) for x in jnp.split(bits, 2, axis=-1))
        words = low | (high << 16)
    else:
        pairs = bits.reshape(*bits.shape[:2], D // 2, 2)
        words = jax.lax.bitcast_convert_type(pairs, jnp.uint32)
    words = words | jnp.uint32(0x8000_8000)

    def below(candidates):
        twice = (c.astype(jnp.uint32) * 0x1_0001 for c in candidates)
        # Of both entries, in one sum: no row is as long as 2 x 65,536.
        above = [((words - t[:, None, None]) >> 15) & jnp.uint32(0x0001_0001) for t in twice]
        rows = _rows(jnp.add, jnp.uint32(0), above)
        return T * D - ((rows & 0xFFFF) + (rows >> 16)).sum(-1, dtype=jnp.int32)

    return below


def _rows(combine, initial: jax.Array, arrays: list[jax.Array], axis: int = 2) -> Array:
    """Every array [B, T, D] reduced over D, or T, in one pass for all: [arrays, B, T or D]."""
    join = lambda a, b: [combine(x, y) for x, y in zip(a, b, strict=True)]
    return jnp.stack(jax.lax.reduce(arrays, [initial] * len(arrays), join, (axis,)))


def _counts(masks: list[Bool[Array, "B T D"]]) -> Int[Array, "masks B"]:
    """How many entries of each mask are true."""
    return _rows(jnp.add, jnp.int32(0), [m.astype(jnp.int32) for m in masks]).sum(-1)


def kurtosis(
    x: Float[Array, "B T D"], count: Int[Array, " B"] | None = None
) -> Float[Array, " B"]:
    """E[(x - mean)^4] / var^2 over tokens x dimensions; 3 for a Gaussian.

    Of a hidden state, as in Bondarenko et al. 2023, "Quantizable Transformers". Powers neither
    overflow nor vanish, whatever the size of the entries: the largest is made 1 first. NaN where
    all entries are equal, or some are not finite.

    Args:
      count: it is over the first `count` tokens of each sequence; all others hold 0.
    """
    # As `counts_above` has it: XLA computes it once for both.
    largest = jnp.abs(x).max(2).max(1).astype(jnp.float32)
    x = x.astype(jnp.float32) / jnp.where(largest == 0, 1, largest)[:, None, None]
    if count is None:
        mean = lambda x: x.mean(2).mean(1)
        square = jnp.square(x - mean(x)[:, None, None])
    else:
        mean = lambda x: x.mean(2).sum(1) / count
        away = x - mean(x)[:, None, None]
        square = jnp.square(without_padding(away, count))
    return mean(jnp.square(square)) / jnp.square(mean(square))


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
    count = lambda mask: mask.sum(-1, dtype=jnp.int32)
    return CountsAbove(
        entries=_counts([magnitude > t for t in thresholds]).T,
        dims=jnp.stack([count(per_dim > t) for t in thresholds], -1),
        tokens=jnp.stack([count(per_token > t) for t in thresholds], -1),
    )


def counts_per_dim(masks: Sequence[Bool[Array, "B T D"]]) -> list[Int[Array, "B D"]]:
    """At how many tokens each mask is true, for every dimension; at most four masks.

    One pass for all: they are counted in the four bytes of one word, over 128 tokens at a time. XLA
    for TPU would write these words to memory first, and sums over tokens as fast as along rows.
    """
    if platform() == "tpu":
        return list(_rows(jnp.add, jnp.int32(0), [m.astype(jnp.int32) for m in masks], axis=1))
    word = sum(m.astype(jnp.uint32) << (8 * i) for i, m in enumerate(masks))
    assert isinstance(word, jax.Array) and len(masks) <= 4
    B, T, D = word.shape
    tokens = min(T, 128)
    word = jnp.pad(word, ((0, 0), (0, -T % tokens), (0, 0))).reshape(B, -1, tokens, D).sum(2)
    return [((word >> (8 * i)) & 0xFF).sum(1, dtype=jnp.int32) for i in range(len(masks))]
