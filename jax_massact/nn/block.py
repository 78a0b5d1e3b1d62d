"""One pre-norm transformer block, and the activations it shows to taps."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.nn.attention import attend
from jax_massact.nn.config import INIT_STD, ImplementationKind, ModelConfig
from jax_massact.nn.extra import Extra, extra_reach
from jax_massact.nn.layers import (
    MLP,
    Norm,
    linear,
    rotate,
)
from jax_massact.nn.variants import VARIANTS


class Acts(NamedTuple):
    """What a block computed, for a tap to reduce. What no tap reads is never computed.

    Attributes:
      resid_pre: residual stream before the block.
      normed: the attention's input, norm(resid_pre).
      q, k, v: queries, keys and values, after rotary positions.
      extra: the extra key of the attention variant, if it has one.
      z: the heads' results, before they are projected to the residual stream.
      attn_out: what attention adds to the residual stream.
      resid_mid: resid_pre + attn_out.
      mlp_out: what the MLP adds.
      resid_post: resid_mid + mlp_out, after edits.
    """

    resid_pre: Float[Array, "B T D"]
    normed: Float[Array, "B T D"]
    q: Float[Array, "B T N H"]
    k: Float[Array, "B T K H"]
    v: Float[Array, "B T K H"]
    extra: Extra | None
    z: Float[Array, "B T N H"]
    attn_out: Float[Array, "B T D"]
    resid_mid: Float[Array, "B T D"]
    mlp_out: Float[Array, "B T D"]
    resid_post: Float[Array, "B T D"]

    def first(self, tokens: int) -> "Acts":
        """Those of the first tokens only."""
        if self.resid_pre.shape[1] == tokens:
            return self
        # The extra key belongs to no token.
        of_tokens = jax.tree.map(lambda x: x[:, :tokens], self._replace(extra=None))
        return of_tokens._replace(extra=self.extra)


class Attention(nnx.Module):
    """Projections to queries, keys and values, and back to the residual stream."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        D, N, K, H = config.width, config.num_heads, config.num_kv_heads, config.head_dim
        keys = jax.random.split(key, 5)
        self.window = config.sliding_window
        self.reach = extra_reach(config)
        self.implementation: ImplementationKind | None = config.implementation
        self.pairs = config.rope.pairs
        self.q = nnx.Param(INIT_STD * jax.random.normal(keys[0], (D, N, H)))
        self.k = nnx.Param(INIT_STD * jax.random.normal(keys[1], (D, K, H)))
        self.v = nnx.Param(INIT_STD * jax.random.normal(keys[2], (D, K, H)))
        # GPT-2's: the sum of 2L sublayers keeps the size of the residual stream.
        out_std = INIT_STD / (2 * config.depth) ** 0.5
        self.out = nnx.Param(out_std * jax.random.normal(keys[3], (N, H, D)))
        self.q_bias = nnx.Param(jnp.zeros((N, H))) if config.qkv_bias else None
        self.k_bias = nnx.Param(jnp.zeros((K, H))) if config.qkv_bias else None
        self.v_bias = nnx.Param(jnp.zeros((K, H))) if config.qkv_bias else None
        self.out_bias = nnx.Param(jnp.zeros(D)) if config.attn_out_bias else None
        self.variant = VARIANTS[config.attention](config, keys[4])

    def project(
        self, x: Float[Array, "B T D"], angles: Float[Array, "T H/2"] | None
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Queries [B T N H], keys and values [B T K H]; queries and keys rotated by `angles`."""
        q, k, v = (
            linear("btd,dnh->btnh", x, weight, bias, w="qkv_dnh", out="act_btnh")
            for weight, bias in zip(
                (self.q, self.k, self.v), (self.q_bias, self.k_bias, self.v_bias), strict=True
            )
        )
        if angles is not None:
            q, k = rotate(q, angles, self.pairs), rotate(k, angles, self.pairs)
        return q, k, v

    def mix(
        self, q: jax.Array, k: jax.Array, v: jax.Array, normed: Float[Array, "B T D"]
    ) -> tuple[Float[Array, "B T N H"], Extra | None]:
        """The heads' results, and the extra key of this block's variant."""
        extra = self.variant.extra()
        z = attend(
            q, k, v, window=self.window, extra=extra, reach=self.reach,
            implementation=self.implementation,
        )
        return self.variant.heads(z, normed), extra

    def output(self, z: Float[Array, "B T N H"]) -> Float[Array, "B T D"]:
        """The heads' results summed into the residual stream."""
        return linear("btnh,nhd->btd", z, self.out, self.out_bias, w="out_nhd", out="act_btd")


class Block(nnx.Module):
    """x + attention(norm(x)), then + MLP(norm(.))."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        attn, mlp = jax.random.split(key)
        self.attn_norm = Norm(config)
        self.attn = Attention(config, attn)
        self.mlp_norm = Norm(config)
        self.mlp = MLP(config, mlp)

    def __call__(
        self, x: Float[Array, "B T D"], angles: Float[Array, "T H/2"] | None
    ) -> tuple[Float[Array, "B T D"], Acts]:
        normed = self.attn_norm(x)
        q, k, v = self.attn.project(normed, angles)
        z, extra = self.attn.mix(q, k, v, normed)
        attn_out = _whole(self.attn.output(z))
        mid = x + attn_out
        mlp_out = _whole(self.mlp(self.mlp_norm(mid)))
        post = mid + mlp_out
        return post, Acts(x, normed, q, k, v, extra, z, attn_out, mid, mlp_out, post)


def _whole(x: jax.Array) -> jax.Array:
    # Else XLA for GPUs copies the residual stream to have the product added to the copy, where the
    # norm that follows, which reads both, adds them for nothing.
    return jax.lax.optimization_barrier(x)
