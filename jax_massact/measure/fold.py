"""The bias made explicit: fixed first tokens as k' and v', and the tokens dropped."""

import dataclasses
from typing import TypeVar, cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jax_massact.errors import ConfigError
from jax_massact.nn.acts import Acts
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.stream import Altered, BlockSource
from jax_massact.nn.transformer import Transformer, from_parameters, parameters


def check_foldable(config: ModelConfig) -> None:
    """Raises ConfigError unless the attention is standard: there is room for folded keys alone."""
    variant = config.block.attention.variant
    if variant != "standard":
        raise ConfigError(
            f"the model's attention is {variant!r}; expected: 'standard', to fold a token"
        )
    for kind in config.pattern:
        if kind.attention.slopes is not None:
            raise ConfigError(
                "the model has ALiBi, by which each query sees the first token at a distance of "
                "its own; expected: a model whose logits do not depend on distance, to fold a token"
            )


M = TypeVar("M", Transformer, BlockSource, Transformer | BlockSource)


def fold(
    model: M, first_token: int | Int[Array, ""] | Int[Array, " R"]
) -> M:
    """A model without its first token, or its first R tokens.

    What stands first sees nothing but itself, so its keys and values are constants of the model;
    every later token meets them as softmax(q [K^T k'] / sqrt(H)) [V; v'^T], which is the paper's
    equation 3 with k' and v' that were learned by themselves. k' is the key after its rotary
    phase, and the folded model counts positions from R further on (`first_position`). With a
    window, queries that are out of a token's reach do not see its k' (`bias_position`).

    `fold(model, t)(tokens)` gives the logits that `model([t, *tokens])` gives after its first.

    Args:
      model: with standard attention; in memory, or with its blocks on disk. The folded model
        shares its parameters, outside of `jax.jit`.
      first_token: id of the token that stands first in every sequence, or of several [R].

    Raises:
      ConfigError: the attention is not standard: there is room for the folded keys alone; or it
        depends on distances (ALiBi).
    """
    config = model.config
    check_foldable(config)
    tokens = jnp.atleast_1d(jnp.asarray(first_token, jnp.int32))[None]
    R = tokens.shape[1]
    folded = dataclasses.replace(
        config.with_attention(variant="kv_bias", extra_keys=R),
        first_position=config.first_position + R,
        bias_position=config.first_position,
    )
    # [L 1 R K H]
    if isinstance(model, BlockSource):
        k, v = model.residual(tokens, tap=_keys_and_values)[1]
    else:
        k, v = _found(model, tokens)
    more = {"blocks.attn.variant.k": k[:, 0], "blocks.attn.variant.v": v[:, 0]}
    if isinstance(model, BlockSource):
        return cast(M, Altered(model, folded, more=more))
    return from_parameters(folded, parameters(model) | more)


def _keys_and_values(acts: Acts) -> tuple[jax.Array, jax.Array]:
    return acts.k, acts.v


@jax.jit
def _found(model: Transformer, tokens: Int[Array, "1 R"]) -> tuple[jax.Array, jax.Array]:
    return model.residual(tokens, tap=_keys_and_values)[1]
