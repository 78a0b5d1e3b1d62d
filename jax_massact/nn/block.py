"""One pre-norm transformer block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.nn.acts import Acts, Mask
from jax_massact.nn.attention import attend
from jax_massact.nn.config import INIT_STD, BlockConfig, ModelConfig
from jax_massact.nn.linear import project
from jax_massact.nn.mlp import MLP
from jax_massact.nn.norms import Norm
from jax_massact.nn.positions import Rotation
from jax_massact.nn.variants import variant_of

# The activations at a site, edited.
Edit = Callable[[str, jax.Array], jax.Array]


class Attention(nnx.Module):
    """Projections to queries, keys and values, the variant, and the way back to the stream."""

    def __init__(self, config: ModelConfig, out_std: float, key: jax.Array):
        D, c = config.width, config.block.attention
        N, K, H = c.heads, c.kv_heads, c.head_dim
        keys = jax.random.split(key, 5)
        self.q = nnx.Param(INIT_STD * jax.random.normal(keys[0], (D, N, H)))
        self.k = nnx.Param(INIT_STD * jax.random.normal(keys[1], (D, K, H)))
        self.v = nnx.Param(INIT_STD * jax.random.normal(keys[2], (D, K, H)))
        self.out = nnx.Param(out_std * jax.random.normal(keys[3], (N, H, D)))
        self.q_bias = nnx.Param(jnp.zeros((N, H))) if c.qkv_bias else None
        self.k_bias = nnx.Param(jnp.zeros((K, H))) if c.qkv_bias else None
        self.v_bias = nnx.Param(jnp.zeros((K, H))) if c.qkv_bias else None
        self.out_bias = nnx.Param(jnp.zeros(D)) if c.out_bias else None
        self.variant = variant_of(config)(config, keys[4])

    def qkv(
        self, x: Float[Array, "B T D"], rotation: Rotation | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B T N H], keys and values [B T K H]; queries and keys turned."""
        q = project(x, self.q, "dnh", self.q_bias)
        k = project(x, self.k, "dnh", self.k_bias)
        v = project(x, self.v, "dnh", self.v_bias)
        return (q, k, v) if rotation is None else (rotation.turn(q), rotation.turn(k), v)


class Block(nnx.Module):
    """x + attention(norm(x)), then + MLP(norm(.)).

    Blocks of all kinds have the same parameters; what else differs comes with each call.
    """

    def __init__(self, config: ModelConfig, key: jax.Array):
        attn, mlp = jax.random.split(key)
        # GPT-2's: the sum of 2L sublayers keeps the size of the residual stream.
        out_std = INIT_STD / (2 * config.depth) ** 0.5
        self.attn_norm = Norm(config.block.norm, config.width)
        self.attn = Attention(config, out_std, attn)
        self.mlp_norm = Norm(config.block.norm, config.width)
        self.mlp = MLP(config.block, config.width, out_std, mlp)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        kind: BlockConfig,
        mask: Mask,
        rotation: Rotation | None,
        edit: Edit,
    ) -> tuple[Float[Array, "B T D"], Acts]:
        """The residual stream after the block, and all that it computed.

        Args:
          kind: this block's configuration.
          mask: the geometry of its attention.
          rotation: of queries and keys.
          edit: (site, activations) to edited activations.
        """
        attn = self.attn
        pre = edit("resid_pre", x)
        attn_in = edit("attn_in", self.attn_norm(pre))
        q, k, v = attn.qkv(attn_in, rotation)
        extra = attn.variant.extra()
        z = attend(q, k, v, mask, extra=extra, implementation=kind.attention.implementation)
        z = attn.variant.heads(z, attn_in)
        attn_out = edit("attn_out", _kept(project(z, attn.out, "nhd", attn.out_bias)))
        mid = edit("resid_mid", pre + attn_out)
        mlp_in = edit("mlp_in", self.mlp_norm(mid))
        hidden = edit("mlp_hidden", self.mlp.hidden(mlp_in, kind.mlp.activation))
        mlp_out = edit("mlp_out", _kept(self.mlp.output(hidden)))
        post = edit("resid_post", mid + mlp_out)
        return post, Acts(
            pre, attn_in, q, k, v, extra, z, attn_out, mid, mlp_in, hidden, mlp_out, post,
            rotation, mask,
        )


def _kept(x: jax.Array) -> jax.Array:
    # Else XLA for GPUs copies the residual stream to have the product added to the copy, where the
    # norm that follows, which reads both, adds them for nothing.
    return jax.lax.optimization_barrier(x)
