"""The tokens of an image: their norms, the attention they get, how much patches are like others."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_massact.nn import sharded
from jax_massact.nn.acts import Acts
from jax_massact.nn.attention import weights
from jax_massact.nn.patches import Images, grid_of, project_patches
from jax_massact.nn.transformer import Transformer

# Patches whose attention is measured, evenly spread over the image: all would take as long as the
# attention itself.
QUERIES = 64
# An outlier patch: its norm is this far above the median of its image, and that many medians.
MADS, MEDIANS = 10.0, 2.0
_GAUSSIAN = 1.4826  # the standard deviation of a Gaussian, over its median absolute deviation


class TokenStats(NamedTuple):
    """One layer's tokens, in float32.

    Attributes:
      norm: L2 norm of resid_post over the dimensions, before the final norm.
      front: attention of each token in front (CLS, registers) to every token, mean over heads.
      patches: attention to every token, mean over heads and over QUERIES patches.
      extra: attention to extra keys, mean over heads: of each token in front, then of the patches.
    """

    norm: Float[Array, "L B S"]
    front: Float[Array, "L B F S"]
    patches: Float[Array, "L B S"]
    extra: Float[Array, "L B F+1"]


def outlier_patches(norm: Any, numbers: Any = jnp) -> Any:
    """Which patches of an image are outliers [... N]: norm > median + MADS x MAD, and > MEDIANS x
    median, of the image's patches.

    Args:
      norm: L2 norms of its patches [... N].
      numbers: `jax.numpy`, or `numpy` for arrays of the host.
    """
    median = numbers.median(norm, axis=-1, keepdims=True)
    mad = _GAUSSIAN * numbers.median(abs(norm - median), axis=-1, keepdims=True)
    return (norm > median + MADS * mad) & (norm > MEDIANS * median)


def query_patches(front: int, tokens: int) -> Int[np.ndarray, " Q"]:
    """The patches whose attention is measured, by their places among all tokens."""
    return np.linspace(front, tokens - 1, min(tokens - front, QUERIES)).round().astype(int)


def token_tap(acts: Acts):
    """Reduces one block's activations to its `TokenStats`, without the layer axis."""
    front, S = acts.mask.prefix, acts.resid_post.shape[1]
    index = jnp.asarray(np.concatenate([np.arange(front), query_patches(front, S)]))
    q, k = sharded.by_sequence(acts.q), sharded.by_sequence(acts.k)
    extra = jax.tree.map(sharded.whole, acts.extra)
    found = weights(q[:, index], k, acts.mask, extra=extra, queries=index)
    keys = found.keys.mean((1, 2))
    rest = jnp.zeros(keys.shape[:2]) if found.extra is None else found.extra.sum(-1).mean((1, 2))
    own = lambda x: (x[:, :front], x[:, front:].mean(1))
    (front_keys, patch_keys), (front_rest, patch_rest) = own(keys), own(rest)
    return TokenStats(
        norm=jnp.linalg.norm(acts.resid_post.astype(jnp.float32), axis=-1),
        front=front_keys,
        patches=patch_keys,
        extra=jnp.concatenate([front_rest, patch_rest[:, None]], axis=1),
    )


def neighbour_cosine(model: Transformer, images: Images) -> Float[Array, "B N"]:
    """Mean cosine of each embedded patch to those above, below, left and right of it.

    Before positions are added. Patches that look like their neighbours tell little of the image:
    outliers sit there (Darcet et al. 2024, section 2.1).
    """
    patches = model.config.embed.patches
    assert patches is not None and model.patches is not None
    x = project_patches(model.config, images, model.patches, model.patches_bias)
    rows, columns = grid_of(patches, images.shape)
    x = sharded.reshaped(sharded.by_sequence(x.astype(jnp.float32)), rows, columns, x.shape[-1])
    x = x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    total, number = jnp.zeros((rows, columns)), np.zeros((rows, columns))
    for axis, size in ((1, rows), (2, columns)):
        part = lambda start, axis=axis, size=size: jax.lax.slice_in_dim(
            x, start, start + size - 1, axis=axis
        )
        cosine = (part(0) * part(1)).sum(-1)
        for before in (0, 1):  # each pair belongs to both of its patches
            pads = [(0, 0)] * 3
            pads[axis] = (before, 1 - before)
            total = jnp.pad(cosine, pads) + total
            number += np.pad(np.ones((rows - (axis == 1), columns - (axis == 2))), pads[1:])
    return sharded.reshaped(total / np.maximum(number, 1).astype(np.float32), rows * columns)
