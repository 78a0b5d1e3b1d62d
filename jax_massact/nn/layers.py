"""Norms, rotary positions and the MLP."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_massact import mesh
from jax_massact.config import INIT_STD, ModelConfig, RopeConfig, check_float, check_int


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016), computed in float32."""

    def __init__(self, config: ModelConfig):
        self.kind = config.norm
        self.eps = config.norm_eps
        self.scale = nnx.Param(jnp.ones(config.width))
        self.bias = nnx.Param(jnp.zeros(config.width)) if config.norm_bias else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        x32 = x.astype(jnp.float32)
        if self.kind == "layer":
            x32 = x32 - x32.mean(-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.square(x32).mean(-1, keepdims=True) + self.eps)
        if self.kind == "rms":
            # Rounded before the scale, as the models were trained.
            return x32.astype(x.dtype) * self.scale[...].astype(x.dtype)
        y = x32 * self.scale[...].astype(jnp.float32)
        if self.bias is not None:
            y = y + self.bias[...].astype(jnp.float32)
        return y.astype(x.dtype)


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


_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
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
    return y if bias is None else y + bias[...].astype(x.dtype)
