"""The loss of next-token prediction, with or without edits of the residual stream."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_massact.measure.padding import AttentionMask, is_real, unpad
from jax_massact.nn.edits import Edits
from jax_massact.nn.fused.cross_entropy import cross_entropy
from jax_massact.nn.pieces import losses_in_pieces
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer, check_head


def token_losses(
    model: Transformer | BlockSource,
    tokens: Int[Array | np.ndarray, "B T"],
    *,
    mask: AttentionMask | None = None,
    edits: Edits | None = None,
) -> Float[Array, "B T-1"]:
    """-log p(token t + 1 | tokens up to t), in nats, float32.

    Pure; works under `jax.jit`, `jax.vmap` (also over `edits`: several interventions at once) and
    any mesh. Of a model whose blocks are on disk, which `jax.jit` does not take, logits are never
    whole.

    Args:
      tokens: ids in [0, V), at least two in a sequence.
      mask: true or 1 for real tokens, 0 for padding on either side; each sequence is predicted as
        if it stood alone. The loss is 0 where padding, or a sequence's first token, would be
        predicted.
      edits: changes to the residual stream.

    Raises:
      ValueError: `tokens` or `mask` does not have a shape or dtype that the model takes.
    """
    if mask is None:
        return _losses(model, tokens, edits)
    batch = unpad(tokens, mask)
    real = is_real(batch.count - 1, tokens.shape[1] - 1)
    losses = jnp.where(real, _losses(model, batch.tokens, batch.edits(edits)), 0)
    # Back to where the predicted tokens stand; the first token of all is never one.
    place = lambda row, order: jnp.zeros_like(row, shape=tokens.shape[1]).at[order].set(row)
    return jax.vmap(place)(losses, batch.order[:, 1:])[:, 1:]


def _losses(model: Transformer | BlockSource, tokens: Any, edits: Any) -> Float[Array, "B T-1"]:
    if isinstance(model, BlockSource):
        check_head(model.config)
        x, _ = model.residual(tokens, edits=edits)
        return losses_in_pieces(model.back(), x, jnp.asarray(tokens))
    return losses_of(model(tokens, edits=edits)[0], tokens)


def losses_of(
    logits: Float[Array, "B T V"], tokens: Int[Array | np.ndarray, "B T"]
) -> Float[Array, "B T-1"]:
    """`token_losses` from logits."""
    return cross_entropy(logits[:, :-1], tokens[:, 1:])


def perplexity(
    model: Transformer | BlockSource,
    tokens: Int[Array | np.ndarray, "B T"],
    *,
    mask: AttentionMask | None = None,
    edits: Edits | None = None,
) -> Float[Array, ""]:
    """exp of the mean of `token_losses` over all predicted tokens.

    Args:
      mask: true or 1 for real tokens; padding is neither predicted nor seen.
    """
    losses = token_losses(model, tokens, mask=mask, edits=edits)
    if mask is None:
        return jnp.exp(losses.mean())
    return jnp.exp(losses.sum() / ((jnp.asarray(mask) != 0).sum(1) - 1).sum())
