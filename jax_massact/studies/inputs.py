"""What a model is run on, and what each position of it is called."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from jaxtyping import Bool, Int

from jax_massact.data.pieces import token_kind

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
    """

    tokens: Int[np.ndarray, "S T"]
    strings: Callable[[Iterable[int]], list[str]]
    prefix: int = 0
    kind: Callable[[str], str] = token_kind

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice) -> "Inputs":
        """Some of the sequences."""
        return dataclasses.replace(self, tokens=self.tokens[rows])

    @property
    def length(self) -> int:
        """Positions of a sequence, P + T."""
        return self.prefix + self.tokens.shape[1]

    def ids(self, rows: slice) -> Int[np.ndarray, "b P+T"]:
        """The ids at every position; -1 for a learned row in front."""
        tokens = self.tokens[rows]
        front = np.full((len(tokens), self.prefix), -1, tokens.dtype)
        return np.concatenate([front, tokens], axis=1)

    def name(self, token: int) -> str:
        """What a position with this id is called."""
        return SINK if token < 0 else self.strings([int(token)])[0]

    def names(self, sequence: int, limit: int | None = None) -> list[str]:
        """What the first positions of a sequence are called, one by one."""
        row = self.tokens[sequence][: None if limit is None else max(0, limit - self.prefix)]
        return ([SINK] * self.prefix + self.strings(row))[:limit]

    def kind_at(self, sequence: int, position: int) -> str:
        """ "first", "delimiter" or "other"."""
        if position == 0:
            return "first"
        row = position - self.prefix
        return "other" if row < 0 else self.kind(self.name(self.tokens[sequence, row]))

    def batches(
        self, size: int
    ) -> Iterator[tuple[slice, Int[np.ndarray, "B T"], Bool[np.ndarray, " B"]]]:
        """(rows, their tokens filled up to `size`, which of these to keep), in order.

        The last batch is filled up, so that one compilation serves all.
        """
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            part = self.tokens[rows]
            filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])
            yield rows, filled, np.arange(size) < len(part)
