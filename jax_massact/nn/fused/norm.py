"""RMSNorm and LayerNorm with a backward pass of their own."""

import functools

import jax
import jax.numpy as jnp

from jax_massact.nn import sharded
from jax_massact.nn.block_config import NormConfig


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def norm(config: NormConfig, x: jax.Array, scale: jax.Array | None) -> jax.Array:
    """The norm without its bias. Differentiable once, in reverse mode.

    Between the passes two numbers for each token are kept; automatic differentiation would compute
    them again and, with them, write the gradient of `scale` token by token before it is summed.
    """
    return _norm_forward(config, x, scale)[0]


def gain(config: NormConfig, scale: jax.Array) -> jax.Array:
    """The factors of the normed stream, in float32."""
    scale = scale.astype(jnp.float32)
    return scale + config.offset if config.offset else scale


def _norm_forward(config, x, scale):
    x32 = x.astype(jnp.float32)
    mean = x32.mean(-1, keepdims=True) if config.kind == "layer" else None
    centred = x32 if mean is None else x32 - mean
    rstd = jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + config.eps)
    normed = centred * rstd
    if scale is None:
        y = normed
    elif config.kind == "rms" and not config.wide:
        # Rounded before the scale, as the models were trained.
        y = normed.astype(x.dtype) * gain(config, scale).astype(x.dtype)
    else:
        y = normed * gain(config, scale)
    return y, (x, scale, mean, rstd)


def _norm_backward(config, residuals, cotangent):
    x, scale, mean, rstd = residuals
    mean, rstd = jax.lax.optimization_barrier((mean, rstd))
    centred = x.astype(jnp.float32) if mean is None else x.astype(jnp.float32) - mean
    normed, cotangent = centred * rstd, cotangent.astype(jnp.float32)
    d_normed = cotangent if scale is None else cotangent * gain(config, scale)
    along = (d_normed * normed).mean(-1, keepdims=True) * normed
    if mean is not None:
        along = along + d_normed.mean(-1, keepdims=True)
    d_x = (rstd * (d_normed - along)).astype(x.dtype)
    if scale is None:
        return d_x, None
    return d_x, sharded.sum_over_tokens(cotangent * normed).astype(scale.dtype)


norm.defvjp(_norm_forward, _norm_backward)
