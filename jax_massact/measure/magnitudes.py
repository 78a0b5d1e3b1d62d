"""The probe's tap: everything it measures of one layer, reduced on the device per sequence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_massact.measure.definition import Definition, Threshold
from jax_massact.measure.padding import AttentionMask, is_real, unpad, without_padding
from jax_massact.measure.statistics import (
    CountsAbove,
    Top,
    counts_above,
    counts_per_dim,
    gather_places,
    kurtosis,
    quantiles,
    top_magnitudes,
    top_places,
)
from jax_massact.nn.acts import Acts
from jax_massact.nn.edits import Edits
from jax_massact.nn.patches import ModelInput
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer

THRESHOLDS = (10.0, 100.0, 1000.0)
QUANTILES = (0.5, 0.9, 0.99)
# More than any model is known to have; what does not fit is the smallest.
NUM_PLACES = 64
MAP_TOKENS = 64
MAP_BINS = 128


class Places(NamedTuple):
    """The largest scalars before or after a block, by max(|resid_pre|, |resid_post|), and what the
    block did to each. Dimensions over the relaxed threshold at most tokens are passed over.

    Attributes:
      position, dim: where; largest first.
      pre, attn, mlp, post: resid_pre, attn_out, mlp_out and resid_post there.
    """

    position: Int[Array, "L B P"]
    dim: Int[Array, "L B P"]
    pre: Float[Array, "L B P"]
    attn: Float[Array, "L B P"]
    mlp: Float[Array, "L B P"]
    post: Float[Array, "L B P"]


class Outliers(NamedTuple):
    """Per dimension: over how large a share of the tokens it is over the outlier threshold.

    Attributes:
      share: in [0, 1].
      magnitude: mean |resid_post| over those tokens; 0 where there are none.
      relaxed_share: over how large a share of the tokens it is over the relaxed threshold.
    """

    share: Float[Array, "L B D"]
    magnitude: Float[Array, "L B D"]
    relaxed_share: Float[Array, "L B D"]


class Magnitudes(NamedTuple):
    """Statistics of the residual stream after every block, for every sequence.

    Attributes:
      top: the k largest |resid_post|.
      quantile: of |resid_post| over tokens x dimensions, for q in QUANTILES; the first is the
        median.
      kurtosis: of resid_post; 3 for a Gaussian.
      counts: of |resid_post| above each of THRESHOLDS.
      strict, relaxed: how many activations are over the definition's thresholds.
      nonfinite: how many are NaN or infinite.
      outliers: which dimensions are outlier features.
      places: the largest scalars and what the block did to them.
      map: |resid_post| of the first tokens, the largest in each bin of neighbouring dimensions.
    """

    top: Top
    quantile: Float[Array, "L B Q"]
    kurtosis: Float[Array, "L B"]
    counts: CountsAbove
    strict: Int[Array, "L B"]
    relaxed: Int[Array, "L B"]
    nonfinite: Int[Array, "L B"]
    outliers: Outliers
    places: Places
    map: Float[Array, "L B MT MB"]

    @property
    def median(self) -> Float[Array, "L B"]:
        """The exact median of |resid_post| over tokens x dimensions."""
        return self.quantile[..., 0]


def magnitudes_tap(
    acts: Acts,
    *,
    top_k: int = 5,
    definition: Definition | None = None,
    count: Int[Array, " B"] | None = None,
):
    """Reduces one block's activations to its `Magnitudes`, without the layer axis.

    Args:
      count: only the first `count` tokens of each sequence are measured.
    """
    definition = definition or Definition()
    pre, post = (without_padding(x, count) for x in (acts.resid_pre, acts.resid_post))
    magnitude = jnp.abs(post)
    quantile = quantiles(magnitude, QUANTILES, count)
    median = quantile[:, 0]
    cut = lambda t: _cut(t, median, post.dtype)[:, None, None]
    before, large = jnp.abs(pre), magnitude > cut(definition.outlier)
    strict, relaxed, tokens, relaxed_before = counts_per_dim([
        magnitude > cut(definition.strict), magnitude > cut(definition.relaxed), large,
        before > cut(definition.relaxed),
    ])
    length = post.shape[1] if count is None else count[:, None]
    share = lambda tokens: tokens.astype(jnp.float32) / length
    # A dimension that is over the threshold at most tokens would fill every place.
    rare = lambda x, tokens: jnp.where(share(tokens)[:, None] > definition.outlier_share, -1, x)
    key = jnp.maximum(rare(before, relaxed_before), rare(magnitude, relaxed))
    if count is not None:
        # Last of all, where a sequence has fewer scalars than there are places.
        key = jnp.where(is_real(count, post.shape[1])[..., None], key, -2)
    size = jnp.where(large, magnitude, 0).astype(jnp.float32).sum(1) / jnp.maximum(tokens, 1)
    position, dim = top_places(key, NUM_PLACES)
    at = lambda x: gather_places(x, position, dim).astype(jnp.float32)
    return Magnitudes(
        top=top_magnitudes(post, top_k),
        quantile=quantile,
        kurtosis=kurtosis(post, count),
        counts=counts_above(magnitude, THRESHOLDS),
        strict=strict.sum(-1),
        relaxed=relaxed.sum(-1),
        nonfinite=(~jnp.isfinite(post)).sum((1, 2), dtype=jnp.int32),
        outliers=Outliers(share(tokens), size, share(relaxed)),
        places=Places(
            position, dim, at(pre), at(acts.attn_out), at(acts.mlp_out), at(post)
        ),
        map=_binned(magnitude),
    )


def _cut(threshold: Threshold, median: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """|a| > cut exactly where `threshold` holds of |a|, for a cut of this dtype."""

    def rounded_down(limit: jax.Array) -> jax.Array:
        near = limit.astype(dtype)
        return jnp.where(near.astype(jnp.float32) > limit, jnp.nextafter(near, zero), near)

    zero = jnp.asarray(0, dtype)
    # |a| >= ratio x median is |a| > the next smaller float.
    at_least = jnp.nextafter(threshold.ratio * median, jnp.float32(0))
    return jnp.maximum(rounded_down(at_least), rounded_down(jnp.float32(threshold.magnitude)))


def map_first_dims(width: int) -> Int[Array, " MB"]:
    """The first dimension of each bin of `Magnitudes.map`."""
    return jnp.arange(0, width, -(-width // MAP_BINS))


def _binned(magnitude: Float[Array, "B T D"]) -> Float[Array, "B MT MB"]:
    rows = magnitude[:, :MAP_TOKENS]
    B, T, D = rows.shape
    size = -(-D // MAP_BINS)
    rows = jnp.pad(rows, ((0, 0), (0, 0), (0, -D % size)))
    return rows.reshape(B, T, -1, size).max(-1).astype(jnp.float32)


def magnitudes(
    model: Transformer | BlockSource,
    tokens: ModelInput,
    *,
    mask: AttentionMask | None = None,
    top_k: int = 5,
    definition: Definition | None = None,
    edits: Edits | None = None,
) -> Magnitudes:
    """Statistics of every layer's residual stream, computed inside the forward pass.

    Pure; works under `jax.jit`, `jax.vmap` (over `tokens`) and any mesh. No layer's activations are
    kept. Call it under `jax.jit`: outside, the layers' scan is compiled anew on every call.

    Args:
      tokens: ids in [0, V), or images; positions are then those of CLS, registers and patches.
      mask: true or 1 for real tokens, 0 for padding on either side, as tokenizers give it. Each
        sequence is measured as if it stood alone without its padding; positions are those in
        `tokens`, but `map` begins with the first real token.
      top_k: how many of the largest magnitudes to return for each sequence and layer.
      definition: what counts as massive; the paper's by default.
      edits: changes to the residual stream, made before it is measured.

    Returns:
      Arrays with leading axes [L, B]; layer l is the residual stream after block l.

    Raises:
      ValueError: `tokens` or `mask` does not have a shape or dtype that the model takes.
    """
    if mask is None:
        tap = lambda acts: magnitudes_tap(acts, top_k=top_k, definition=definition)
        return model.residual(tokens, tap=tap, edits=edits)[1]
    batch = unpad(tokens, mask)

    def masked(acts: Acts) -> Magnitudes:
        length = acts.resid_post.shape[1]
        stats = magnitudes_tap(
            acts, top_k=top_k, definition=definition, count=batch.count_of(length)
        )
        place = lambda part: part._replace(position=batch.place(part.position, length))
        return stats._replace(top=place(stats.top), places=place(stats.places))

    return model.residual(batch.tokens, tap=masked, edits=batch.edits(edits))[1]


def residual_streams(
    model: Transformer | BlockSource, tokens: ModelInput, *, edits: Edits | None = None
) -> Float[Array, "L B T D"]:
    """The residual stream after every block. Pure; memory grows with the number of layers."""
    return model.residual(tokens, tap=lambda acts: acts.resid_post, edits=edits)[1]
