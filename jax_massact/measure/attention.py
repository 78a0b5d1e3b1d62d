"""Where attention goes and what it adds: measured from q, k and v, one block of queries at a time.

No array [N, T, T] is ever whole: logits live for one layer and one block of queries.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_massact.measure.padding import is_real
from jax_massact.nn import sharded
from jax_massact.nn.acts import Acts, Mask
from jax_massact.nn.attention import weights

SINK_LENGTH = 64
# Queries in one block: logits of so many are held at a time.
BLOCK = 128


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
      extra: mean attention to all extra keys together, over the same queries; 0 without any.
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
    has_other: jax.Array  # [B 1 Q]
    sees_massive: jax.Array  # [B 1 Q]
    update: jax.Array  # [B N Q H], of massive tokens
    whole: jax.Array  # [B N Q H]


def attention_stats(
    acts: Acts,
    massive: Bool[Array, "B T"],
    *,
    sink_length: int = SINK_LENGTH,
    count: Int[Array, " B"] | None = None,
) -> AttentionStats:
    """Reduces one layer's attention; call it in a tap.

    The value update of query t is z_t = sum_i p_ti v_i, all heads in a row, before the output
    projection. It is split as in Sun et al. 2024, equation 4, into the sum over massive tokens and
    the sum over the rest.

    Args:
      massive: the massive tokens.
      sink_length: how many queries count for `sink`.
      count: only the first `count` tokens of each sequence are queries; None: all.
    """
    whole = _in_blocks(acts, massive)
    B, T = massive.shape
    queries = jnp.ones((B, T), bool) if count is None else is_real(count, T)
    later = queries & (jnp.arange(T) > 0)
    ordinary = whole.sees_massive[:, 0] & queries & ~massive
    others = whole.has_other[:, 0] & later & ~massive
    return AttentionStats(
        sink=_mean(whole.first, queries & (jnp.arange(T) < sink_length)),
        first=_mean(whole.first, later),
        extra=_mean(whole.extra, later),
        massive=_mean(whole.massive, ordinary),
        logit_massive=_mean(whole.logit_massive, ordinary),
        logit_other=_mean(whole.logit_other, others),
        queries=ordinary.sum(-1).astype(jnp.float32),
        massive_update=_update_moments(whole.update, whole.whole, ordinary),
        other_update=_update_moments(whole.whole - whole.update, whole.whole, ordinary),
    )


def attention_map(acts: Acts, tokens: int) -> Float[Array, "B M M"]:
    """Attention of the first `tokens` queries and keys, averaged over heads, for pictures."""
    M = min(tokens, acts.q.shape[1])
    q, k = sharded.by_sequence(acts.q[:, :M]), sharded.by_sequence(acts.k[:, :M])
    extra = jax.tree.map(sharded.whole, acts.extra)
    return weights(q, k, acts.mask, extra=extra, queries=jnp.arange(M)).keys.mean((1, 2))


def _in_blocks(acts: Acts, massive: Bool[Array, "B T"]) -> _Block:
    """All queries, BLOCK at a time, one after the other: a loop whose body XLA cannot overlap."""
    q, k, v = (sharded.by_sequence(x) for x in (acts.q, acts.k, acts.v))
    extra = jax.tree.map(sharded.whole, acts.extra)
    T = q.shape[1]
    size = min(BLOCK, T)
    number = -(-T // size)
    q = jnp.pad(q, ((0, 0), (0, number * size - T), (0, 0), (0, 0)))
    # [blocks B size N H]
    q = jnp.moveaxis(q.reshape(q.shape[0], number, size, *q.shape[2:]), 1, 0)

    def one(args):
        q, start = args
        return _block(q, k, v, extra, massive, start + jnp.arange(size), acts.mask)

    blocks = jax.lax.map(one, (q, size * jnp.arange(number)))
    join = lambda x: jnp.moveaxis(x, 0, 2).reshape(*x.shape[1:3], -1, *x.shape[4:])[:, :, :T]
    return jax.tree.map(join, blocks)


def _block(q, k, v, extra, massive, index, mask: Mask) -> _Block:
    found = weights(q, k, mask, extra=extra, queries=index)
    B, K, G, Q, _ = found.logits.shape
    seen = found.logits[:, :1, :1] != -jnp.inf  # whatever the head
    is_massive = massive[:, None, None, None]
    to_massive, to_other = seen & is_massive, seen & ~is_massive
    mean_logit = lambda mask: jnp.where(mask, found.logits, 0).sum(-1) / jnp.maximum(
        mask.sum(-1), 1
    )
    v = v.astype(jnp.float32)
    part = lambda mask: found._replace(keys=jnp.where(mask, found.keys, 0))
    update = part(is_massive).mix(v, None)
    whole = update + part(~is_massive).mix(v, extra)
    heads = lambda x: x.reshape(B, K * G, Q)
    none = jnp.zeros((B, K, G, Q))
    return _Block(
        first=heads(found.keys[..., 0]),
        extra=heads(none if found.extra is None else found.extra.sum(-1)),
        massive=heads(jnp.where(is_massive, found.keys, 0).sum(-1)),
        logit_massive=heads(mean_logit(to_massive)),
        logit_other=heads(mean_logit(to_other)),
        has_other=to_other.any(-1)[:, 0],
        sees_massive=to_massive.any(-1)[:, 0],
        update=update.swapaxes(1, 2),
        whole=whole.swapaxes(1, 2),
    )


def _mean(x: Float[Array, "B N T"], mask: Bool[Array, "B T"]) -> Float[Array, "B N"]:
    mask = mask[:, None]
    return jnp.where(mask, x, 0).sum(-1) / jnp.maximum(mask.sum(-1), 1)


def _update_moments(u, z, mask: Bool[Array, "B T"]) -> UpdateMoments:
    B, T = mask.shape
    u, z = (x.transpose(0, 2, 1, 3).reshape(B, T, -1) for x in (u, z))
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
