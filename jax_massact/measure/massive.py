"""Which dimensions carry massive activations: hits merged over layers and sequences."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_massact.measure.definition import Definition, Threshold
from jax_massact.measure.magnitudes import Magnitudes

# `Massive.writer_sublayer` and `remover_sublayer` index this; -1 is "none".
SUBLAYERS = ("attn", "mlp", "embedding")

# A sublayer is named as a remover if it takes away at least this share of the value at its peak;
# below, a value that falls under a threshold has merely been overtaken by the median.
REMOVED_SHARE = 0.25


class Hits(NamedTuple):
    """Which of `Places` are over the thresholds, before and after the block.

    Attributes:
      strict, relaxed: of resid_post.
      relaxed_pre: of resid_pre, against the median of the stream it came from.
    """

    strict: Bool[Array, "L B P"]
    relaxed: Bool[Array, "L B P"]
    relaxed_pre: Bool[Array, "L B P"]


class Moments(NamedTuple):
    """Mean and spread of a number that some sequences have; merged without loss of digits.

    Attributes:
      count: how many sequences have it.
      mean: over those; 0 where there are none.
      square: sum of squared deviations from the mean.
    """

    count: Float[Array, "*N"]
    mean: Float[Array, "*N"]
    square: Float[Array, "*N"]

    @property
    def std(self) -> Float[Array, "*N"]:
        """Standard deviation (divided by n, not n - 1)."""
        return (self.square / (self.count + (self.count == 0))) ** 0.5

    def merge(self, other: "Moments") -> "Moments":
        """Both samples as one (Chan et al. 1979, eq. 2.1)."""
        count = self.count + other.count
        share = other.count / (count + (count == 0))
        delta = other.mean - self.mean
        return Moments(
            count,
            self.mean + share * delta,
            self.square + other.square + self.count * share * delta**2,
        )


class Tally(NamedTuple):
    """What `find_massive` decides from; of any number of sequences, so that batches can be merged.

    Attributes:
      sequences: how many were seen.
      strict: sequences with a strict hit at that layer and dimension.
      anywhere: sequences with a relaxed hit in that dimension at any layer.
      relaxed: sequences with a relaxed hit at that layer and dimension.
      value: the largest resid_post of the dimension, over all sequences that have it among their
        `Places`, whether or not it is over a threshold.
      ratio: |resid_post| / median, over the same.
      pre, attn, mlp: what came in and what the sublayers added, over sequences with a relaxed hit
        before or after the block.
      outlier: share of tokens, over sequences in which the dimension is an outlier feature.
      outlier_magnitude: mean magnitude of those tokens.
    """

    sequences: Float[Array, ""]
    strict: Float[Array, "L D"]
    anywhere: Float[Array, " D"]
    relaxed: Float[Array, "L D"]
    value: Moments
    ratio: Moments
    pre: Moments
    attn: Moments
    mlp: Moments
    outlier: Moments
    outlier_magnitude: Moments

    def merge(self, other: "Tally") -> "Tally":
        """The tally of both sets of sequences."""
        moments = ("value", "ratio", "pre", "attn", "mlp", "outlier", "outlier_magnitude")
        return Tally(
            sequences=self.sequences + other.sequences,
            strict=self.strict + other.strict,
            anywhere=self.anywhere + other.anywhere,
            relaxed=self.relaxed + other.relaxed,
            **{name: getattr(self, name).merge(getattr(other, name)) for name in moments},
        )


class Massive(NamedTuple):
    """Every dimension's verdict; read the rows where `relaxed` (which `strict` implies) is true.

    Attributes:
      strict: over the strict threshold in enough sequences at enough layers
        (`Definition.min_share`, `min_layers`).
      relaxed: over the relaxed threshold in any sequence at any layer.
      first_layer, last_layer: of those layers, or of the relaxed hits where it is not strict.
      peak_layer: where, among those layers, the mean over all sequences is largest in magnitude.
      value_mean, value_std, ratio: there, over the sequences of `Tally.value`.
      value_count: how many those are: all, unless the dimension is small in some of them.
      share_of_sequences: with a hit at any layer.
      trajectory: mean signed value at every layer, over the same; NaN where there is no hit.
      writer_layer, writer_sublayer, writer_value: the largest contribution of the value's sign, at
        or before the peak; sublayers index SUBLAYERS, layer -1 is the embedding.
      remover_layer, remover_sublayer, remover_value: the largest contribution of the other sign
        after the peak, if it is at least REMOVED_SHARE of the value; else -1. Also -1 where the
        dimension is still over the threshold after the last block.
    """

    strict: Bool[Array, " D"]
    relaxed: Bool[Array, " D"]
    first_layer: Int[Array, " D"]
    last_layer: Int[Array, " D"]
    peak_layer: Int[Array, " D"]
    value_mean: Float[Array, " D"]
    value_std: Float[Array, " D"]
    value_count: Float[Array, " D"]
    ratio: Float[Array, " D"]
    share_of_sequences: Float[Array, " D"]
    trajectory: Float[Array, "L D"]
    writer_layer: Int[Array, " D"]
    writer_sublayer: Int[Array, " D"]
    writer_value: Float[Array, " D"]
    remover_layer: Int[Array, " D"]
    remover_sublayer: Int[Array, " D"]
    remover_value: Float[Array, " D"]


def find_hits(stats: Magnitudes, definition: Definition | None = None) -> Hits:
    """Applies the thresholds to `stats.places`.

    Nothing is massive in a dimension that is over the relaxed threshold at most tokens.
    """
    definition = definition or Definition()
    median = stats.median
    # The stream that enters a block is the one that left the block before; the embedding has no
    # median of its own and borrows that of the first block's output.
    before = jnp.concatenate([median[:1], median[:-1]])

    def over(value, median, t: Threshold):
        magnitude = jnp.abs(value)
        return (magnitude > t.magnitude) & (magnitude >= t.ratio * median[..., None])

    common = stats.outliers.relaxed_share > definition.outlier_share
    common_before = jnp.concatenate([jnp.zeros_like(common[:1]), common[:-1]])
    rare = lambda common: ~jnp.take_along_axis(common, stats.places.dim, axis=-1)
    return Hits(
        strict=over(stats.places.post, median, definition.strict) & rare(common),
        relaxed=over(stats.places.post, median, definition.relaxed) & rare(common),
        relaxed_pre=over(stats.places.pre, before, definition.relaxed) & rare(common_before),
    )


def is_outlier(
    stats: Magnitudes, definition: Definition | None = None
) -> Bool[Array, "L B D"]:
    """Which dimensions are outlier features of which sequence and layer."""
    return stats.outliers.share > (definition or Definition()).outlier_share


def tally(
    stats: Magnitudes,
    definition: Definition | None = None,
    *,
    keep: Bool[Array, " B"] | None = None,
) -> Tally:
    """Counts and moments of the hits of one batch, over the sequences to `keep` (all of them)."""
    keep = jnp.ones(stats.median.shape[1], bool) if keep is None else keep
    hits = Hits(*(h & keep[:, None] for h in find_hits(stats, definition)))
    places = stats.places
    D = stats.outliers.share.shape[-1]
    held = jnp.broadcast_to(keep[:, None], places.dim.shape)
    seen = _largest(places.dim, held, jnp.abs(places.post))
    # Places come in order of max(|pre|, |post|).
    first = jnp.broadcast_to(-jnp.arange(places.dim.shape[-1]), places.dim.shape)
    moved = _largest(places.dim, hits.relaxed | hits.relaxed_pre, first)
    ratio = jnp.abs(places.post) / jnp.maximum(stats.median, jnp.finfo(jnp.float32).tiny)[..., None]
    outlier = is_outlier(stats, definition) & keep[:, None]
    of_dims = lambda value, mask: _per_dim(places.dim, value, mask, D)
    relaxed = of_dims(places.post, hits.relaxed)[1]
    return Tally(
        sequences=keep.sum().astype(jnp.float32),
        strict=of_dims(places.post, hits.strict)[1].sum(1).astype(jnp.float32),
        anywhere=relaxed.any(0).sum(0).astype(jnp.float32),
        relaxed=relaxed.sum(1).astype(jnp.float32),
        value=_moments(*of_dims(places.post, seen)),
        ratio=_moments(*of_dims(ratio, seen)),
        pre=_moments(*of_dims(places.pre, moved)),
        attn=_moments(*of_dims(places.attn, moved)),
        mlp=_moments(*of_dims(places.mlp, moved)),
        outlier=_moments(stats.outliers.share, outlier),
        outlier_magnitude=_moments(stats.outliers.magnitude, outlier),
    )


def _largest(
    dim: Int[Array, "L B P"], mask: Bool[Array, "L B P"], size: Float[Array, "L B P"]
) -> Bool[Array, "L B P"]:
    """Of the masked places of each dimension the one of the largest size, of equals the first."""
    P = dim.shape[-1]
    one, other = (lambda x: x[..., :, None]), (lambda x: x[..., None, :])
    earlier = jnp.tri(P, k=-1, dtype=bool)
    before = (other(size) > one(size)) | ((other(size) == one(size)) & earlier)
    return mask & ~((one(dim) == other(dim)) & other(mask) & before).any(-1)


def _per_dim(
    dim: Int[Array, "L B P"], value: Float[Array, "L B P"], mask: Bool[Array, "L B P"], D: int
) -> tuple[Float[Array, "L B D"], Bool[Array, "L B D"]]:
    """`value` of each dimension's masked place, and which dimensions have one."""

    def one(dim, value, mask):
        index = jnp.where(mask, dim, D)
        out = jnp.zeros(D, jnp.float32).at[index].set(value.astype(jnp.float32), mode="drop")
        return out, jnp.zeros(D, bool).at[index].set(True, mode="drop")

    return jax.vmap(jax.vmap(one))(dim, value, mask)


