"""What a block shows to taps: its activations, and the geometry of its attention."""

import dataclasses
from typing import NamedTuple

import jax
from jaxtyping import Array, Float

from jax_massact.nn.extra import Extra
from jax_massact.nn.mlp import Router
from jax_massact.nn.positions import Rotation
from jax_massact.nn.weigh import Softmax

# The places of a block that taps can read and edits can change, in the order of computation.
# `weights`, the softmax, is never whole in memory: `nn.attention.weights` computes it for a tap.
SITES = (
    "resid_pre", "attn_in", "q", "k", "v", "weights", "z", "attn_out", "resid_mid", "mlp_in",
    "mlp_hidden", "mlp_out", "resid_post",
)
# Those that are vectors at a token, which `Edits` can change.
EDITABLE = tuple(s for s in SITES if s not in ("q", "k", "v", "weights", "z"))


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Mask:
    """The geometry of one block's attention: which keys a query sees, and what it makes of them.

    Attributes:
      scale: factor on q.k.
      causal: whether a query sees only its own token and those before it.
      window: a query sees its own token and the `window - 1` before it; None: all.
      reach: only the first `reach` queries see the first extra key, one more each further one;
        None: all.
      softcap: logits become softcap * tanh(logits / softcap) before they are masked; None: not.
      slopes: of ALiBi, one for each query head: slope times distance is taken from the logits of
        real keys; None: nothing is.
      rounded_from: position of the first row, where slope times position is rounded to bfloat16 at
        every row and `scale` times the difference is taken (Falcon-RW); None: nothing is rounded.
      prefix: how many learned rows stand in front of the tokens.
      weigh: from logits to weights.
    """

    scale: float
    causal: bool = True
    window: int | None = None
    reach: int | None = None
    softcap: float | None = None
    slopes: tuple[float, ...] | None = None
    rounded_from: int | None = None
    prefix: int = 0
    weigh: Softmax = Softmax()


class Acts(NamedTuple):
    """What a block computed, after edits, for a tap to reduce. What no tap reads is never computed.

    Attributes:
      resid_pre: residual stream before the block.
      attn_in: the attention's input, norm(resid_pre).
      q, k, v: queries, keys and values, after their norms and rotary positions.
      extra: the extra keys of the attention variant, if it has any.
      z: the heads' results, before they are projected to the residual stream.
      attn_out: what attention adds to the residual stream.
      resid_mid: resid_pre + attn_out.
      mlp_in: the MLP's input, norm(resid_mid), or norm(resid_pre) in a parallel block.
      mlp_hidden: the MLP's activated units, where massive activations are written; of a mixture,
        those of each token's experts, one after another, then those of the shared expert.
      router: which experts serve each token, in the order of `mlp_hidden`; None without any.
      mlp_out: what the MLP adds.
      resid_post: resid_mid + mlp_out.
      rotation: by which queries and keys were turned; None: not at all.
      mask: the geometry of attention, static.
    """

    resid_pre: Float[Array, "B T D"]
    attn_in: Float[Array, "B T D"]
    q: Float[Array, "B T N H"]
    k: Float[Array, "B T K H"]
    v: Float[Array, "B T K H"]
    extra: Extra | None
    z: Float[Array, "B T N H"]
    attn_out: Float[Array, "B T D"]
    resid_mid: Float[Array, "B T D"]
    mlp_in: Float[Array, "B T D"]
    mlp_hidden: Float[Array, "B T F"]
    router: Router | None
    mlp_out: Float[Array, "B T D"]
    resid_post: Float[Array, "B T D"]
    rotation: Rotation | None
    mask: Mask

    def first(self, tokens: int) -> "Acts":
        """Those of the first tokens only."""
        if self.resid_pre.shape[1] == tokens:
            return self
        # Extra keys belong to no token, and the rotation has no sequences.
        of_tokens = jax.tree.map(
            lambda x: x[:, :tokens], self._replace(extra=None, rotation=None)
        )
        rotation = None if self.rotation is None else self.rotation.first(tokens)
        return of_tokens._replace(extra=self.extra, rotation=rotation)
