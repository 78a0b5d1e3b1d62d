"""Where attention goes and what it adds: measured from q, k and v, one block of queries at a time.

No array [N, T, T] is ever whole: logits live for one layer and one block of queries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jax_massact.nn.attention import block_logits, extra_logits, query_blocks
from jax_massact.nn.block import Acts

SINK_EPSILON = 0.3
SINK_LENGTH = 64


class UpdateMoments(NamedTuple):
    """One part of the value updates of a sequence's queries, as vectors u [N H].

    Attributes:
      mean: of u.
      direction: mean of u / |u|.
      square: mean of |u - mean|^2.
      share: mean of u.z / |z|^2, z the whole update: how much of it u is.
    """

    mean: Float[Array, "B F"]
    direction: Float[Array, "B F"]
    square: Float[Array, " B"]
    share: Float[Array, " B"]


class AttentionStats(NamedTuple):
    """Attention of one layer, per sequence and query head.

    Attributes:
      sink: mean attention to the first token over the first `sink_length` queries, the first token
        itself among them (Gu et al. 2024, equation 7). A head is a sink head where it is above
        epsilon.
      first: mean attention to the first token over all later queries.
      extra: mean attention to the extra key, over the same queries; 0 without one.
      massive: mean attention to massive tokens, over the `queries` that see one and are not massive
        themselves.
      logit_massive: mean logit q.k / sqrt(H) to massive keys, over those queries.
      logit_other: mean logit to keys of ordinary tokens, over ordinary queries after the first.
      queries: how many queries see a massive token and are not massive themselves.
      massive_update: sum over massive tokens of p v, over those queries.
      other_update: the rest of sum p v.
    """

    sink: Float[Array, "B N"]
    first: Float[Array, "B N"]
    extra: Float[Array, "B N"]
    massive: Float[Array, "B N"]
    logit_massive: Float[Array, "B N"]
    logit_other: Float[Array, "B N"]
    queries: Float[Array, " B"]
    massive_update: UpdateMoments
    other_update: UpdateMoments


class _Block(NamedTuple):
    """Per query: [B N Q] but where said otherwise."""

    first: jax.Array
    extra: jax.Array
    massive: jax.Array
    logit_massive: jax.Array
    logit_other: jax.Array
    has_other: jax.Array  # [B Q]
    sees_massive: jax.Array  # [B Q]
    update: jax.Array  # [B Q N H], of massive tokens
    whole: jax.Array  # [B Q N H]


def attention_stats(
    acts: Acts,
    massive: Bool[Array, "B T"],
    *,
    window: int | None = None,
    reach: int | None = None,
    sink_length: int = SINK_LENGTH,
) -> AttentionStats:
    """Reduces one layer's attention; call it in a tap.

    The value update of query t is z_t = sum_i p_ti v_i, all heads in a row, before the output
    projection. It is split as in Sun et al. 2024, equation 4, into the sum over massive tokens and
    the sum over the rest.

    Args:
      massive: the massive tokens.
      window: of the model's sliding window (`ModelConfig.sliding_window`).
      reach: of its extra key (`nn.attention.extra_reach`).
      sink_length: how many queries count for `sink`.
    """
    blocks = [
        _block(acts, massive, start, stop, window, reach)
        for start, stop in query_blocks(acts.q.shape[1])
    ]
    joined = {
        name: jnp.concatenate(
            [getattr(b, name) for b in blocks], axis=1 if name in _QUERY_IS_AXIS_1 else 2
        )
        for name in _Block._fields
    }
    whole = _Block(**joined)
    T = acts.q.shape[1]
    later = (jnp.arange(T) > 0)[None]
    ordinary = whole.sees_massive & ~massive
    early = (jnp.arange(T) < sink_length)[None]
    others = whole.has_other & later & ~massive
    return AttentionStats(
        sink=_mean(whole.first, jnp.broadcast_to(early, massive.shape)),
        first=_mean(whole.first, jnp.broadcast_to(later, massive.shape)),
        extra=_mean(whole.extra, jnp.broadcast_to(later, massive.shape)),
        massive=_mean(whole.massive, ordinary),
        logit_massive=_mean(whole.logit_massive, ordinary),
        logit_other=_mean(whole.logit_other, others),
        queries=ordinary.sum(-1).astype(jnp.float32),
        massive_update=_update_moments(whole.update, whole.whole, ordinary),
        other_update=_update_moments(whole.whole - whole.update, whole.whole, ordinary),
    )


_QUERY_IS_AXIS_1 = ("has_other", "sees_massive", "update", "whole")


def attention_map(
    acts: Acts, tokens: int, *, window: int | None = None, reach: int | None = None
) -> Float[Array, "B M M"]:
    """Attention of the first `tokens` queries and keys, averaged over heads, for pictures."""
    M = min(tokens, acts.q.shape[1])
    q, k = acts.q[:, :M], acts.k[:, :M]
    logits, _ = block_logits(q, k, 0, M, window)
    if acts.extra is not None:
        extra = extra_logits(q, k.shape[2], acts.extra, 0, M, reach)
        logits = jnp.concatenate([logits, extra], axis=-1)
    return jax.nn.softmax(logits, axis=-1)[..., :M].mean((1, 2))


def _block(acts: Acts, massive, start, stop, window, reach) -> _Block:
    logits, first = block_logits(acts.q, acts.k, start, stop, window)
    B, K, G, Q, S = logits.shape
    peak = logits.max(-1, keepdims=True)
    seen = jnp.isfinite(logits[0, 0, 0])
    extra = jnp.zeros((B, K, G, Q, 1))
    if acts.extra is not None:
        logit = extra_logits(acts.q, K, acts.extra, start, stop, reach)
        peak = jnp.maximum(peak, logit)
        extra = jnp.exp(logit - peak)
    weights = jnp.exp(logits - peak)
    total = weights.sum(-1, keepdims=True) + extra
    weights, extra = weights / total, extra / total
    at_massive = massive[:, first:stop]
    is_massive = at_massive[:, None, None, None]
    mean_logit = lambda mask: jnp.where(mask, jnp.where(seen, logits, 0), 0).sum(-1) / jnp.maximum(
        mask.sum(-1), 1
    )
    mix = lambda w: jnp.einsum(
        "bkgts,bskh->btkgh", w, acts.v[:, first:stop].astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    update = mix(jnp.where(is_massive, weights, 0))
    whole = update + mix(jnp.where(is_massive, 0, weights))
    if acts.extra is not None and acts.extra.value is not None:
        value = acts.extra.value.astype(jnp.float32)[:, None]
        whole = whole + extra.transpose(0, 3, 1, 2, 4) * value
    heads = lambda x: x.reshape(B, K * G, Q)
    to_massive, to_other = seen & at_massive[:, None], seen & ~at_massive[:, None]
    return _Block(
        first=heads(weights[..., 0]) if first == 0 else jnp.zeros((B, K * G, Q)),
        extra=heads(extra[..., 0]),
        massive=heads(jnp.where(is_massive, weights, 0).sum(-1)),
        logit_massive=heads(mean_logit(to_massive[:, None, None])),
        logit_other=heads(mean_logit(to_other[:, None, None])),
        has_other=to_other.any(-1),
        sees_massive=to_massive.any(-1),
        update=update.reshape(B, Q, K * G, -1),
        whole=whole.reshape(B, Q, K * G, -1),
    )


def _mean(x: Float[Array, "B N T"], mask: Bool[Array, "B T"]) -> Float[Array, "B N"]:
    mask = mask[:, None]
    return jnp.where(mask, x, 0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def _update_moments(u, z, mask: Bool[Array, "B T"]) -> UpdateMoments:
    B, T = mask.shape
    u, z = u.reshape(B, T, -1), z.reshape(B, T, -1)
    count = jnp.maximum(mask.sum(-1), 1)
    mean_of = lambda x: jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 2)), x, 0).sum(
        1
    ) / count.reshape(count.shape + (1,) * (x.ndim - 2))
    tiny = jnp.finfo(jnp.float32).tiny
    norm = jnp.linalg.norm(u, axis=-1, keepdims=True)
    mean = mean_of(u)
    share = (u * z).sum(-1) / jnp.maximum(jnp.square(z).sum(-1), tiny)
    return UpdateMoments(
        mean=mean,
        direction=mean_of(u / jnp.maximum(norm, tiny)),
        square=mean_of(jnp.square(u - mean[:, None]).sum(-1)),
        share=mean_of(share),
    )
