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


def register_means(model: Transformer, images: Images) -> Float[Array, "L R D"]:
    """The mean over images of each register as it enters each block. Pure; float32.

    Raises:
      ConfigError: the model has no registers.
    """
    first = _first(model.config)
    last = first + model.config.registers
    tap = lambda acts: acts.resid_pre[:, first:last].astype(jnp.float32).mean(0)
    return model.residual(images, tap=tap)[1]


def fix_registers(
    config: ModelConfig, means: Float[Array, "L R D"], tokens: int
) -> VectorEdits:
    """Edits that set the registers to these vectors at every block's input (Sun et al. 2024,
    section 5.2).

    Args:
      tokens: of an image, CLS and registers included.

    Raises:
      ConfigError: the model has no registers.
    """
    first, (L, R, D) = _first(config), means.shape
    places = first + np.tile(np.arange(R), L)
    at = places[:, None, None] == np.arange(tokens)
    layer = jnp.repeat(jnp.arange(L, dtype=jnp.int32), R)
    return VectorEdits(layer, jnp.asarray(at), means.reshape(L * R, D), "resid_pre")


def fold_registers(model: Transformer, means: Float[Array, "L R D"]) -> Transformer:
    """The model without its registers, which are fixed to these vectors at every block's input.

    What is fixed gives every head of a block constant keys and values: R explicit biases k', v'
    each. All other tokens have the streams that they have under `fix_registers`, up to rounding.

    Raises:
      ConfigError: the model has no registers, or its attention is not standard.
    """
    config, patches = model.config, model.config.embed.patches
    first, R = _first(config), config.registers
    if config.block.attention.variant != "standard":
        raise ConfigError(
            f"the model's attention is {config.block.attention.variant!r}; expected: 'standard', "
            "to fold registers"
        )
    assert patches is not None
    rows, columns = (n * patches.size for n in patches.grid)
    blank = jnp.zeros((1, rows, columns, patches.channels), jnp.float32)
    tokens = rows_in_front(config) + patches.grid[0] * patches.grid[1]
    tap = lambda acts: (acts.k[0, first : first + R], acts.v[0, first : first + R])
    k, v = model.residual(blank, tap=tap, edits=fix_registers(config, means, tokens))[1]
    kept = {name: value for name, value in parameters(model).items() if name != "prefix"}
    extra = {"blocks.attn.variant.k": k, "blocks.attn.variant.v": v}
    folded = config.with_attention(variant="kv_bias", extra_keys=R)
    return from_parameters(dataclasses.replace(folded, registers=0), kept | extra)


def _first(config: ModelConfig) -> int:
    """The position of the first register."""
    patches = config.embed.patches
    if patches is None or not config.registers:
        raise ConfigError("the model has no registers; expected: an encoder of images with some")
    return int(patches.cls)
