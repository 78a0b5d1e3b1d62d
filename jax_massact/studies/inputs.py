"""What a model is run on, and what each position of it is called."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from jax_massact.data.images import Pictures, decoded
from jax_massact.data.pieces import token_kind
from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import DataError

KINDS = ("first", "delimiter", "other")
SINK = "<sink>"  # the name of a learned row in front


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Sequences for a model. A position counts the rows that the model itself puts in front.

    Attributes:
      tokens: what the model takes, S sequences.
      strings: token strings of ids.
      prefix: how many learned rows stand in front of a sequence, P.
      kind: kind of a token string that is not at position 0.
      scored_from: the first of the tokens whose prediction is scored.
    """

    tokens: Int[np.ndarray, "S T"]
    strings: Callable[[Iterable[int]], list[str]]
    prefix: int = 0
    kind: Callable[[str], str] = token_kind
    scored_from: int = 0
    kinds: ClassVar[tuple[str, ...]] = KINDS

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Inputs":
        """Some of the sequences."""
        return dataclasses.replace(self, tokens=self.tokens[rows])

    @property
    def length(self) -> int:
        """Positions of a sequence, P + T."""
        return self.prefix + self.tokens.shape[1]

    @property
    def scored_tokens(self) -> int:
        """How many tokens are predicted and scored."""
        return len(self) * max(0, self.tokens.shape[1] - 1 - self.scored_from)

    def check_scored(self) -> None:
        """Raises DataError where no prediction of a sequence is scored."""
        if not self.scored_tokens:
            start = self.scored_from
            why = f": the loss counts from position {start} on (loss_from)" if start else ""
            raise DataError(
                f"no prediction is scored in a sequence of {self.tokens.shape[1]} tokens{why}; "
                f"expected: at least {start + 2} tokens"
            )

    def scored(self, losses: Float[np.ndarray, "B T-1"]) -> Float[np.ndarray, "B t"]:
        """Returns the losses that count, of those at all tokens."""
        return losses[:, self.scored_from :]

    def behind(self, token: int) -> "Inputs":
        """The sequences with a token in front, whose prediction is not scored."""
        column = np.full((len(self), 1), token, self.tokens.dtype)
        tokens = np.concatenate([column, self.tokens], axis=1)
        return dataclasses.replace(self, tokens=tokens, scored_from=self.scored_from + 1)

    def without_first(self) -> "Inputs":
        """The sequences without their first token."""
        start = max(0, self.scored_from - 1)
        return dataclasses.replace(self, tokens=self.tokens[:, 1:], scored_from=start)

    def ids(self, rows: slice) -> Int[np.ndarray, "b P+T"]:
        """The ids at every position; -1 for a learned row in front."""
        tokens = self.tokens[rows]
        front = np.full((len(tokens), self.prefix), -1, tokens.dtype)
        return np.concatenate([front, tokens], axis=1)

    def name(self, token: int) -> str:
        """Name of a position with this id."""
        return SINK if token < 0 else self.strings([int(token)])[0]

    def names(self, sequence: int, limit: int | None = None) -> list[str]:
        """Names of the first positions of a sequence."""
        row = self.tokens[sequence][: None if limit is None else max(0, limit - self.prefix)]
        return ([SINK] * self.prefix + self.strings(row))[:limit]

    def kind_at(self, sequence: int, position: int) -> str:
        """ "first", "delimiter" or "other"."""
        if position == 0:
            return "first"
        row = position - self.prefix
        return "other" if row < 0 else self.kind(self.name(self.tokens[sequence, row]))

    def one(self, sequence: int, length: int | None = None) -> Int[np.ndarray, "1 T"]:
        """What the model takes for one sequence, or for its first positions."""
        stop = None if length is None else max(1, length - self.prefix)
        return self.tokens[sequence : sequence + 1, :stop]

    def batches(
        self, size: int
    ) -> Iterator[tuple[slice, Int[np.ndarray, "B T"], Bool[np.ndarray, " B"]]]:
        """(rows, their tokens filled up to `size`, which of these to keep), in order."""
        starts = range(0, len(self), size)
        return _filled(size, (self.tokens[start : start + size] for start in starts))


def _filled(size: int, parts: Iterable[np.ndarray]) -> Iterator[tuple[slice, Any, Any]]:
    """The last batch is filled up, so that one compilation serves all."""
    start = 0
    for part in parts:
        n = len(part)
        filled = np.concatenate([part, np.repeat(part[-1:], size - n, axis=0)])
        yield slice(start, start + n), filled, np.arange(size) < n
        start += n


CLS, REGISTER, PATCH = "cls", "register", "patch"


@dataclasses.dataclass(frozen=True)
class ImageInputs:
    """Pictures for an encoder of images, as `Inputs` are sequences; a position has its own name.

    Attributes:
      pictures: not decoded yet.
      prepare: how they are.
      grid: rows and columns of patches.
      cls: whether CLS stands in front.
      registers: how many follow it.
    """

    pictures: Pictures
    prepare: Preprocessing
    grid: tuple[int, int]
    cls: bool
    registers: int
    kinds: ClassVar[tuple[str, ...]] = (CLS, REGISTER, PATCH)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: slice) -> "ImageInputs":
        """Some of the pictures."""
        return dataclasses.replace(self, pictures=self.pictures[rows])

    def split(self, sequences: int) -> tuple["ImageInputs", "ImageInputs"]:
        """Pictures to calibrate on, then `sequences` others, but at most half of all.

        Raises:
          DataError: there are fewer than two.
        """
        count = min(sequences, len(self) // 2)
        if not count:
            raise DataError(
                f"{self.pictures.description} holds {len(self)} picture; expected: at least two, "
                "one of which is calibrated on"
            )
        return self[: len(self) - count], self[len(self) - count :]

    @property
    def front(self) -> int:
        """Number of tokens in front of the patches."""
        return self.cls + self.registers

    @property
    def length(self) -> int:
        """Tokens of a picture."""
        return self.front + self.grid[0] * self.grid[1]

    def ids(self, rows: slice) -> Int[np.ndarray, "b S"]:
        """Every position is its own id."""
        count = len(range(*rows.indices(len(self))))
        return np.broadcast_to(np.arange(self.length), (count, self.length))

    def kind_of(self, position: int) -> str:
        """ "cls", "register" or "patch"."""
        if position >= self.front:
            return PATCH
        return CLS if self.cls and position == 0 else REGISTER

    def kind_at(self, sequence: int, position: int) -> str:
        """The same, whatever the picture."""
        del sequence
        return self.kind_of(position)

    def name(self, position: int) -> str:
        """`CLS`, `register 2`, or `patch 3,7`: row and column."""
        kind = self.kind_of(position)
        if kind == CLS:
            return "CLS"
        if kind == REGISTER:
            return f"register {position - self.cls}"
        row, column = divmod(int(position) - self.front, self.grid[1])
        return f"patch {row},{column}"

    def names(self, sequence: int, limit: int | None = None) -> list[str]:
        """Names of the first positions."""
        del sequence
        return [self.name(position) for position in range(self.length)[:limit]]

    def one(self, sequence: int, length: int | None = None) -> UInt8[np.ndarray, "1 Y X 3"]:
        """What the model takes for one picture, which is whole: every patch sees every other."""
        del length
        return self.prepare(self.pictures.items[sequence : sequence + 1])

    def batches(
        self, size: int
    ) -> Iterator[tuple[slice, UInt8[np.ndarray, "B Y X 3"], Bool[np.ndarray, " B"]]]:
        """(rows, their images filled up to `size`, which of these to keep), in order."""
        return _filled(size, decoded(self.pictures, self.prepare, size))
