"""Flash attention with extra keys, whatever the kernel: the exact merge.

A softmax stays as it is when all its logits are moved by one number. So the first extra key k' is
subtracted from every key: its own logit then is a constant, its learned one or 0, no query is
multiplied with it, and nothing is left to add to the gradient of the queries. Further extra keys,
which only folded models have, are multiplied with the queries here.

Let (o, l) be attention over the keys k - k' and its log-sum-exp, s_r the logits of the extra keys
and v_r their values. Over all keys together the log-sum-exp is l' = log(e^l + sum_r e^(s_r)), and
the result is o' = e^(l - l') o + sum_r e^(s_r - l') v_r. A flash backward kernel knows the softmax
only as exp(logit - l) and its result only through the product with the cotangent, so that given l'
and o' it returns the exact cotangents of queries, keys and values. No column is added to any
matrix.
"""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_massact.nn.acts import Mask
from jax_massact.nn.extra import Extra
from jax_massact.nn.fused.vendor import FlashKernel, Span


def flash_attend(
    kernel: FlashKernel,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    extra: Extra | None,
) -> Float[Array, "B T N H"]:
    """As `attention.attend`, on one device; differentiable once, in reverse mode."""
    T = q.shape[1]
    pad = -T % kernel.multiple
    if pad:
        # Tokens behind all others, whose keys no real query sees: causal ones do not anyway. Their
        # own results are cut off.
        q, k, v = (jnp.pad(x, ((0, 0), (0, pad), (0, 0), (0, 0))) for x in (q, k, v))
    window = None if mask.window is None or mask.window >= T else mask.window
    span = Span(mask.causal, window, T if pad and not mask.causal else None)
    out: jax.Array = _attend(kernel, span, mask.reach, q, k, v, extra)
    return out[:, :T]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attend(kernel, span, reach, q, k, v, extra):
    return _forward(kernel, span, reach, q, k, v, extra)[0]


def _forward(kernel, span, reach, q, k, v, extra):
    if extra is None:
        out, lse = kernel.forward(q, k, v, span)
        return out, (q, k, v, None, out, lse)
    if extra.key is not None:
        k = _minus(k, extra.key[0])
    real, lse = kernel.forward(q, k, v, span)
    logits = _logits(q, extra, reach)
    lse_real = _heads_last(lse)
    total = functools.reduce(jnp.logaddexp, logits, lse_real)
    kept, *weights = _once(
        jnp.exp(lse_real - total), *(jnp.exp(logit - total) for logit in logits)
    )
    merged = kept[..., None] * real.astype(jnp.float32)
    if extra.value is not None:
        for weight, value in zip(weights, extra.value, strict=True):
            merged = merged + weight[..., None] * _per_head(value, q.shape[2])
    out = merged.astype(real.dtype)
    for logit in logits:
        lse = jnp.logaddexp(lse, jnp.swapaxes(logit, -1, -2))
    return out, (q, k, v, extra, out, lse)


def _backward(kernel, span, reach, residuals, cotangent):
    q, k, v, extra, out, lse = residuals
    dq, dk, dv = kernel.backward(q, k, v, out, lse, cotangent, span)
    if extra is None:
        return dq, dk, dv, None
    lse = _heads_last(lse)
    weights = _once(*(jnp.exp(logit - lse) for logit in _logits(q, extra, reach)))
    g, scale = cotangent.astype(jnp.float32), q.shape[-1] ** -0.5
    d_keys, d_logits, d_values = [], [], []
    for r, weight in enumerate(weights):
        gain = -out.astype(jnp.float32)
        if extra.value is not None:
            gain = gain + _per_head(extra.value[r], q.shape[2])
            d_values.append(_per_kv_head((weight[..., None] * g).sum((0, 1)), extra.value[r]))
        d_logit = weight * (g * gain).sum(-1)
        d_logits.append(d_logit.sum((0, 1)))
        if extra.key is not None:
            # Not minus the sum of what the keys get: in 16 bit, their roundings would add up.
            d_key = scale * (d_logit[..., None] * q.astype(jnp.float32)).sum((0, 1))
            d_keys.append(_per_kv_head(d_key, extra.key[r]))
            if r:
                rest = _per_head(extra.key[r] - extra.key[0], q.shape[2])
                dq = dq + (scale * d_logit[..., None] * rest).astype(dq.dtype)
    stack = lambda parts, like: None if like is None else jnp.stack(parts).astype(like.dtype)
    gradient = Extra(
        stack(d_keys, extra.key), stack(d_logits, extra.logit), stack(d_values, extra.value)
    )
    return dq, dk, dv, gradient


_attend.defvjp(_forward, _backward)


def _minus(k: Float[Array, "B T K H"], key: Float[Array, "K H"]) -> Float[Array, "B T K H"]:
    # As matrices: so XLA for GPUs can add it while the matmul that made k is written.
    matrix = k.reshape(-1, key.size)
    return (matrix + (-key).astype(k.dtype).reshape(1, -1)).reshape(k.shape)


def _logits(
    q: Float[Array, "B T N H"], extra: Extra, reach: int | None
) -> list[Float[Array, "... T N"]]:
    """Logits of each extra key after the first was subtracted from all keys.

    That of the first is one constant per head; where a key is not seen they are -inf.
    """
    (_, T, N, H), found = q.shape, []
    for r in range(extra.number):
        logits = jnp.zeros((T, N)) if extra.logit is None else extra.logit[r].astype(jnp.float32)
        logits = jnp.broadcast_to(logits, (T, N))
        if r and extra.key is not None:
            rest = _per_head(extra.key[r] - extra.key[0], N)
            logits = logits + (q.astype(jnp.float32) * rest).sum(-1) * H**-0.5
        if reach is not None:
            logits = jnp.where(jnp.arange(T)[:, None] < reach + r, logits, -jnp.inf)
        found.append(logits)
    return found


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
