"""Rotary pairs: from the order of LLaMA's GGUF files to that of Hugging Face's."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_massact.nn.transformer import Transformer, from_parameters, parameters

# All that a query or a key is made of; k' of the attention variants is multiplied with queries.
_ROTATED = tuple(
    f"blocks.attn.{name}" for name in ("q", "k", "q_bias", "k_bias", "variant.k")
)


def with_halves(model: Transformer) -> Transformer:
    """The same function of the tokens, with coordinates (i, i+H/2) of a head turning together.

    The coordinates of queries and keys change places, both alike, which leaves q k^T as it was.
    Values have no order of their own and keep theirs.
    """
    config = model.config
    if config.position != "rope" or config.rope.pairs == "halves":
        return model
    arrays = {
        name: pairs_to_halves(array) if name in _ROTATED else array
        for name, array in parameters(model).items()
    }
    rope = dataclasses.replace(config.rope, pairs="halves")
    return from_parameters(dataclasses.replace(config, rope=rope), arrays)


@jax.jit
def pairs_to_halves(array: Float[Array, "*B H"]) -> Float[Array, "*B H"]:
    """Coordinates 0, 2, 4, ... of each head, then 1, 3, 5, ..."""
    return jnp.concatenate([array[..., 0::2], array[..., 1::2]], axis=-1)
