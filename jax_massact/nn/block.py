"""One transformer block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.nn import sharded
from jax_massact.nn.acts import Acts, Mask
from jax_massact.nn.attention import Rounded, attend
from jax_massact.nn.block_config import LAYER_SCALE, BlockConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.draw import INIT_STD, Key, drawn, split
from jax_massact.nn.linear import project
from jax_massact.nn.mlp import MLP
from jax_massact.nn.moe import MoE
from jax_massact.nn.norms import HeadNorm, Norm
from jax_massact.nn.positions import Rotation
from jax_massact.nn.variants import variant_of

# The activations at a site, edited and rounded.
Edit = Callable[[str, jax.Array], jax.Array]


class Attention(nnx.Module):
    """Projections to queries, keys and values, the variant, and the way back to the stream."""

    def __init__(self, config: ModelConfig, out_std: float, key: Key):
        D, c = config.width, config.block.attention
        N, K, H = c.heads, c.kv_heads, c.head_dim
        keys = split(key, 5)
        self.q = drawn(keys[0], D, N, H)
        self.k = drawn(keys[1], D, K, H)
        self.v = drawn(keys[2], D, K, H)
        self.out = drawn(keys[3], N, H, D, std=out_std)
        self.q_bias = nnx.Param(jnp.zeros((N, H))) if c.qkv_bias else None
        self.k_bias = nnx.Param(jnp.zeros((K, H))) if c.qkv_bias and c.key_bias else None
        self.v_bias = nnx.Param(jnp.zeros((K, H))) if c.qkv_bias else None
        self.out_bias = nnx.Param(jnp.zeros(D)) if c.out_bias else None
        norm = None if c.qk_norm == "none" else config.block.norm
        self.q_norm = HeadNorm(c.qk_norm, norm, N, H) if norm else None
        self.k_norm = HeadNorm(c.qk_norm, norm, K, H) if norm else None
        self.variant = variant_of(config)(config, keys[4])

    def qkv(
        self, x: Float[Array, "B T D"], clip: float | None, rotation: Rotation | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B T N H], keys and values [B T K H]; queries and keys normed and turned."""
        q = project(x, self.q, "dnh", self.q_bias)
        k = project(x, self.k, "dnh", self.k_bias)
        v = project(x, self.v, "dnh", self.v_bias)
        if clip is not None:
            q, k, v = (jnp.clip(y, -clip, clip) for y in (q, k, v))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if rotation is None else (rotation.turn(q), rotation.turn(k), v)


class Block(nnx.Module):
    """x + attention(norm(x)), then + MLP(norm(.)); `BlockConfig` says what else a block can be.

    Blocks of all kinds have the same parameters; what else differs comes with each call.
    """

    def __init__(self, config: ModelConfig, key: Key):
        attn, mlp = split(key)
        # GPT-2's: the sum of 2L sublayers keeps the size of the residual stream.
        out_std = INIT_STD / (2 * config.depth) ** 0.5
        c, D = config.block, config.width
        before, behind = c.norms != "out", c.norms != "in"
        self.attn_norm = Norm(c.norm, D) if before else None
        self.attn = Attention(config, out_std, attn)
        self.attn_out_norm = Norm(c.norm, D) if behind else None
        self.mlp_norm = Norm(c.norm, D) if before and not c.shared_norm else None
        self.mlp = (MoE if c.mlp.moe.experts else MLP)(c.mlp, D, out_std, mlp)
        self.mlp_out_norm = Norm(c.norm, D) if behind else None
        self.attn_gain = nnx.Param(jnp.full(D, LAYER_SCALE)) if c.layer_scale else None
        self.mlp_gain = nnx.Param(jnp.full(D, LAYER_SCALE)) if c.layer_scale else None

    def __call__(
        self,
        x: Float[Array, "B T D"],
        kind: BlockConfig,
        mask: Mask,
        rotation: Rotation | None,
        edit: Edit,
        rounded: Rounded | None = None,
    ) -> tuple[Float[Array, "B T D"], Acts]:
        """The residual stream after the block, and all that it computed.

        Args:
          kind: this block's configuration.
          mask: the geometry of its attention.
          rotation: of queries and keys.
          edit: (site, activations) to edited activations.
          rounded: simulated quantization of the softmax.
        """
        attn = self.attn
        pre = edit("resid_pre", x)
        attn_in = edit("attn_in", _normed(self.attn_norm, pre))
        qkv = attn.qkv(attn_in, kind.attention.clip, rotation)
        q, k, v = (edit(site, x) for site, x in zip("qkv", qkv, strict=True))
        extra = attn.variant.extra()
        z = attend(
            q, k, v, mask, extra=extra, implementation=kind.attention.implementation,
            rounded=rounded,
        )
        z = edit("z", attn.variant.heads(z, attn_in))
        out = _normed(self.attn_out_norm, _kept(project(z, attn.out, "nhd", attn.out_bias)))
        attn_out = edit("attn_out", _scaled(out, kind.residual_scale, self.attn_gain))
        mid = edit("resid_mid", pre + attn_out)
        source = attn_in if kind.shared_norm else pre if kind.parallel else mid
        mlp_in = edit("mlp_in", _normed(self.mlp_norm, source))
        hidden, router = self.mlp.hidden(mlp_in, kind.mlp.activation)
        hidden = edit("mlp_hidden", hidden)
        out = _normed(self.mlp_out_norm, _kept(self.mlp.output(hidden, router)))
        mlp_out = edit("mlp_out", _scaled(out, kind.residual_scale, self.mlp_gain))
        post = edit("resid_post", mid + mlp_out)
        return post, Acts(
            pre, attn_in, q, k, v, extra, z, attn_out, mid, mlp_in, hidden, router, mlp_out, post,
            rotation, mask,
        )


def _normed(norm: Norm | None, x: jax.Array) -> jax.Array:
    return x if norm is None else norm(x)


def _scaled(x: jax.Array, scale: float, gain: nnx.Param | None) -> jax.Array:
    x = x if scale == 1 else x * scale
    return x if gain is None else x * sharded.broadcast(gain[...].astype(x.dtype), x)


def _kept(x: jax.Array) -> jax.Array:
    # Else XLA for GPUs copies the residual stream to have the product added to the copy, where the
    # norm that follows, which reads both, adds them for nothing.
    return jax.lax.optimization_barrier(x)
