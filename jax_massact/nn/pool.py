"""The features of an image, from the streams of its tokens after the last block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.nn import sharded
from jax_massact.nn.acts import Mask
from jax_massact.nn.attention import weights
from jax_massact.nn.block import Attention
from jax_massact.nn.config import ModelConfig, PoolKind
from jax_massact.nn.draw import INIT_STD, Key, drawn, split
from jax_massact.nn.linear import project
from jax_massact.nn.mlp import MLP
from jax_massact.nn.norms import Norm

# (streams, the norm, rows in front) to features.
Pool = Callable[[Float[Array, "B S D"], Norm, int], Float[Array, "B E"]]


def _mean(x: jax.Array, front: int) -> jax.Array:
    return x[:, front:].astype(jnp.float32).mean(1).astype(x.dtype)


def _cls_mean(x: jax.Array, norm: Norm, front: int) -> jax.Array:
    x = norm(x)
    return jnp.concatenate([x[:, 0], _mean(x, front)], axis=-1)


# `map` is a module of its own, `MapPool`.
POOLS: dict[PoolKind, Pool] = {
    "cls": lambda x, norm, front: norm(x[:, 0]),
    "mean": lambda x, norm, front: _mean(norm(x), front),
    "cls_mean": _cls_mean,
    "mean_norm": lambda x, norm, front: norm(_mean(x, front)),
}


class MapPool(nnx.Module):
    """A learned query that attends to all tokens, then an MLP (SigLIP, Zhai et al. 2023)."""

    def __init__(self, config: ModelConfig, key: Key):
        probe, attn, mlp = split(key, 3)
        c, D = config.block, config.width
        self.probe = drawn(probe, D)
        self.attn = Attention(config, INIT_STD, attn)
        self.norm = Norm(c.norm, D)
        self.mlp = MLP(c.mlp, D, INIT_STD, mlp)

    def __call__(self, config: ModelConfig, x: Float[Array, "B S D"]) -> Float[Array, "B D"]:
        """Features from the normed streams."""
        attn, c = self.attn, config.block
        probe = jnp.broadcast_to(self.probe[...].astype(x.dtype), (x.shape[0], 1, x.shape[2]))
        q = project(probe, attn.q, "dnh", attn.q_bias)
        k = project(x, attn.k, "dnh", attn.k_bias)
        v = project(x, attn.v, "dnh", attn.v_bias)
        q, k, v = (sharded.by_sequence(y) for y in (q, k, v))
        mask = Mask(scale=c.attention.head_dim**-0.5, causal=False)
        z = weights(q, k, mask, queries=jnp.arange(1)).mix(v, None).astype(x.dtype)
        x = project(z, attn.out, "nhd", attn.out_bias)
        hidden, _ = self.mlp.hidden(self.norm(x), c.mlp.activation)
        return (x + self.mlp.output(hidden))[:, 0]
