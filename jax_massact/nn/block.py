"""One pre-norm transformer block, and the activations it shows to taps."""

from typing import NamedTuple

import jax
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.config import ModelConfig
from jax_massact.nn.attention import Attention, attend
from jax_massact.nn.layers import MLP, Norm


class Acts(NamedTuple):
    """What a block computed, for a tap to reduce. What no tap reads is never computed.

    Attributes:
      resid_pre: residual stream before the block.
      normed: the attention's input, norm(resid_pre).
      q, k, v: queries, keys and values, after rotary positions.
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
    attn_out: Float[Array, "B T D"]
    resid_mid: Float[Array, "B T D"]
    mlp_out: Float[Array, "B T D"]
    resid_post: Float[Array, "B T D"]


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
        attn_out = self.attn.output(attend(q, k, v, window=self.attn.window))
        mid = x + attn_out
        mlp_out = self.mlp(self.mlp_norm(mid))
        post = mid + mlp_out
        return post, Acts(x, normed, q, k, v, attn_out, mid, mlp_out, post)
