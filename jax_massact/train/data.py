"""The data of a training run: the stream that its settings describe."""

from collections.abc import Callable

from jax_massact.data.stream import Stream, open_stream
from jax_massact.resources import cache_folder
from jax_massact.train.config import TrainConfig


def open_batches(config: TrainConfig, report: Callable[[str], None] | None = None) -> Stream:
    """The data of a run; tokenized text is kept in the cache folder.

    Args:
      report: called with a line of text before anything that takes time.

    Raises:
      ConfigError: there is no such tokenizer.
      DataError: the source cannot be read, or is too short.
      ResourceError: a named resource cannot be had.
    """
    data = config.data
    return open_stream(
        data.source,
        tokenizer=data.tokenizer,
        seed=config.seed,
        batch_size=config.batch_size,
        sequence_length=config.sequence_length,
        same_first_token=data.same_first_token,
        cache=cache_folder() / "tokens",
        report=report,
    )
