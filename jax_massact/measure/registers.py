"""Registers as biases: their mean at every block, and what stands for them once they are fixed."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_massact.errors import ConfigError
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.edits import VectorEdits
from jax_massact.nn.patches import Images
from jax_massact.nn.transformer import Transformer, from_parameters, parameters
from jax_massact.nn.variants import rows_in_front


def registers_of(model: Transformer, images: Images) -> Float[Array, "L B R D"]:
    """The registers of each image as they enter each block. Pure; float32.

    Raises:
      ConfigError: the model has no registers.
    """
    first, R = _place(model.config)
    tap = lambda acts: acts.resid_pre[:, first : first + R].astype(jnp.float32)
    return model.residual(images, tap=tap)[1]


def register_means(model: Transformer, images: Images) -> Float[Array, "L R D"]:
    """The mean over images of each register as it enters each block. Pure; float32.

    Raises:
      ConfigError: the model has no registers.
    """
    return registers_of(model, images).mean(1)


def fix_registers(
    config: ModelConfig, values: Float[Array | np.ndarray, "L *B R D"], tokens: int
) -> VectorEdits:
    """Edits that set the registers to these vectors at every block's input (Sun et al. 2024,
    section 5.2).

    Args:
      values: the same for all images, or for each its own.
      tokens: of an image, CLS and registers included.

    Raises:
      ConfigError: the model has no registers.
    """
    first, _ = _place(config)
    L, R, D = values.shape[0], *values.shape[-2:]
    places = first + np.tile(np.arange(R), L)
    at = places[:, None, None] == np.arange(tokens)
    layer = jnp.repeat(jnp.arange(L, dtype=jnp.int32), R)
    rows = jnp.moveaxis(jnp.asarray(values), -2, 1)
    # One token's vector serves all: the mask says where it is set.
    shape = (L * R, *((rows.shape[2], 1) if rows.ndim == 4 else ()), D)
    return VectorEdits(layer, jnp.asarray(at), rows.reshape(shape), "resid_pre")


def fold_registers(model: Transformer, means: Float[Array, "L R D"]) -> Transformer:
    """The model without its registers, which are fixed to these vectors at every block's input.

    What is fixed gives every head of a block constant keys and values: R explicit biases k', v'
    each. All other tokens have the streams that they have under `fix_registers`, up to rounding.

    Raises:
      ConfigError: the model has no registers, or its attention is not standard.
    """
    config, patches = model.config, model.config.embed.patches
    check_foldable_registers(config)
    assert patches is not None
    first, R = _place(config)
    rows, columns = (n * patches.size for n in patches.grid)
    blank = jnp.zeros((1, rows, columns, patches.channels), jnp.float32)
    tokens = rows_in_front(config) + patches.grid[0] * patches.grid[1]
    tap = lambda acts: (acts.k[0, first : first + R], acts.v[0, first : first + R])
    k, v = model.residual(blank, tap=tap, edits=fix_registers(config, means, tokens))[1]
    kept = {name: value for name, value in parameters(model).items() if name != "prefix"}
    extra = {"blocks.attn.variant.k": k, "blocks.attn.variant.v": v}
    folded = config.with_attention(variant="kv_bias", extra_keys=R)
    return from_parameters(dataclasses.replace(folded, registers=0), kept | extra)


def check_foldable_registers(config: ModelConfig) -> None:
    """Raises ConfigError unless the model has registers, and room for their keys alone."""
    _place(config)
    if (variant := config.block.attention.variant) != "standard":
        raise ConfigError(
            f"the model's attention is {variant!r}; expected: 'standard', to fold registers"
        )


def _place(config: ModelConfig) -> tuple[int, int]:
    """The position of the first register, and their number; a sink token is one of them."""
    patches = config.embed.patches
    cls = patches is not None and patches.cls
    number = rows_in_front(config) - cls
    if patches is None or not number:
        raise ConfigError("the model has no registers; expected: an encoder of images with some")
    return int(cls), number
