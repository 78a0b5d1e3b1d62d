"""What follows from logits, a few tokens at a time: [B T V] is never whole."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from jax_massact.nn.fused.cross_entropy import cross_entropy
from jax_massact.nn.transformer import Transformer

# Tokens of each sequence of a batch whose logits are computed at a time.
PIECE = 128


def in_pieces(function: Callable[..., Any], *arrays: Shaped[Array, "B T ..."]) -> Any:
    """`function` of PIECE tokens at a time: what it makes of [B PIECE ...] is [B PIECE ...]."""
    B, T = arrays[0].shape[:2]
    number = -(-T // PIECE)
    size = -(-T // number)

    def cut(x):
        wide = ((0, 0), (0, number * size - T), *((0, 0),) * (x.ndim - 2))
        return jnp.pad(x, wide).reshape(B, number, size, *x.shape[2:]).swapaxes(0, 1)

    found = jax.lax.map(lambda pieces: function(*pieces), tuple(map(cut, arrays)))
    join = lambda x: x.swapaxes(0, 1).reshape(B, number * size, *x.shape[3:])[:, :T]
    return jax.tree.map(join, found)


@jax.jit
def losses_in_pieces(
    back: Transformer, x: Float[Array, "B T D"], tokens: Int[Array, "B T"]
) -> Float[Array, "B T-1"]:
    """-log p(token t + 1 | tokens up to t), in nats, from the last residual stream.

    The logits [B T V] are never whole.
    """
    piece = lambda x, targets: cross_entropy(back.logits(x), targets)
    return in_pieces(piece, x[:, :-1], tokens[:, 1:])
