"""Attention as one softmax over the keys, with an optional extra key that every query sees."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact import mesh
from jax_massact.config import ModelConfig
from jax_massact.nn.layers import INIT_STD, linear, rotate

# Queries are taken in blocks of at least this many, so that no [N, T, T] array is ever whole and
# keys that a block cannot see are not multiplied.
QUERY_BLOCK = 128
MAX_BLOCKS = 16


class Extra(NamedTuple):
    """One more key and value that every query sees: softmax([q K^T, logit]) [V; value].

    Attributes:
      logit: Float[B T N], already divided by sqrt(H).
      value: Float[K H], or None for a value of zero.
    """

    logit: Float[Array, "B T N"]
    value: Float[Array, "K H"] | None


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    window: int | None = None,
    extra: Extra | None = None,
) -> Float[Array, "B T N H"]:
    """Causal softmax(q k^T / sqrt(H)) v, each group of N/K query heads sharing a key/value head.

    Args:
      window: a query sees its own token and the `window - 1` before it; None: all before it.
      extra: one more key that every query sees.
    """

    def local(q, k, v, logit, value):
        blocks = [
            _attend_block(q, k, v, start, stop, window, logit, value)
            for start, stop in query_blocks(q.shape[1])
        ]
        return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)

    logit, value = (None, None) if extra is None else extra
    return mesh.per_head(
        local,
        (q, k, v, logit, value),
        ("act_btnh", "act_btnh", "act_btnh", "act_btn", "bias_nh"),
        out="act_btnh",
    )


def query_blocks(length: int) -> list[tuple[int, int]]:
    """The (start, stop) of each block of queries of a sequence."""
    size = max(QUERY_BLOCK, -(-length // MAX_BLOCKS))
    return [(s, min(s + size, length)) for s in range(0, length, size)]


def block_logits(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    start: int,
    stop: int,
    window: int | None,
) -> tuple[Float[Array, "B K G Q S"], int]:
    """Float32 logits of queries [start, stop), -inf where a key is not seen.

    Returns the logits over the keys [first, stop) and `first`; head n = k * G + g.
    """
    first = 0 if window is None else max(0, start - window + 1)
    B, _, N, H = q.shape
    K = k.shape[2]
    q = (q[:, start:stop] * H**-0.5).reshape(B, stop - start, K, N // K, H)
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    logits = jnp.einsum(
        "btkgh,bskh->bkgts",
        q,
        k[:, first:stop],
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    behind = jnp.arange(start, stop)[:, None] - jnp.arange(first, stop)
    seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return jnp.where(seen, logits, -jnp.inf), first


def _attend_block(q, k, v, start, stop, window, logit, value):
    logits, first = block_logits(q, k, start, stop, window)
    B, K, G, Q, _ = logits.shape
    peak = logits.max(-1, keepdims=True)
    if logit is not None:
        # [B T N] -> [B K G Q 1]
        logit = logit[:, start:stop].astype(jnp.float32).reshape(B, Q, K, G, 1)
        logit = logit.transpose(0, 2, 3, 1, 4)
        peak = jnp.maximum(peak, logit)
    peak = jax.lax.stop_gradient(peak)
    weights = jnp.exp(logits - peak)
    total = weights.sum(-1, keepdims=True)
    if logit is not None:
        weight = jnp.exp(logit - peak)
        total = total + weight
    precision = jax.lax.Precision.HIGHEST if v.dtype == jnp.float32 else None
    out = jnp.einsum(
        "bkgts,bskh->bkgth",
        weights.astype(v.dtype),
        v[:, first:stop],
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    if logit is not None and value is not None:
        out = out + weight * value.astype(jnp.float32)[None, :, None, None, :]
    out = (out / total).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, Q, K * G, -1)


class Attention(nnx.Module):
    """Projections to queries, keys and values, and back to the residual stream."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        D, N, K, H = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        keys = jax.random.split(key, 4)
        self.window = config.sliding_window
        self.pairs = config.rope.pairs
        self.q = nnx.Param(INIT_STD * jax.random.normal(keys[0], (D, N, H)))
        self.k = nnx.Param(INIT_STD * jax.random.normal(keys[1], (D, K, H)))
        self.v = nnx.Param(INIT_STD * jax.random.normal(keys[2], (D, K, H)))
        self.out = nnx.Param(INIT_STD * jax.random.normal(keys[3], (N, H, D)))
        self.q_bias = nnx.Param(jnp.zeros((N, H))) if config.qkv_bias else None
        self.k_bias = nnx.Param(jnp.zeros((K, H))) if config.qkv_bias else None
        self.v_bias = nnx.Param(jnp.zeros((K, H))) if config.qkv_bias else None
        self.out_bias = nnx.Param(jnp.zeros(D)) if config.attn_out_bias else None

    def project(
        self, x: Float[Array, "B T D"], angles: Float[Array, "T H/2"] | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B T N H], keys and values [B T K H]; queries and keys rotated by `angles`."""
        q, k, v = (
            linear("btd,dnh->btnh", x, weight, bias, w="qkv_dnh", out="act_btnh")
            for weight, bias in zip(
                (self.q, self.k, self.v), (self.q_bias, self.k_bias, self.v_bias), strict=True
            )
        )
        if angles is not None:
            q, k = rotate(q, angles, self.pairs), rotate(k, angles, self.pairs)
        return q, k, v

    def output(self, z: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """The heads' results summed into the residual stream."""
        return linear("btnh,nhd->btd", z, self.out, self.out_bias, w="out_nhd", out="act_btd")
