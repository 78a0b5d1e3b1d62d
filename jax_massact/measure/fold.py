"""The bias made explicit: a fixed first token as k' and v', and the token dropped."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Int

from jax_massact.errors import ConfigError
from jax_massact.nn.transformer import Transformer, from_parameters, parameters


def fold(model: Transformer, first_token: int | Int[jax.Array, ""]) -> Transformer:
    """A model without its first token: the token's keys and values as explicit k' and v'.

    The first token sees itself alone, so its keys and values are constants of the model; every
    later token meets them as softmax(q [K^T k'] / sqrt(H)) [V; v'^T], which is the paper's
    equation 3 with k' and v' that were learned by themselves. k' is the key after its rotary
    phase, and the folded model counts positions from one further on (`first_position`). With a
    sliding window, queries that are out of the token's reach do not see k' (`bias_position`).

    `fold(model, t)(tokens)` gives the logits that `model([t, *tokens])` gives after its first.

    Args:
      model: with standard attention.
      first_token: id of the token that stands first in every sequence.

    Raises:
      ConfigError: the attention is not standard: there is room for one extra key only.
    """
    config = model.config
    if config.attention != "standard":
        raise ConfigError(
            f"the model's attention is {config.attention!r}; allowed for folding: 'standard'"
        )
    tokens = jnp.asarray(first_token, jnp.int32).reshape(1, 1)
    # [L 1 1 K H]
    k, v = model.residual(tokens, tap=lambda acts: (acts.k, acts.v))[1]
    params = parameters(model)
    params |= {"blocks.attn.variant.k": k[:, 0, 0], "blocks.attn.variant.v": v[:, 0, 0]}
    folded = dataclasses.replace(
        config,
        attention="kv_bias",
        first_position=config.first_position + 1,
        bias_position=config.first_position,
    )
    return from_parameters(folded, params)
