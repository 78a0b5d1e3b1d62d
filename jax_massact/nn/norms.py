"""The norms of the residual stream, and of queries and keys."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.nn import sharded
from jax_massact.nn.block_config import NormConfig, QKNormKind
from jax_massact.nn.fused.norm import gain, norm

# The slope of DyT in a new model (Zhu et al. 2025, section 4).
ALPHA = 0.5


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich 2019), LayerNorm (Ba et al. 2016), or what stands in their place,
    computed in float32."""

    def __init__(self, config: NormConfig, width: int):
        self.config = config
        self.alpha = nnx.Param(jnp.asarray(ALPHA)) if config.kind == "dyt" else None
        self.scale = nnx.Param(jnp.ones(width) - config.offset) if config.scale else None
        self.bias = nnx.Param(jnp.zeros(width)) if config.bias else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        scale = None if self.scale is None else self.scale[...]
        if self.alpha is None:
            y: jax.Array = norm(self.config, x, scale)
        else:
            y = jnp.tanh(self.alpha[...] * x.astype(jnp.float32))
            y = y if scale is None else y * sharded.broadcast(gain(self.config, scale), y)
        if self.bias is not None:
            y = y + sharded.broadcast(self.bias[...].astype(jnp.float32), y)
        return y.astype(x.dtype)


class HeadNorm(nnx.Module):
    """The norm of queries or keys (Henry et al. 2020), whose statistics are of one head or of all.

    A scale for each head has another name than one for all, since it is laid out in another way.
    """

    def __init__(self, kind: QKNormKind, config: NormConfig, heads: int, head_dim: int):
        self.config = config
        self.axes = (-2, -1) if kind == "all" else (-1,)
        one, every = kind == "head", kind != "head"
        self.scale = nnx.Param(jnp.ones(head_dim) - config.offset) if one else None
        self.scales = nnx.Param(jnp.ones((heads, head_dim)) - config.offset) if every else None

    def __call__(self, x: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
        c, scale = self.config, self.scale if self.scales is None else self.scales
        assert scale is not None
        y = x.astype(jnp.float32)
        if c.kind == "layer":
            y = y - y.mean(self.axes, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(self.axes, keepdims=True) + c.eps)
        dtype = x.dtype if c.kind == "rms" and not c.wide else jnp.float32
        factor = sharded.broadcast(gain(c, scale[...]).astype(dtype), y)
        return (y.astype(dtype) * factor).astype(x.dtype)
