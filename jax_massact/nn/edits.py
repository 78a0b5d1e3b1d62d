"""Interventions on the residual stream, as arrays: one compilation serves all of a shape."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Edits(NamedTuple):
    """Sets or scales single dimensions of `resid_post`: h[b, t, dim] = scale * h[b, t, dim] + add.

    Edits of the same place are applied in order. All fields are arrays, so a caller can `vmap` over
    many interventions, or change them without compiling again.

    Attributes:
      layer: after which block, from 0; an edit whose layer the model lacks does nothing.
      tokens: at which tokens; [E, B, T], or [E, 1, T] for every sequence alike.
      dim: which dimension.
      scale: 0 to set a value, 1 to add to it.
      add: the value, in the units of the residual stream; [E], or [E, B, T] for one per token.
    """

    layer: Int[Array, " E"]
    tokens: Bool[Array, "E B T"]
    dim: Int[Array, " E"]
    scale: Float[Array, " E"]
    add: Float[Array, "..."]

    @classmethod
    def set_to(cls, layer, tokens, dim, value) -> "Edits":
        """Edits that set h[b, t, dim] = value at the masked tokens after block `layer`.

        A mask may leave out its first axes: [T] for every edit and sequence alike, [E, T] for every
        sequence alike.
        """
        layer = jnp.atleast_1d(jnp.asarray(layer, jnp.int32))
        tokens = jnp.atleast_2d(jnp.asarray(tokens, bool))
        tokens = tokens[:, None] if tokens.ndim == 2 else tokens
        tokens = jnp.broadcast_to(tokens, layer.shape + tokens.shape[1:])
        dim = jnp.broadcast_to(jnp.asarray(dim, jnp.int32), layer.shape)
        value = jnp.asarray(value, jnp.float32)
        add = jnp.broadcast_to(value, layer.shape) if value.ndim < 2 else value
        return cls(layer, tokens, dim, jnp.zeros(layer.shape, jnp.float32), add)


def apply_edits(
    x: Float[Array, "B T D"], edits: Edits, layer: Int[Array, ""]
) -> Float[Array, "B T D"]:
    """The residual stream `x` after block `layer`, with that layer's edits made."""

    def one(x, edit: Edits):
        column = jax.lax.dynamic_slice_in_dim(x, edit.dim, 1, axis=2)
        scale, add = edit.scale.astype(x.dtype), jnp.asarray(edit.add).astype(x.dtype)
        changed = scale * column + (add[..., None] if add.ndim else add)
        # Scaling by zero keeps NaN and infinity; setting must not.
        changed = jnp.where(scale == 0, add[..., None] if add.ndim else add, changed)
        here = edit.tokens[..., None] & (edit.layer == layer)
        column = jnp.where(here, changed, column)
        return jax.lax.dynamic_update_slice_in_dim(x, column, edit.dim, axis=2), None

    return jax.lax.scan(one, x, edits)[0]

