"""The rows that a training run held out: the text on which its model is studied."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from jaxtyping import Int

from jax_massact.data.images import Pictures
from jax_massact.data.labelled import LabelledStream, unpack
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import ConfigError, DataError, UserError
from jax_massact.settings import from_mapping
from jax_massact.train.config import TrainConfig
from jax_massact.train.data import open_batches
from jax_massact.train.loop import CONFIG, SUMMARY
from jax_massact.train.rows import side_of


class HeldOut(NamedTuple):
    """Rows of a run's validation.

    Attributes:
      tokens: different rows; fewer than asked for where the held-out data has no more.
      tokenizer: the run's own.
      source: where they are from, in words.
      bos: whether every row begins with the same first token.
      scored_from: the first position whose prediction is scored, as in training.
    """

    tokens: Int[np.ndarray, "S T"]
    tokenizer: Tokenizer
    source: str
    bos: bool
    scored_from: int = 0

    @property
    def description(self) -> str:
        """Where they are from, and which predictions are scored, in words."""
        start = self.scored_from
        return self.source + (f", predictions scored from position {start} on" if start else "")


def run_file(folder: Path, name: str) -> dict[str, Any]:
    """What a run left in one of its JSON files.

    Raises:
      UserError: there is no such file, or it cannot be read.
    """
    path = folder / name
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {name}; expected: the --workdir of a finished massact train"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None


def run_config(folder: Path) -> TrainConfig:
    """The settings of the run in this folder.

    Raises:
      UserError: they cannot be read, or are not those of a run.
    """
    try:
        return from_mapping(TrainConfig, run_file(folder, CONFIG))
    except ConfigError as error:
        raise ConfigError(f"{folder / CONFIG}: {error}") from None


def held_out(folder: Path, config: TrainConfig, count: int) -> HeldOut:
    """The first `count` rows of a run's validation, of the run's own sequence length.

    Raises:
      UserError: the data of the run cannot be read any more, or has changed since.
    """
    stream = open_batches(config)
    if isinstance(stream, LabelledStream):
        raise DataError(f"{folder} is a run on images; expected: a run on text")
    _check_unchanged(folder, stream.digests)
    return HeldOut(
        tokens=_different(stream.validation(0, count)[:, :-1]),
        tokenizer=stream.tokenizer or _nameless(stream.vocab_size),
        source=f"validation rows of {stream.description}",
        bos=stream.first_token is not None,
        scored_from=config.loss_from,
    )


def pictures_of(folder: Path, count: int) -> Pictures:
    """The first pictures that the run of an encoder held out, as it saw them.

    Raises:
      DataError: they cannot be read any more, or have changed since.
    """
    config = run_config(folder)
    other = "--config.images=FOLDER, or any other pictures, are measured instead"
    try:
        stream = open_batches(config)
        assert isinstance(stream, LabelledStream)
        _check_unchanged(folder, stream.digests)
    except UserError as error:
        raise DataError(
            f"the pictures of {folder} are those that the run held out, which cannot be read: "
            f"{error}. {other}"
        ) from None
    count = min(count, stream.validation_size)
    images, labels = unpack(stream.validation(0, count), side_of(config.model))
    return Pictures(
        f"validation pictures of {stream.description}", list(images),
        [f"picture {i}" for i in range(count)], labels.tolist(), stream.classes,
    )


def sequences_of(folder: Path, *, count: int, length: int | None, bos: str) -> HeldOut:
    """Rows that a run held out, as a study of its model asks for them.

    Args:
      folder: of the run.
      count: how many.
      length: tokens in each; None: as the run was trained.
      bos: `false`: rows that begin with the run's first token do so no more; `auto`: they do.

    Raises:
      UserError: the data of the run cannot be read any more or has changed, or has no such rows.
    """
    config = run_config(folder)
    other = "--config.text=help-3.11, or any other text, is measured instead"
    try:
        found = held_out(folder, config, count)
    except UserError as error:
        raise DataError(
            f"the text of {folder} is the data that the run held out, which cannot be read: "
            f"{error}. {other}"
        ) from None
    if bos == "true" and not found.bos:
        raise DataError(
            f"bos is 'true', but {folder} was trained without a first token; expected: auto or "
            f"false. {other}"
        )
    if bos == "false" and found.bos:
        left = max(0, found.scored_from - 1)
        found = found._replace(tokens=found.tokens[:, 1:], bos=False, scored_from=left)
    longest = found.tokens.shape[1]
    if length is not None and length > longest:
        raise DataError(
            f"sequence_length is {length}; expected: at most {longest}, since {folder} was trained "
            f"on rows of {config.sequence_length} tokens. {other}"
        )
    return found._replace(tokens=found.tokens[:, :length])


def _check_unchanged(folder: Path, digests: Mapping[str, str]) -> None:
    if not (folder / SUMMARY).exists():
        return  # a run that has not ended: it is checked when it is resumed
    before = run_file(folder, SUMMARY).get("digests", {})
    changed = [name for name, digest in before.items() if digests.get(name) != digest]
    if changed:
        raise DataError(f"it has changed since the run: {', '.join(changed)}")


def _different(rows: Int[np.ndarray, "S T"]) -> Int[np.ndarray, "R T"]:
    """Each row once: a short text begins anew, and nothing that calibrates may be held out."""
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]


def _nameless(size: int) -> Tokenizer:
    """For ids of which nothing but their number is known; each reads `<id 17>`."""
    return Tokenizer(
        tokenizers.Tokenizer(tokenizers.models.BPE()),
        source="ids",
        vocab_size=size,
        bos_id=None,
        eos_id=None,
        adds_bos=False,
        raw_piece=lambda i: None,
        readable=str,
    )
