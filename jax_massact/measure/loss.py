"""The loss of next-token prediction, with or without edits of the residual stream."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_massact.nn.edits import Edits
from jax_massact.nn.fused.cross_entropy import cross_entropy
from jax_massact.nn.transformer import Transformer


def token_losses(
    model: Transformer, tokens: Int[Array | np.ndarray, "B T"], *, edits: Edits | None = None
) -> Float[Array, "B T-1"]:
    """-log p(token t + 1 | tokens up to t), in nats, float32.

    Pure; works under `jax.jit`, `jax.vmap` (also over `edits`: several interventions at once) and
    any mesh.

    Args:
      tokens: ids in [0, V), at least two in a sequence.
      edits: changes to the residual stream.

    Raises:
      ValueError: `tokens` does not have a shape or dtype that the model takes.
    """
    logits, _ = model(tokens, edits=edits)
    return losses_of(logits, tokens)


def losses_of(
    logits: Float[Array, "B T V"], tokens: Int[Array | np.ndarray, "B T"]
) -> Float[Array, "B T-1"]:
    """`token_losses` from logits."""
    return cross_entropy(logits[:, :-1], tokens[:, 1:])


def perplexity(
    model: Transformer, tokens: Int[Array | np.ndarray, "B T"], *, edits: Edits | None = None
) -> Float[Array, ""]:
    """exp of the mean of `token_losses` over all sequences and tokens."""
    return jnp.exp(token_losses(model, tokens, edits=edits).mean())
