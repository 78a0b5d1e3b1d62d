"""The data of a training run: the stream that its settings describe."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jax_massact import mesh as layout
from jax_massact.cache import cache_folder
from jax_massact.data.labelled import LabelledStream, open_labelled
from jax_massact.data.stream import Stream, open_stream
from jax_massact.errors import ConfigError
from jax_massact.train.config import TrainConfig
from jax_massact.train.rows import side_of

Rows = Callable[[int, int], np.ndarray]
"""`rows(lo, hi)`: rows lo to hi - 1 of a batch [B, T]."""


def open_batches(
    config: TrainConfig, report: Callable[[str], None] | None = None
) -> Stream | LabelledStream:
    """The data of a run; tokenized text is kept in the cache folder.

    Args:
      report: called with a line of text before anything that takes time.

    Raises:
      ConfigError: there is no such tokenizer, or it has more ids than the model.
      DataError: the source cannot be read, or is too short.
      ResourceError: a named resource cannot be fetched.
    """
    data, size = config.data, config.model.embed.vocab_size
    if config.model.embed.patches is not None:
        return open_labelled(
            data.source, side=side_of(config.model), view=data.view, seed=config.seed,
            batch_size=config.batch_size, report=report,
        )
    if data.vocabulary is not None and data.vocabulary > size:
        raise ConfigError(
            f"model.embed.vocab_size is {size}; expected with data.tokenizer={data.tokenizer}: at "
            f"least {data.vocabulary}"
        )
    return open_stream(
        data.source,
        tokenizer=data.tokenizer,
        seed=config.seed,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        same_first_token=data.same_first_token,
        text_field=data.text_field,
        special_tokens_as_text=data.special_tokens_as_text,
        cache=cache_folder() / "tokens",
        report=report,
    )


def place_rows(
    rows: Rows, shape: tuple[int, int, int], mesh: jax.sharding.Mesh
) -> jax.Array:
    """A batch on the devices, of which this process makes the rows that its own devices need.

    Args:
      rows: makes them; called once for each part of the batch, or once for all parts where this
        process needs every row.
      shape: [A, B / A, T], the batch in A parts one after the other.

    Returns:
      [A, B / A, T], spread over the mesh as activations are.
    """
    parts, size, _ = shape
    sharding = jax.sharding.NamedSharding(
        mesh, jax.sharding.PartitionSpec(None, *layout.LAYOUTS["bt"])
    )
    mine = [index[1].indices(size) for index in
            sharding.addressable_devices_indices_map(shape).values() if index is not None]
    lo, hi = min(start for start, _, _ in mine), max(stop for _, stop, _ in mine)
    if hi - lo == size:
        made = rows(0, parts * size).reshape(shape)
    else:
        made = np.stack([rows(part * size + lo, part * size + hi) for part in range(parts)])

    def shard(index: Any) -> np.ndarray:
        start, stop, _ = index[1].indices(size)
        return made[index[0], start - lo : stop - lo, index[2]]

    return jax.make_array_from_callback(shape, sharding, shard)
