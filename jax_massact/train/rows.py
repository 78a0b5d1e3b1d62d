"""The rows of a batch: token ids, or the bytes of an image and its label; inputs and targets."""

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from jax_massact.data.labelled import LABEL_BYTES, pack
from jax_massact.nn import sharded
from jax_massact.nn.config import ModelConfig
from jax_massact.train.config import TrainConfig


def side_of(model: ModelConfig) -> int:
    """Pixels of the side of the images that an encoder is trained on."""
    patches = model.embed.patches
    assert patches is not None
    return patches.size * patches.grid[0]


def row_shape(config: TrainConfig) -> tuple[int, Any]:
    """Length and dtype of a row."""
    patches = config.model.embed.patches
    if patches is None:
        return config.sequence_length + 1, jnp.int32
    return side_of(config.model) ** 2 * patches.channels + LABEL_BYTES, jnp.uint8


def split_rows(model: ModelConfig, rows: Array) -> tuple[Array, Int[Array, "B T"]]:
    """What the model takes, and its targets: of an image its class alone, T = 1."""
    patches = model.embed.patches
    if patches is None:
        return rows[:, :-1], rows[:, 1:]
    side, channels = side_of(model), patches.channels
    images = sharded.reshaped(rows[:, :-LABEL_BYTES], side, side, channels)
    low, high = (rows[:, i - LABEL_BYTES].astype(jnp.int32) for i in range(LABEL_BYTES))
    return images, (low + 256 * high)[:, None]


def logits_of(model: ModelConfig, logits: Array) -> Array:
    """The logits for `split_rows`' targets, [B T V]: an image has one set."""
    return logits if model.embed.patches is None else jnp.expand_dims(logits, 1)


def random_rows(config: TrainConfig, rng: np.random.Generator) -> np.ndarray:
    """A batch of random rows, to measure on."""
    length, dtype = row_shape(config)
    size, most = config.batch_size, config.model.embed.vocab_size
    if dtype == jnp.int32:
        return rng.integers(0, most, (size, length), dtype=np.int32)
    labels = rng.integers(0, most, size)
    pixels = rng.integers(0, 256, (size, length - LABEL_BYTES), dtype=np.uint8)
    return np.stack([pack(*row) for row in zip(pixels, map(int, labels), strict=True)])

