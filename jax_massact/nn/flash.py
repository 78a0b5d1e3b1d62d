"""Flash attention with one more key, whatever the kernel: the exact merge.

A softmax stays as it is when all its logits are moved by one number. So the extra key k' is taken
off every key: its own logit s then is a constant, its learned one or 0, no query is multiplied with
it, and nothing is left to add to the gradient of the queries.

Let (o, l) be attention over the keys k - k' and its log-sum-exp, and v' the extra value. Over all
keys together the log-sum-exp is l' = log(e^l + e^s), and the result is
o' = e^(l - l') o + e^(s - l') v'. A flash backward kernel knows the softmax only as exp(logit - l)
and its result only through the product with the cotangent, so that given l' and o' it returns the
exact cotangents of queries, keys and values. No column is added to any matrix.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_massact.nn.extra import Extra
from jax_massact.nn.kernels import FlashKernel


def flash_attend(
    kernel: FlashKernel,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    window: int | None,
    extra: Extra | None,
    reach: int | None,
) -> Float[Array, "B T N H"]:
    """As `attention.attend`, on one device; differentiable once, in reverse mode."""
    T = q.shape[1]
    pad = -T % kernel.multiple
    if pad:
        # Queries behind all others: no real one sees their keys, and their results are cut off.
        q, k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (q, k, v))
    if window is not None and window >= T:
        window = None
    out: jax.Array = _attend(kernel, window, reach, q, k, v, extra)
    return out[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(kernel, window, reach, q, k, v, extra):
    return _forward(kernel, window, reach, q, k, v, extra)[0]


def _forward(kernel, window, reach, q, k, v, extra):
    if extra is None:
        out, lse = kernel.forward(q, k, v, window)
        return out, (q, k, v, None, out, lse)
    if extra.key is not None:
        k = _taken_off(k, extra.key)
    real, lse = kernel.forward(q, k, v, window)
    logit = _logits(extra, q.shape[1], q.shape[2], reach)
    lse_real = _heads_last(lse)
    total = jnp.logaddexp(lse_real, logit)
    kept, weight = _once(jnp.exp(lse_real - total), jnp.exp(logit - total))
    merged = kept[..., None] * real.astype(jnp.float32)
    if extra.value is not None:
        merged = merged + weight[..., None] * _per_head(extra.value, q.shape[2])
    out = merged.astype(real.dtype)
    return out, (q, k, v, extra, out, jnp.logaddexp(lse, logit.T))


def _backward(kernel, window, reach, residuals, cotangent):
    q, k, v, extra, out, lse = residuals
    dq, dk, dv = kernel.backward(q, k, v, out, lse, cotangent, window)
    if extra is None:
        return dq, dk, dv, None
    (weight,) = _once(jnp.exp(_logits(extra, q.shape[1], q.shape[2], reach) - _heads_last(lse)))
    g = cotangent.astype(jnp.float32)
    gain = -out.astype(jnp.float32)
    if extra.value is not None:
        gain = gain + _per_head(extra.value, q.shape[2])
    d_logit = weight * (g * gain).sum(-1)
    d_key = d_value = None
    if extra.key is not None:
        # Not minus the sum of what the keys get: in 16 bit, their roundings would add up in it.
        d_key = (d_logit[..., None] * q.astype(jnp.float32)).sum((0, 1)) * q.shape[-1] ** -0.5
        d_key = _per_kv_head(d_key, extra.key)
    if extra.value is not None:
        d_value = _per_kv_head((weight[..., None] * g).sum((0, 1)), extra.value)
    sum_logit = None if extra.logit is None else d_logit.sum((0, 1)).astype(extra.logit.dtype)
    return dq, dk, dv, Extra(d_key, sum_logit, d_value)


_attend.defvjp(_forward, _backward)


def _taken_off(k: Float[Array, "B T K H"], key: Float[Array, "K H"]) -> Float[Array, "B T K H"]:
    # As matrices: so XLA for GPUs can add it while the product that made k is written.
    matrix = k.reshape(-1, key.size)
    return (matrix + (-key).astype(k.dtype).reshape(1, -1)).reshape(k.shape)


def _logits(extra: Extra, T: int, N: int, reach: int | None) -> Float[Array, "T N"]:
    """Of the extra key, beside keys that it is taken off: of all queries of a head the same."""
    logits = jnp.zeros((T, N)) if extra.logit is None else extra.logit.astype(jnp.float32)
    logits = jnp.broadcast_to(logits, (T, N))
    return logits if reach is None else jnp.where(jnp.arange(T)[:, None] < reach, logits, -jnp.inf)


def _heads_last(lse: Float[Array, "B N T"]) -> Float[Array, "B T N"]:
    # Picked one by one: XLA for GPUs was seen to take 0.25 ms for the transposition.
    B, N, T = lse.shape
    place = jnp.arange(T * N)
    picked = jnp.take(lse.reshape(B, N * T), place % N * T + place // N, axis=1, mode="clip")
    return picked.reshape(B, T, N)


def _once(*arrays: jax.Array) -> Sequence[jax.Array]:
    # One number for each query and head, which XLA would compute again for each dimension.
    return jax.lax.optimization_barrier(arrays)


def _per_head(value: Float[Array, "K H"], heads: int) -> Float[Array, "N H"]:
    return jnp.repeat(value.astype(jnp.float32), heads // value.shape[0], axis=0)


def _per_kv_head(x: Float[Array, "N H"], like: Float[Array, "K H"]) -> Float[Array, "K H"]:
    """The sum over the query heads that share a key/value head."""
    return x.reshape(like.shape[0], -1, like.shape[1]).sum(1).astype(like.dtype)
