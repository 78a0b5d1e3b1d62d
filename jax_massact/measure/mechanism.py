"""From the stream to attention: how a massive token becomes a constant key and a small value.

The norm divides a massive token by its own size, so that what is left is nearly the same sparse
vector whatever the token was; its key and value are then constants of the model.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_massact.measure.attention import (
    SINK_LENGTH,
    AttentionStats,
    attention_map,
    attention_stats,
)
from jax_massact.measure.padding import AttentionMask, in_order, is_real, unpad
from jax_massact.nn import sharded
from jax_massact.nn.acts import Acts
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer

MAP_TOKENS = 48


class VectorSums(NamedTuple):
    """Sums over a sequence's massive tokens, or over its other tokens.

    Attributes:
      count: how many tokens.
      norm: of |x|.
      direction: of x / |x|; with those of other sequences it gives the mean cosine between tokens
        of different sequences.
      dims: of (sum x_i^2)^2 / sum x_i^4, the effective number of dimensions of x: 1 for a vector
        with one entry, D for one whose entries are of equal size.
    """

    count: Float[Array, " B"]
    norm: Float[Array, " B"]
    direction: Float[Array, "B F"]
    dims: Float[Array, " B"]


class VectorPair(NamedTuple):
    massive: VectorSums
    other: VectorSums


class LayerMechanism(NamedTuple):
    """One layer's part of the mechanism; `explain` stacks it over layers.

    Attributes:
      attention: where attention goes, and the value updates.
      stream, normed: resid_pre, and the norm's result, which attention reads.
      keys: before rotary positions, all heads in a row.
      values: all heads in a row.
      map: attention of the first tokens, averaged over heads.
    """

    attention: AttentionStats
    stream: VectorPair
    normed: VectorPair
    keys: VectorPair
    values: VectorPair
    map: Float[Array, "B M M"]


def mechanism_tap(
    acts: Acts,
    massive: Bool[Array, "B T"],
    sink_length: int = SINK_LENGTH,
    count: Int[Array, " B"] | None = None,
) -> LayerMechanism:
    """Reduces one block's activations.

    Args:
      massive: the massive tokens of every sequence.
      sink_length: how many queries count for the sink rate.
      count: only the first `count` tokens of each sequence are measured; None: all.
    """
    k = sharded.by_sequence(acts.k)
    if acts.rotation is not None:
        # Turned back: a key's position is not a property of its token.
        k = acts.rotation.turn_back(k)
    flat = lambda x: sharded.by_sequence(x).reshape(*x.shape[:2], -1)
    other = ~massive if count is None else ~massive & is_real(count, massive.shape[1])
    pair = lambda x: VectorPair(_sums(x, massive), _sums(x, other))
    return LayerMechanism(
        attention=attention_stats(acts, massive, sink_length=sink_length, count=count),
        stream=pair(acts.resid_pre),
        normed=pair(acts.attn_in),
        keys=pair(flat(k)),
        values=pair(flat(acts.v)),
        map=attention_map(acts, MAP_TOKENS),
    )


def _sums(x: Float[Array, "B T F"], mask: Bool[Array, "B T"]) -> VectorSums:
    x = x.astype(jnp.float32)
    tiny = jnp.finfo(jnp.float32).tiny
    norm = jnp.linalg.norm(x, axis=-1)
    unit = x / jnp.maximum(norm, tiny)[..., None]
    total = lambda y: jnp.where(mask, y, 0).sum(-1)
    return VectorSums(
        count=mask.sum(-1).astype(jnp.float32),
        norm=total(norm),
        direction=jnp.where(mask[..., None], unit, 0).sum(1),
        # Of the unit vector, whose squares add up to 1.
        dims=total(1 / jnp.maximum((unit**4).sum(-1), tiny)),
    )


def explain(
    model: Transformer | BlockSource,
    tokens: Int[Array | np.ndarray, "B T"],
    massive: Bool[Array, "B S"],
    *,
    mask: AttentionMask | None = None,
    sink_length: int = SINK_LENGTH,
) -> LayerMechanism:
    """Attention, norms and value updates of every layer, reduced inside the forward pass.

    Pure; works under `jax.jit` and any mesh. Everything is per sequence: the caller merges.

    Args:
      tokens: ids in [0, V).
      massive: the massive tokens (`massive_tokens`), learned rows in front included.
      mask: true or 1 for real tokens, 0 for padding on either side; each sequence is measured as
        if it stood alone, and `map` begins with its first real token.
      sink_length: how many queries count for the sink rate.

    Returns:
      `LayerMechanism` whose arrays have leading axes [L, B].

    Raises:
      ValueError: `tokens` or `mask` does not have a shape or dtype that the model takes.
    """
    if mask is None:
        tap = lambda acts: mechanism_tap(acts, massive, sink_length)
        return model.residual(tokens, tap=tap)[1]
    batch = unpad(tokens, mask)
    S = massive.shape[1]
    count = batch.count_of(S)
    # Padding cannot be massive, whatever was measured there.
    moved = in_order(massive, batch.order_of(S)) & is_real(count, S)
    tap = lambda acts: mechanism_tap(acts, moved, sink_length, count)
    return model.residual(batch.tokens, tap=tap)[1]


def sink_rate(
    stats: AttentionStats, epsilon: float
) -> Float[Array, "..."]:
    """Share of heads whose mean attention to the first token exceeds epsilon (Gu et al. 2024,
    equation 8), for every sequence: the last axis of `stats.sink` is averaged over."""
    return (stats.sink > epsilon).mean(-1, dtype=jnp.float32)


def massive_tokens(
    positions: jax.Array, mask: jax.Array, length: int
) -> Bool[Array, "B T"]:
    """The tokens that are marked at any layer.

    Args:
      positions: of `Places`, [L, B, P].
      mask: of `Hits`, the same shape.
      length: T.
    """
    hit = (positions[..., None] == jnp.arange(length)) & mask[..., None]
    return hit.any((0, 2))
