"""Activations between ordinary and massive: constants, those of single tokens, who writes them.

Sun et al. (2024), section 6, leave them open: "it would be valuable to see work that investigates
these medium-scale activations".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_massact.nn.acts import Acts


class MediumSums(NamedTuple):
    """Sums over the tokens of a batch; float32, to be added up in float64.

    Attributes:
      over: how many magnitudes are above `low`.
      hits: how many are between `low` and `high`.
      value, square: of h and h^2.
      hit_value, hit_square: of those of the hits.
      attn, mlp: of what attention and MLP add.
      hidden: of the MLP's units.
    """

    over: Float[Array, " D"]
    hits: Float[Array, " D"]
    value: Float[Array, " D"]
    square: Float[Array, " D"]
    hit_value: Float[Array, " D"]
    hit_square: Float[Array, " D"]
    attn: Float[Array, " D"]
    mlp: Float[Array, " D"]
    hidden: Float[Array, " F"]


def medium_tap(acts: Acts, keep: Bool[Array, " B"], low: float, high: float) -> MediumSums:
    """Reduces one block's residual stream, and what its sublayers add to it.

    Args:
      keep: the sequences that count.
      low, high: between which magnitudes an activation is of medium scale.
    """
    total = lambda x: jnp.where(keep[:, None, None], x.astype(jnp.float32), 0).sum((0, 1))
    h = acts.resid_post.astype(jnp.float32)
    size = jnp.abs(h)
    hit = (size > low) & (size < high)
    return MediumSums(
        over=total(size > low),
        hits=total(hit),
        value=total(h),
        square=total(jnp.square(h)),
        hit_value=total(jnp.where(hit, h, 0)),
        hit_square=total(jnp.where(hit, jnp.square(h), 0)),
        attn=total(acts.attn_out),
        mlp=total(acts.mlp_out),
        hidden=total(acts.mlp_hidden),
    )


class Written(NamedTuple):
    """What one block adds to chosen dimensions at chosen tokens; sums over them.

    Attributes:
      attn, mlp: of what attention and MLP add.
      hidden: of the MLP's units.
    """

    attn: Float[Array, " N"]
    mlp: Float[Array, " N"]
    hidden: Float[Array, "N F"]


def written_tap(acts: Acts, dims: Int[Array, " N"], tokens: Bool[Array, "N B T"]) -> Written:
    """Reduces one block to what it adds to dimension n at the tokens of n."""
    chosen = tokens.astype(jnp.float32)

    def total(x):
        columns = jnp.moveaxis(x.astype(jnp.float32)[..., dims], -1, 0)
        return (chosen * columns).sum((1, 2))

    hidden = jnp.einsum("nbt,btf->nf", chosen, acts.mlp_hidden.astype(jnp.float32),
                        precision=jax.lax.Precision.HIGHEST)
    return Written(total(acts.attn_out), total(acts.mlp_out), hidden)
