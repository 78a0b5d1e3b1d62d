"""The record of a run: `metrics.jsonl`, one JSON object a line, and how fast it went.

Every row has `kind` and `step`, the number of updates made. Kinds: `train` (a loss is that of the
update's own batch, before it), `validation`, `watch`, and `skipped`, an update that was not made
because its loss or gradient was not finite.
"""

import errno
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from jax_massact.errors import UserError
from jax_massact.nn.config import ModelConfig

Row = dict[str, Any]
FILE = "metrics.jsonl"


class MetricsFile:
    """Rows appended to `metrics.jsonl`, each written before the next is made.

    Args:
      path: the file; made when missing.
      step: rows past this step are cut off, so that a run that was resumed from there reads like
        an uninterrupted one.

    Attributes:
      before: the rows that were kept.

    Raises:
      UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path, step: int):
        rows = [row for row in read_rows(path) if row["step"] <= step] if path.exists() else []
        try:
            write_text(path, "".join(map(_line, rows)))
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        self._path, self.before = path, rows

    def write(self, row: Row) -> None:
        """Appends one row.

        Raises:
          UserError: it cannot be written; the disk is full, say.
        """
        line = _line(row).encode()
        try:
            # A row of which only a part fits is cut off when the run is resumed.
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            raise UserError(f"cannot write {self._path}: {error.strerror}") from None

    def __enter__(self) -> "MetricsFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()


def write_text(path: Path, text: str) -> None:
    """Writes a file that is seen whole or not at all.

    Raises:
      UserError: it cannot be written; what was there stays.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(text)
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def read_rows(path: Path) -> list[Row]:
    """The rows of a `metrics.jsonl`; a last line that was cut short is left out.

    Raises:
      UserError: the file cannot be read, or a line before the last is not a row.
    """
    try:
        lines = path.read_text().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    return list(_rows(path, lines))


def _rows(path: Path, lines: list[str]) -> Iterator[Row]:
    # What follows the last line break is not finished.
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict) or not isinstance(row.get("step"), int) or "kind" not in row:
            raise UserError(f"{path}, line {number} is not a row with kind and step")
        yield row


def of_kind(rows: Iterable[Row], kind: str) -> list[Row]:
    """The rows of one kind, in order."""
    return [row for row in rows if row["kind"] == kind]


def extreme(name: str, values: Sequence[float | None]) -> float | None:
    """Of a watched quantity's layers the one in which most happens; None: no number in any."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    if not finite:
        return None
    return min(finite) if name == "value_drain" else max(finite)


def _line(row: Row) -> str:
    return json.dumps(_finite(row)) + "\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity; they become null."""
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flops_per_token(config: ModelConfig, parameters: int, sequence_length: int) -> float:
    """Operations of one training step for each token, as Chowdhery et al. (2022, appendix B) count.

    6 for each parameter that is multiplied, and 12 L N H T for attention, as if it were not causal;
    nothing for experts that do not serve the token, nor for what rematerialization computes again.
    """
    embed, attention = config.embed, config.block.attention
    looked_up = config.context_length * config.width if embed.positions == "learned" else 0
    # A tied embedding is looked up once and multiplied once.
    looked_up += 0 if config.head.tied else embed.vocab_size * config.width
    products = 12 * config.depth * attention.heads * attention.head_dim * sequence_length
    return 6 * (parameters - looked_up - idle_parameters(config)) + products


def idle_parameters(config: ModelConfig) -> int:
    """The matrices of a mixture's experts by which a token is not multiplied, in all layers."""
    mlp = config.block.mlp
    idle = max(mlp.moe.experts - mlp.moe.active, 0)
    return 3 * config.depth * idle * config.width * mlp.hidden
