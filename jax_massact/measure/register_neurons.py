"""Registers made at test time (Jiang et al. 2025, "Vision Transformers Don't Need Trained
Registers"): the MLP units that write outlier patches write to an appended token instead."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jax_massact.errors import ConfigError
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.edits import NOWHERE, MaxMoves, VectorEdits
from jax_massact.nn.patches import Images
from jax_massact.nn.transformer import Transformer, from_parameters, parameters
from jax_massact.nn.variants import rows_in_front


def unit_sums(
    model: Transformer, images: Images, at: Bool[Array, "B S"]
) -> Float[Array, "L F"]:
    """The sum over chosen tokens of |activation| of each MLP unit, after its nonlinearity. Pure.

    Divided by the number of tokens, all of them outlier patches, it is the score of section 3.2 by
    which register neurons are found.
    """
    def tap(acts):
        return jnp.einsum("btf,bt->f", jnp.abs(acts.mlp_hidden.astype(jnp.float32)),
                          at.astype(jnp.float32))

    return model.residual(images, tap=tap)[1]


def with_empty_register(model: Transformer) -> Transformer:
    """The model with one more register, which is zero and has no position.

    Attention is over sets: where the token stands does not matter.
    """
    config, own = model.config, parameters(model)
    zero = jnp.zeros((1, config.width), own["cls" if "cls" in own else "patches"].dtype)
    prefix = jnp.concatenate([own["prefix"], zero]) if "prefix" in own else zero
    config = dataclasses.replace(config, registers=config.registers + 1)
    return from_parameters(config, own | {"prefix": prefix})


def move_to_register(
    config: ModelConfig, layer: Int[Array, " E"], unit: Int[Array, " E"], tokens: int
) -> tuple[VectorEdits, MaxMoves]:
    """Edits of `with_empty_register`: each unit's largest activation over all tokens goes to the
    register, and the unit is 0 at all others (Jiang et al. 2025, section 4).

    Args:
      config: of the model with the register.
      layer: of the units, in blocks counted from 0.
      unit: of the units, in the layer's MLP.
      tokens: of an image, CLS and registers included.
    """
    place = rows_in_front(config) - 1
    # A norm in front of the first block, CLIP's, would make its bias of the zeros.
    empty = VectorEdits(
        jnp.zeros(1, jnp.int32), (jnp.arange(tokens) == place)[None, None],
        jnp.zeros((1, config.width)), "resid_pre",
    )
    return empty, MaxMoves(layer, unit, jnp.full_like(layer, place))


def without_units(layer: Int[Array, " E"], unit: Int[Array, " E"]) -> MaxMoves:
    """Edits that set these MLP units to 0 at every token."""
    return MaxMoves(layer, unit, jnp.full_like(layer, NOWHERE))


def register_keys(
    model: Transformer, images: Images, edits: Any
) -> tuple[Float[Array, "L B K H"], Float[Array, "L B K H"]]:
    """Keys and values of the last register under these edits, of each image. Pure; float32."""
    place = rows_in_front(model.config) - 1
    tap = lambda acts: tuple(x[:, place].astype(jnp.float32) for x in (acts.k, acts.v))
    return model.residual(images, tap=tap, edits=edits)[1]


def with_keys(
    model: Transformer, k: Float[Array, "L K H"], v: Float[Array, "L K H"]
) -> Transformer:
    """The model with one more, constant key and value in every head: k' and v' of the paper.

    Raises:
      ConfigError: the model's attention is not standard.
    """
    check_standard(model.config)
    config = model.config.with_attention(variant="kv_bias", extra_keys=1)
    dtype = parameters(model)["blocks.attn.k"].dtype
    extra = {"blocks.attn.variant.k": k[:, None].astype(dtype),
             "blocks.attn.variant.v": v[:, None].astype(dtype)}
    return from_parameters(config, parameters(model) | extra)


def check_standard(config: ModelConfig) -> None:
    """Raises ConfigError unless the attention is standard: there is room for one k', v' alone."""
    if (variant := config.block.attention.variant) != "standard":
        raise ConfigError(
            f"the model's attention is {variant!r}; expected: 'standard', to add k' and v'"
        )
