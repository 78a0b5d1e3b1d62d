"""The cross-entropy of next-token prediction."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_massact.nn import sharded
from jax_massact.nn.fused.vendor import platform

PARTS = 8
LOWEST = float(jnp.finfo(jnp.float32).min)


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "*B V"], targets: Int[Array | np.ndarray, "*B"]
) -> Float[Array, "*B"]:
    """-log softmax(logits)[target] in nats, computed in float32.

    Differentiable once, in reverse mode. Between the passes only the logits and one number for each
    target are kept, where automatic differentiation would keep float32 copies of the logits, and
    the gradient is written in the logits' dtype.
    """
    return _forward(logits, targets)[0]


def _forward(logits, targets):
    lse = _logsumexp(logits)
    return lse - sharded.pick(logits, targets).astype(jnp.float32), (logits, targets, lse)


def _backward(residuals, cotangent):
    logits, targets, lse = residuals
    probabilities = jnp.exp(logits.astype(jnp.float32) - lse[..., None])
    gradient = probabilities - sharded.one_hot(logits, targets)
    return (gradient * cotangent[..., None]).astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)


def _logsumexp(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """log sum exp over the vocabulary, in float32."""
    # Where the vocabulary is split, each device has its part. CPUs would add one after the other.
    if sharded.is_split(logits) or logits.shape[-1] % PARTS or platform() == "cpu":
        return jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return logsumexp_once(logits)


def logsumexp_once(logits: Float[Array, "*B V"]) -> Float[Array, "*B"]:
    """log sum exp in float32, reading the logits once (Milakov and Gimelshein 2018).

    They are the largest array of a training step. Maxima, and sums of exponentials relative to
    them, are joined pair by pair; before that, PARTS parts of the vocabulary are looked at at once,
    which makes joins few. V is a multiple of PARTS.
    """
    size = logits.shape[-1] // PARTS
    parts = [logits[..., i * size : (i + 1) * size].astype(jnp.float32) for i in range(PARTS)]
    peak = functools.reduce(jnp.maximum, parts)
    # Where all are -inf, so is the maximum, and the sum is 0.
    total = sum(jnp.exp(part - jnp.maximum(peak, LOWEST)) for part in parts)

    def join(a, b):
        (peak_a, total_a), (peak_b, total_b) = a, b
        peak = jnp.maximum(peak_a, peak_b)
        low = jnp.maximum(peak, LOWEST)
        return peak, total_a * jnp.exp(peak_a - low) + total_b * jnp.exp(peak_b - low)

    nothing = (jnp.float32(-jnp.inf), jnp.float32(0))
    peak, total = jax.lax.reduce((peak, total), nothing, join, (logits.ndim - 1,))
    return peak + jnp.log(total)
