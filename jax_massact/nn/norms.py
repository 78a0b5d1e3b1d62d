"""The norms of the residual stream."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.nn import sharded
from jax_massact.nn.config import NormConfig
from jax_massact.nn.fused.norm import norm


class Norm(nnx.Module):
    """RMSNorm (Zhang and Sennrich 2019) or LayerNorm (Ba et al. 2016), computed in float32."""

    def __init__(self, config: NormConfig, width: int):
        self.config = config
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width)) if config.bias else None

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y: jax.Array = norm(self.config.kind, self.config.eps, x, self.scale[...])
        if self.bias is not None:
            y = y + sharded.broadcast(self.bias[...].astype(jnp.float32), y)
        return y.astype(x.dtype)