def _moments(value: Float[Array, "L B D"], mask: Bool[Array, "L B D"]) -> Moments:
    count = mask.sum(1).astype(jnp.float32)
    mean = jnp.where(mask, value, 0).sum(1) / jnp.maximum(count, 1)
    square = jnp.where(mask, jnp.square(value - mean[:, None]), 0).sum(1)
    return Moments(count, mean, square)


def decide(tally: Tally, definition: Definition | None = None) -> Massive:
    """The verdict on every dimension, from the tally of all batches."""
    definition = definition or Definition()
    found = tally.relaxed > 0
    L, D = found.shape
    layers = jnp.arange(L)[:, None]
    steady = tally.strict > definition.min_share * tally.sequences
    strict = steady.sum(0) >= min(definition.min_layers, L)
    relaxed = found.any(0)
    counted = jnp.where(strict, steady, found)
    last = jnp.where(counted, layers, -1).max(0)
    # Sequences in which the dimension is too small to be seen count as 0: a layer that one
    # sequence alone reaches is not its peak.
    size = jnp.abs(tally.value.mean) * tally.value.count
    peak = jnp.where(counted, size, -1.0).argmax(0)
    at_peak = lambda x: jnp.take_along_axis(x, peak[None], axis=0)[0]
    sign = jnp.sign(at_peak(tally.value.mean))

    # [2L, D]: contributions along the sign of the value, where a place was followed.
    parts = jnp.stack([tally.attn.mean, tally.mlp.mean], axis=1)
    followed = (tally.attn.count > 0)[:, None]
    along = parts * sign
    flat = lambda x: jnp.broadcast_to(x, parts.shape).reshape(2 * L, D)
    take = lambda index: jnp.take_along_axis(flat(parts), index[None], axis=0)[0]
    written = jnp.where(flat(followed & (layers[:, None] <= peak)), flat(along), -jnp.inf)
    removed = jnp.where(flat(followed & (layers[:, None] > peak)), flat(-along), -jnp.inf)
    writer, remover = written.argmax(0), removed.argmax(0)
    embedded = tally.pre.mean[0]
    from_embedding = (tally.pre.count[0] > 0) & (embedded * sign >= written.max(0))
    size = jnp.abs(at_peak(tally.value.mean))
    gone = relaxed & (last < L - 1) & (removed.max(0) >= REMOVED_SHARE * size)
    none = lambda x, mask: jnp.where(mask, x, -1)
    return Massive(
        strict=strict,
        relaxed=relaxed,
        first_layer=none(jnp.where(counted, layers, L).min(0), relaxed),
        last_layer=last,
        peak_layer=none(peak, relaxed),
        value_mean=at_peak(tally.value.mean),
        value_std=at_peak(tally.value.std),
        value_count=at_peak(tally.value.count),
        ratio=at_peak(tally.ratio.mean),
        share_of_sequences=tally.anywhere / tally.sequences,
        trajectory=jnp.where(found, tally.value.mean, jnp.nan),
        writer_layer=none(jnp.where(from_embedding, -1, writer // 2), relaxed),
        writer_sublayer=none(jnp.where(from_embedding, 2, writer % 2), relaxed),
        writer_value=jnp.where(from_embedding, embedded, take(writer)),
        remover_layer=none(remover // 2, gone),
        remover_sublayer=none(remover % 2, gone),
        remover_value=jnp.where(gone, take(remover), 0.0),
    )


def find_massive(stats: Magnitudes, definition: Definition | None = None) -> Massive:
    """Merges the hits of `stats` over layers and sequences into a verdict on every dimension.

    Pure; works under `jax.jit` and `jax.vmap`. For more sequences than fit at once, merge the
    `tally` of each batch and `decide` once.

    Args:
      stats: of `magnitudes`, with leading axes [L, B].
      definition: what counts as massive; use that of `magnitudes`, which looked for places with it.
    """
    return decide(tally(stats, definition), definition)
