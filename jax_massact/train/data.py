"""Batches as a function of (seed, step): windows of a text, and the Bigram-Backcopy task."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from jax_massact.data.text import documents
from jax_massact.errors import DataError
from jax_massact.train.config import TrainConfig
from jax_massact.train.prefetch import Batches

START = 256  # the token that is no byte
VOCAB_SIZE = 257
HELD_OUT = 0.1  # the share of a text, from its end, that only validation sees
TRIGGERS = 3
_TRAINING, _VALIDATION = 0, 1


def open_batches(config: TrainConfig) -> Batches:
    """The data of a run.

    Raises:
      DataError: the text cannot be read, or is too short.
    """
    text = "\n\n".join(documents(config.data.source).texts).encode()
    tokens = np.frombuffer(text, np.uint8)
    if config.data.task == "bigram_backcopy":
        return BigramBackcopy.of(tokens, config)
    cut = len(tokens) - int(HELD_OUT * len(tokens))
    shortest = min(cut, len(tokens) - cut)
    if shortest <= config.sequence_length:
        raise DataError(
            f"data.source {config.data.source!r} has {len(tokens)} bytes, {len(tokens) - cut} of "
            f"them held out; needed: more than {config.sequence_length} in each part"
        )
    return Windows(
        (tokens[:cut], tokens[cut:]), config.seed, config.batch_size, config.sequence_length,
        config.data.same_first_token,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class Windows:
    """Windows of a text, bytes as tokens, drawn with replacement.

    Attributes:
      parts: for training, and held out.
      same_first_token: whether START takes the place of the first token of every window.
    """

    parts: tuple[np.ndarray, np.ndarray]
    seed: int
    batch_size: int
    length: int
    same_first_token: bool
    vocab_size: int = VOCAB_SIZE

    def batch(self, step: int) -> Int[np.ndarray, "B T+1"]:
        return self._draw(_TRAINING, step)

    def validation(self, index: int) -> Int[np.ndarray, "B T+1"]:
        return self._draw(_VALIDATION, index)

    def _draw(self, part: int, number: int) -> np.ndarray:
        # One validation set, whatever the seed: its losses are to be compared.
        seed = self.seed if part == _TRAINING else 0
        rng = np.random.default_rng((seed, part, number))
        tokens = self.parts[part]
        first = rng.integers(0, len(tokens) - self.length, self.batch_size)
        rows = tokens[first[:, None] + np.arange(self.length + 1)].astype(np.int32)
        if self.same_first_token:
            rows[:, 0] = START
        return rows


@dataclasses.dataclass(frozen=True, eq=False)
class BigramBackcopy:
    """A task in which attention sinks come within hundreds of steps (Guo et al. 2024).

    s0 is START, s1 comes from the unigrams without triggers. After a trigger, one of the three most
    frequent characters, s_t = s_{t-2}; otherwise s_t comes from the character bigrams.

    Attributes:
      first: cumulative probabilities of s1.
      following: of the token after each token.
      is_trigger: by token.
    """

    first: Float[np.ndarray, " V"]
    following: Float[np.ndarray, "V V"]
    is_trigger: np.ndarray
    seed: int
    batch_size: int
    length: int
    vocab_size: int = VOCAB_SIZE

    @classmethod
    def of(cls, tokens: np.ndarray, config: TrainConfig) -> "BigramBackcopy":
        """With the statistics of a text.

        Raises:
          DataError: it has too few different characters.
        """
        unigrams = np.bincount(tokens, minlength=START).astype(float)
        if (unigrams > 0).sum() <= TRIGGERS + 1:
            raise DataError(
                f"data.source {config.data.source!r} has {(unigrams > 0).sum()} different bytes; "
                f"needed for bigram_backcopy: at least {TRIGGERS + 2}"
            )
        bigrams = np.zeros((START, START))
        np.add.at(bigrams, (tokens[:-1], tokens[1:]), 1)
        # The last byte of the text may be the only one of its kind.
        bigrams = np.where(bigrams.any(1, keepdims=True), bigrams, unigrams)
        triggers = np.argsort(-unigrams, kind="stable")[:TRIGGERS]
        is_trigger = np.isin(np.arange(START), triggers)
        return cls(
            _cumulative(np.where(is_trigger, 0, unigrams)), _cumulative(bigrams), is_trigger,
            config.seed, config.batch_size, config.sequence_length,
        )

    def batch(self, step: int) -> Int[np.ndarray, "B T+1"]:
        return self._draw(self.seed, _TRAINING, step)

    def validation(self, index: int) -> Int[np.ndarray, "B T+1"]:
        return self._draw(0, _VALIDATION, index)

    def _draw(self, *key: int) -> np.ndarray:
        chance = np.random.default_rng(key).random((self.length + 1, self.batch_size, 1))
        rows = np.full((self.batch_size, self.length + 1), START, np.int32)
        rows[:, 1] = (self.first <= chance[1]).sum(-1)
        for t in range(2, self.length + 1):
            last = rows[:, t - 1]
            drawn = (self.following[last] <= chance[t]).sum(-1)
            rows[:, t] = np.where(self.is_trigger[last], rows[:, t - 2], drawn)
        return rows


def _cumulative(counts: np.ndarray) -> np.ndarray:
    total = counts.cumsum(-1)
    return total / total[..., -1:]
