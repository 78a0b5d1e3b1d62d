"""Norms, rotary positions and the MLP."""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_massact import mesh
from jax_massact.nn.config import (
    INIT_STD,
    ModelConfig,
    NormKind,
    RopeConfig,
)
from jax_massact.settings import check_float, check_int


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016), computed in float32."""

    def __init__(self, config: ModelConfig):
        self.kind = config.norm
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones(config.width))
        self.bias = nnx.Param(jnp.zeros(config.width)) if config.norm_bias else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y: jax.Array = _norm(self.kind, self.eps, x, self.scale[...])
        if self.bias is not None:
            y = y + mesh.broadcast(self.bias[...].astype(jnp.float32), y)
        return y.astype(x.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _norm(kind: NormKind, eps: float, x: jax.Array, scale: jax.Array) -> jax.Array:
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
    return d_x, mesh.sum_over_tokens(cotangent * normed).astype(scale.dtype)


_norm.defvjp(_norm_forward, _norm_backward)


def rotary_angles(
    rope: RopeConfig, head_dim: int, positions: Float[Array, " T"]
) -> Float[Array, "T H/2"]:
    """Angles in radians: position x base^(-2i/H), each frequency divided by its factor."""
    exponent = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
    frequency = 1.0 / (rope.base**exponent)
    if rope.factors is not None:
        frequency = frequency / jnp.asarray(rope.factors, jnp.float32)
    return positions.astype(jnp.float32)[:, None] * frequency


def llama3_factors(
    rope: RopeConfig, head_dim: int, *, factor: float, low: float, high: float, context: int
) -> tuple[float, ...]:
    """Llama 3's context extension as one divisor for each frequency (`rope_type: llama3`).

    Wavelengths above context / low are slowed down by `factor`, those below context / high are
    kept, those between are interpolated.

    Args:
      context: the context length, in tokens, that the model was trained with before.

    Raises:
      ConfigError: `high` is not above `low`, or `factor`, `low` or `context` is out of range.
    """
    check_float("rope factor", factor, 1.0)
    check_float("rope low frequency factor", low, 0.0, open_low=True)
    check_float("rope high frequency factor", high, low, open_low=True)
    check_int("rope original context", context, 1)
    wavelengths = 2 * np.pi * rope.base ** (np.arange(0, head_dim, 2) / head_dim)
    smooth = np.clip((context / wavelengths - low) / (high - low), 0.0, 1.0)
    # Frequencies are interpolated, not wavelengths: 1/divisor = (1 - smooth)/factor + smooth.
    return tuple((1.0 / ((1.0 - smooth) / factor + smooth)).tolist())


def rotate(
    x: Float[Array, "B T N H"], angles: Float[Array, "T H/2"], pairs: str
) -> Float[Array, "B T N H"]:
    """Turns each pair of coordinates of a head by its token's angle (Su et al. 2021, eq. 34)."""
    cos = jnp.cos(angles)[:, None, :].astype(x.dtype)
    sin = jnp.sin(angles)[:, None, :].astype(x.dtype)
    if pairs == "halves":
        a, b = jnp.split(x, 2, axis=-1)
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)
    a, b = x[..., 0::2], x[..., 1::2]
    return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)


@jax.custom_jvp
def _gelu(x: jax.Array) -> jax.Array:
    """x Phi(x) (Hendrycks and Gimpel 2016), by the error function: half the work of `erfc`."""
    return 0.5 * x * (1 + jax.lax.erf(x * 0.5**0.5))


@_gelu.defjvp
def _gelu_derivative(primals, tangents):
    (x,), (dx,) = primals, tangents
    below, density = _normal(x)
    return _gelu(x), (below + x * density) * dx


def _normal(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Phi(x), to 1e-7, and its derivative, by one exponential for both.

    Abramowitz and Stegun (1964), 7.1.26. On GPUs the gradient of `gelu` is bound by arithmetic;
    1 / z is written as they compute it fastest.
    """
    e = jnp.exp2(jnp.square(x) * (-0.5 / math.log(2)))
    t = jax.lax.rsqrt(jnp.square(1 + 0.3275911 * 0.5**0.5 * jnp.abs(x)))
    tail = 0.0
    for c in (1.061405429, -1.453152027, 1.421413741, -0.284496736, 0.254829592):
        tail = t * (tail + c)
    tail = tail * (0.5 * e)
    return jnp.where(x < 0, tail, 1 - tail), e * (2 * math.pi) ** -0.5


def _in_float32(function: Callable[[jax.Array], jax.Array]) -> Callable[[Any], Any]:
    """`function`, computed in float32 from arrays of any dtype.

    For the gradient only the input is kept and the rest computed again, which takes less time than
    to write and read it.
    """
    return jax.checkpoint(lambda x: function(x.astype(jnp.float32)).astype(x.dtype))


_ACTIVATIONS = {
    "silu": _in_float32(jax.nn.silu),
    "gelu_tanh": _in_float32(lambda x: jax.nn.gelu(x, approximate=True)),
    "gelu": _in_float32(_gelu),
}


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x)) (SwiGLU, Shazeer 2020), or down(act(up(x))) without a gate."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        D, F = config.width, config.mlp_dim
        out_std = INIT_STD / (2 * config.depth) ** 0.5  # see `Attention`
        up, gate, down = jax.random.split(key, 3)
        self.activation = config.activation
        self.up = nnx.Param(INIT_STD * jax.random.normal(up, (D, F)))
        self.gate = (
            nnx.Param(INIT_STD * jax.random.normal(gate, (D, F))) if config.gated_mlp else None
        )
        self.down = nnx.Param(out_std * jax.random.normal(down, (F, D)))
        self.up_bias = nnx.Param(jnp.zeros(F)) if config.mlp_bias else None
        self.gate_bias = (
            nnx.Param(jnp.zeros(F)) if config.mlp_bias and config.gated_mlp else None
        )
        self.down_bias = nnx.Param(jnp.zeros(D)) if config.mlp_bias else None

    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        act = _ACTIVATIONS[self.activation]
        h = linear("btd,df->btf", x, self.up, self.up_bias, w="up_df", out="act_btf")
        if self.gate is None:
            h = act(h)
        else:
            gate = linear("btd,df->btf", x, self.gate, self.gate_bias, w="up_df", out="act_btf")
            h = act(gate) * h
        return linear("btf,fd->btd", h, self.down, self.down_bias, w="down_fd", out="act_btd")


def linear(
    equation: str, x: jax.Array, weight: nnx.Param, bias: nnx.Param | None, *, w: str, out: str
) -> jax.Array:
    """einsum of `x` and a weight of kind `w`, plus a bias, in the dtype of `x`."""
    y = mesh.einsum(equation, x, mesh.gathered(weight[...].astype(x.dtype), w), out=out)
    return y if bias is None else y + mesh.broadcast(bias[...].astype(x.dtype), y)
