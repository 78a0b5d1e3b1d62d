"""The rows of a run as scalars for TensorBoard, beside `metrics.jsonl`, from which they come."""

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeGuard

from jax_massact.errors import ConfigError, UserError
from jax_massact.train.metrics import Row, extreme

FOLDER = "tensorboard"
# The scalars of a row that is about the whole model.
_WHOLE = {
    "train": ("loss", "lr", "grad_norm", "tokens_per_second", "mfu", "host_wait"),
    "validation": ("loss",),
    "skipped": (),
}


def check_installed() -> None:
    """Raises ConfigError where the writer of event files is missing."""
    if importlib.util.find_spec("tensorboardX") is None:
        raise ConfigError(
            "tensorboard is True, and the package that writes its files is not installed: "
            "pip install 'jax_massact[tensorboard]'"
        )


@contextlib.contextmanager
def open_tensorboard(folder: Path, rows: Iterable[Row]) -> Iterator[Callable[[Row], None]]:
    """Yields a function that writes a row's scalars, and closes their file.

    The file is made anew from `rows`, and those of earlier runs in this folder are removed: a
    resumed run shows every step once, also where it was killed past its checkpoint.

    Args:
      folder: for the event files.
      rows: what the run has measured so far.

    Raises:
      UserError: the folder cannot be written to.
    """
    from tensorboardX import SummaryWriter

    try:
        folder.mkdir(exist_ok=True)
        for old in folder.glob("events.out.tfevents.*"):
            old.unlink()
        # purge_step: a TensorBoard that is open forgets what it has read.
        writer = SummaryWriter(str(folder), purge_step=0)
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None

    def write(row: Row) -> None:
        for name, value in scalars(row):
            writer.add_scalar(name, value, row["step"])

    try:
        for row in rows:
            write(row)
        yield write
    finally:
        writer.close()


def scalars(row: Row) -> Iterator[tuple[str, float]]:
    """Names and values of a row, without those that are not known.

    `train/loss` and so on; of each watched quantity `watch/top1`, of the layer in which it is
    largest (`value_drain`: smallest), and `top1/layer_03` of each.
    """
    if row["kind"] != "watch":
        for key in _WHOLE[row["kind"]]:
            if _is_known(value := row.get(key)):
                yield f"{row['kind']}/{key}", value
        return
    for key, values in row.items():
        if not isinstance(values, list):
            continue
        if (most := extreme(key, values)) is not None:
            yield f"watch/{key}", most
        for layer, value in enumerate(values):
            if _is_known(value):
                yield f"{key}/layer_{layer:02}", value


def _is_known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)
