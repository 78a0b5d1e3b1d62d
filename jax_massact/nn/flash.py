"""Flash attention with one more key, whatever the kernel: the exact merge.

Let (o, l) be attention over the real keys and its log-sum-exp, s a query's logit for the extra key
and v' its value. Over all keys together the log-sum-exp is l' = log(e^l + e^s) and the result
o' = e^(l - l') o + e^(s - l') v'. A flash backward kernel knows the softmax only as exp(logit - l)
and its result only through the product with the cotangent, so that given l' and o' it returns the
exact cotangents of the real keys, values and queries; what the extra key adds is a product of one
number for each query. No column is added to any matrix.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_massact.nn.extra import Extra, extra_logits
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
    out, lse = kernel.forward(q, k, v, window)
    if extra is not None:
        logit = _logits(q, extra, k.shape[2], reach)
        total = jnp.logaddexp(lse, logit)
        weight = jnp.exp(logit - total)
        merged = _per_query(jnp.exp(lse - total)) * out.astype(jnp.float32)
        if extra.value is not None:
            merged = merged + _per_query(weight) * _per_head(extra.value, q.shape[2])
        out, lse = merged.astype(out.dtype), total
    else:
        weight = None
    return out, (q, k, v, extra, out, lse, weight)


def _backward(kernel, window, reach, residuals, cotangent):
    q, k, v, extra, out, lse, weight = residuals
    dq, dk, dv = kernel.backward(q, k, v, out, lse, cotangent, window)
    if extra is None:
        return dq, dk, dv, None
    _, pull = jax.vjp(lambda q, extra: _logits(q, extra, k.shape[2], reach), q, extra)
    g = cotangent.astype(jnp.float32)
    gain = -out.astype(jnp.float32)
    if extra.value is not None:
        gain = gain + _per_head(extra.value, q.shape[2])
    dq_extra, d_extra = pull(weight * (g * gain).sum(-1).swapaxes(1, 2))
    if extra.value is not None:
        d_value = (_per_query(weight) * g).sum((0, 1))
        d_value = d_value.reshape(*extra.value.shape[:1], -1, extra.value.shape[1]).sum(1)
        d_extra = d_extra._replace(value=d_value.astype(extra.value.dtype))
    return (dq + dq_extra).astype(q.dtype), dk, dv, d_extra


_attend.defvjp(_forward, _backward)


def _logits(q, extra, kv_heads, reach) -> Float[Array, "B N T"]:
    logits = extra_logits(q, kv_heads, extra, jnp.arange(q.shape[1]), reach)
    return logits.reshape(q.shape[0], q.shape[2], q.shape[1])


def _per_query(x: Float[Array, "B N T"]) -> Float[Array, "B T N 1"]:
    return x.swapaxes(1, 2)[..., None]


def _per_head(value: Float[Array, "K H"], heads: int) -> Float[Array, "N H"]:
    return jnp.repeat(value.astype(jnp.float32), heads // value.shape[0], axis=0)
