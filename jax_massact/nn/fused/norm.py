"""RMSNorm and LayerNorm with a backward pass of their own."""

import functools

import jax
import jax.numpy as jnp

from jax_massact.nn import sharded
from jax_massact.nn.config import NormKind


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def norm(kind: NormKind, eps: float, x: jax.Array, scale: jax.Array) -> jax.Array:
    """The norm without its bias. Differentiable once, in reverse mode.

    Between the passes two numbers for each token are kept; automatic differentiation would compute
    them again and, with them, write the gradient of `scale` token by token before it is summed.
    """
    return _norm_forward(kind, eps, x, scale)[0]


def _norm_forward(kind, eps, x, scale):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True) if kind == "layer" else None
    centred = x32 if mean is None else x32 - mean
    rstd = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + eps)
    normed = centred * rstd
    if kind == "rms":
        # Rounded before the scale, as the models were trained.
        y = normed.astype(x.dtype) * scale.astype(x.dtype)
    else:
        y = normed * scale.astype(jnp.float32)
    return y, (x, scale, mean, rstd)


def _norm_backward(kind, eps, residuals, cotangent):
    del kind, eps
    x, scale, mean, rstd = residuals
    mean, rstd = jax.lax.optimization_barrier((mean, rstd))
    centred = x.astype(jnp.float32) if mean is None else x.astype(jnp.float32) - mean
    normed, cotangent = centred * rstd, cotangent.astype(jnp.float32)
    d_normed = cotangent * scale.astype(jnp.float32)
    along = (d_normed * normed).mean(-1, keepdims=True) * normed
    if mean is not None:
        along = along + d_normed.mean(-1, keepdims=True)
    d_x = (rstd * (d_normed - along)).astype(x.dtype)
    return d_x, sharded.sum_over_tokens(cotangent * normed).astype(scale.dtype)


norm.defvjp(_norm_forward, _norm_backward)
