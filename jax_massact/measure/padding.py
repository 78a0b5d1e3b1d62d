"""Padded batches: the padding is moved behind the real tokens, where nothing real can see it.

A sequence is then measured as if it stood alone, whichever side its padding was on: its first
real token has position 0, and attention, being causal, never reaches what lies behind. What
LongRoPE chooses by length it chooses by that of the padded batch.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from jax_massact.nn import sharded
from jax_massact.nn.edits import Edit, known

Tokens = Int[Array | np.ndarray, "B T"]
# As tokenizers give it: true, or 1, for real tokens.
AttentionMask = Bool[Array | np.ndarray, "B T"] | Int[Array | np.ndarray, "B T"]


class Unpadded(NamedTuple):
    """Sequences whose real tokens come first.

    Attributes:
      tokens: the real ids of each sequence, then its first real id again up to T.
      order: where each of these stood in the padded sequence.
      count: how many are real.
    """

    tokens: Int[Array, "B T"]
    order: Int[Array, "B T"]
    count: Int[Array, " B"]

    def order_of(self, length: int) -> Int[Array, "B S"]:
        """`order` of the `length` tokens of the `Acts`, which begin with the learned rows."""
        rows = length - self.order.shape[1]
        shifted = jnp.pad(self.order + rows, ((0, 0), (rows, 0)))
        return jnp.where(jnp.arange(length) < rows, jnp.arange(length), shifted)

    def count_of(self, length: int) -> Int[Array, " B"]:
        """`count` of the tokens of the `Acts`."""
        return self.count + (length - self.order.shape[1])

    def edits(self, edits: Edit | Sequence[Edit] | None) -> Sequence[Edit]:
        """Edits of the padded sequences as edits of these."""
        if edits is None:
            return ()
        many = edits if isinstance(edits, Sequence) else (edits,)
        return [edit.reordered(self.order_of) for edit in many]

    def place(self, position: Int[Array, "B k"], length: int) -> Int[Array, "B k"]:
        """Positions among the `length` tokens of the `Acts` as positions in the padded ones."""
        return in_order(self.order_of(length), position)


def unpad(tokens: Tokens, mask: AttentionMask) -> Unpadded:
    """The sequences with their padding moved behind the real tokens.

    Raises:
      ValueError: the mask is not one of 0 and 1 for each token, or leaves a sequence without one.
    """
    if jnp.shape(mask) != tokens.shape or jnp.issubdtype(jnp.asarray(mask).dtype, jnp.inexact):
        raise ValueError(
            f"mask has shape {jnp.shape(mask)} and dtype {jnp.asarray(mask).dtype}; expected: "
            f"{tokens.shape}, as the tokens, true or 1 for real tokens and 0 for padding"
        )
    if known(mask):
        values = np.asarray(mask)
        if not np.isin(values, (0, 1)).all():
            raise ValueError(
                f"mask holds {values[~np.isin(values, (0, 1))][0]}; expected: 1 (or true) for "
                "real tokens and 0 for padding"
            )
        if not values.any(1).all():
            raise ValueError(
                f"sequence {int(np.argmin(values.any(1)))} has no real token by its mask; "
                "expected: one or more"
            )
    tokens, mask = (sharded.by_sequence(jnp.asarray(x)) for x in (tokens, mask))
    real = mask != 0
    order = jnp.argsort(~real, axis=1, stable=True).astype(jnp.int32)
    count = real.sum(1, dtype=jnp.int32)
    moved = in_order(tokens, order)
    # A padding id may be one that the model does not have.
    moved = jnp.where(is_real(count, tokens.shape[1]), moved, moved[:, :1])
    return Unpadded(moved, order, count)


def in_order(x: Shaped[Array, "B T"], order: Int[Array, "B k"]) -> Shaped[Array, "B k"]:
    """x[b, order[b, i]]."""
    x, order = sharded.by_sequence(jnp.asarray(x)), sharded.by_sequence(order)
    return jax.vmap(lambda row, order: row[order])(x, order)


def is_real(count: Int[Array, " B"], length: int) -> Bool[Array, "B T"]:
    """The first `count` of `length` tokens."""
    return jnp.arange(length) < count[:, None]


def without_padding(
    x: Float[Array, "B T D"], count: Int[Array, " B"] | None
) -> Float[Array, "B T D"]:
    """`x` with 0 at all but the first `count` tokens; None: `x`."""
    return x if count is None else jnp.where(is_real(count, x.shape[1])[..., None], x, 0)
