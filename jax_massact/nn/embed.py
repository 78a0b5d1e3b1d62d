"""From ids to the residual stream before the first block."""

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_massact.nn import sharded
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.norms import Norm


def embed(
    config: ModelConfig,
    tokens: Int[Array | np.ndarray, "B T"],
    table: nnx.Param,
    positions: nnx.Param | None,
    norm: Norm | None,
    prefix: nnx.Param | None,
) -> Float[Array, "B S D"]:
    """The embedded tokens, which are the last T of S, behind the learned rows in front.

    Args:
      table: one row for each id [V, D].
      positions: one row for each position [P, D], added to the tokens.
      norm: of their sum.
      prefix: rows in front [R, D]; they have no positions of their own (Sun et al. 2024).
    """
    tokens = sharded.constrain(jnp.asarray(tokens), "bt")
    x = sharded.take_rows(sharded.gathered(table[...], "vd"), tokens, out="btd")
    x = x.astype(config.dtype)
    if config.embed.scale != 1:
        # Rounded to the compute dtype first, as Gemma was trained.
        x = x * jnp.asarray(config.embed.scale, x.dtype)
    if positions is not None:
        first = config.first_position
        rows = sharded.gathered(positions[...], "pd")[first : first + tokens.shape[1]]
        x = x + sharded.broadcast(rows.astype(x.dtype), x)
    if norm is not None:
        x = norm(x)
    if prefix is None:
        return x
    front = sharded.gathered(prefix[...].astype(x.dtype), "rd")
    shape: tuple[int, ...] = (x.shape[0], *front.shape)
    front = sharded.constrain(jnp.broadcast_to(front, shape), "btd")
    return jnp.concatenate([front, x], axis=1)
