"""One more key and value for the softmax of attention: the form of every bias of its variants."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_massact.nn.config import ModelConfig


class Extra(NamedTuple):
    """One more key and value: softmax([q K^T / sqrt(H), s]) [V; value].

    s = q key / sqrt(H) + logit.

    Attributes:
      key: not rotated, however queries are; None: 0.
      logit: for each query head; None: 0.
      value: None: 0.
    """

    key: Float[Array, "K H"] | None = None
    logit: Float[Array, " N"] | None = None
    value: Float[Array, "K H"] | None = None


def extra_reach(config: ModelConfig) -> int | None:
    """How many queries see the extra key; None: all."""
    if config.sliding_window is None or config.bias_position is None:
        return None
    return max(0, config.sliding_window - (config.first_position - config.bias_position))


def extra_logits(
    q: Float[Array, "B Q N H"],
    kv_heads: int,
    extra: Extra,
    index: Int[Array, " Q"],
    reach: int | None,
) -> Float[Array, "B K G Q 1"]:
    """Float32 logits of these queries for the extra key, -inf where it is not seen.

    Args:
      index: of each query in its sequence.
    """
    B, Q, N, H = q.shape
    K, G = kv_heads, N // kv_heads
    logits = jnp.zeros((B, K, G, Q), jnp.float32)
    if extra.key is not None:
        precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
        logits = jnp.einsum(
            "btkgh,kh->bkgt",
            (q * H**-0.5).reshape(B, Q, K, G, H),
            extra.key.astype(q.dtype),
            precision=precision,
            preferred_element_type=jnp.float32,
        )
    if extra.logit is not None:
        logits = logits + extra.logit.astype(jnp.float32).reshape(K, G, 1)
    if reach is not None:
        logits = jnp.where(index < reach, logits, -jnp.inf)
    return logits[..., None]
