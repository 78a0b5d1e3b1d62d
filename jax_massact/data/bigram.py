"""Bigram-Backcopy: a synthetic task in which attention sinks come within hundreds of steps."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Int

from jax_massact.data.packed import Packed, check_ids
from jax_massact.data.vocabulary import Vocabulary
from jax_massact.errors import DataError

TRIGGERS = 3
_LARGEST_VOCABULARY = 2048  # all pairs of its ids are counted
_CHUNK = 1 << 24


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class BigramBackcopy:
    """The task of Guo et al. (2024), "Active-Dormant Attention Heads", section 2.

    Token 0 of a row is `start`. Token 1 comes from the text's unigrams without triggers. After a
    trigger, one of the three most frequent tokens, comes the token before the trigger; after any
    other, what the text's bigrams say. After a token that nothing follows in the text come the
    unigrams. End-of-text tokens, and the pairs across them, are not counted.

    Attributes:
      unigrams: how often each token can come as token 1: 0 for triggers.
      bigrams: how often each (token, next token) comes.
      is_trigger: by token.
      start: what every row begins with.
    """

    unigrams: Int[np.ndarray, " V"]
    bigrams: Int[np.ndarray, "V V"]
    is_trigger: Bool[np.ndarray, " V"]
    start: int

    @classmethod
    def of(cls, tokens: Packed, vocabulary: Vocabulary, name: str) -> "BigramBackcopy":
        """The task with the statistics of a text.

        Args:
          name: the text, for errors.

        Raises:
          DataError: the vocabulary is too large, an id is not in it, or the text has too few
            different tokens.
        """
        size = vocabulary.size
        if size > _LARGEST_VOCABULARY:
            raise DataError(
                f"bigram-backcopy: the tokenizer, {vocabulary.name}, has {size} ids; expected: at "
                f"most {_LARGEST_VOCABULARY}, as with chars or bytes"
            )
        unigrams, bigrams = np.zeros(size, np.int64), np.zeros((size, size), np.int64)
        for part in tokens.parts:
            for i in range(0, len(part), _CHUNK):
                # One more, for the pair that reaches into the next chunk.
                ids = part[i : i + _CHUNK + 1].astype(np.int64)
                check_ids(ids, size, name)
                unigrams += np.bincount(ids[:_CHUNK], minlength=size)
                pairs = np.bincount(ids[:-1] * size + ids[1:], minlength=size * size)
                bigrams += pairs.reshape(size, size)
        special = [vocabulary.end_of_text, vocabulary.first]
        unigrams[special] = bigrams[special] = bigrams[:, special] = 0
        distinct = np.count_nonzero(unigrams)
        if distinct <= TRIGGERS + 1:
            raise DataError(
                f"bigram-backcopy: {name} has {distinct} different tokens; expected: at least "
                f"{TRIGGERS + 2}"
            )
        bigrams = np.where(bigrams.any(1, keepdims=True), bigrams, unigrams)
        is_trigger = np.isin(np.arange(size), np.argsort(-unigrams, kind="stable")[:TRIGGERS])
        return cls(np.where(is_trigger, 0, unigrams), bigrams, is_trigger, vocabulary.first)


class Drawn:
    """An endless sequence of examples of the task, each found without those before it.

    Philox is a generator with a counter: example i owns a range of it. Its raw output is used,
    because what NumPy makes of that may change from one version to the next.
    """

    def __init__(self, task: BigramBackcopy, length: int, seed: tuple[int, ...]) -> None:
        """Prepares the sequence that `seed` names, of examples of `length` + 1 tokens."""
        self._task = task
        self._length = length
        self._key = np.random.SeedSequence(seed).generate_state(2, np.uint64)
        self._first = np.cumsum(task.unigrams)
        # All rows in one ascending array, so that one search serves tokens that differ.
        self._next = np.cumsum(task.bigrams)
        self._totals = task.bigrams.sum(1)
        self._before = self._next[len(self._totals) - 1 :: len(self._totals)] - self._totals

    def __call__(self, lo: int, hi: int) -> Int[np.ndarray, "N T+1"]:
        """Examples number `lo` to `hi - 1`, int32."""
        chance = self._chances(lo, hi)
        rows = np.full((hi - lo, self._length + 1), self._task.start, np.int32)
        rows[:, 1] = _search(self._first, chance[:, 0] * self._first[-1])
        for t in range(2, self._length + 1):
            last = rows[:, t - 1]
            place = self._before[last] + np.floor(chance[:, t - 1] * self._totals[last])
            drawn = _search(self._next, place) - last * len(self._totals)
            rows[:, t] = np.where(self._task.is_trigger[last], rows[:, t - 2], drawn)
        return rows

    def _chances(self, lo: int, hi: int) -> np.ndarray:
        """Uniform numbers in [0, 1), float64 [hi - lo, T]."""
        blocks = -(-self._length // 4)  # Philox gives four words for each count
        first = lo * blocks
        counter = [first >> 64 * word & (1 << 64) - 1 for word in range(4)]
        bits = np.random.Philox(key=self._key, counter=counter)  # pyright: ignore[reportArgumentType]
        words = np.asarray(bits.random_raw((hi - lo) * blocks * 4)).reshape(hi - lo, blocks * 4)
        return (words[:, : self._length] >> np.uint64(11)) * 2.0**-53


def _search(ends: np.ndarray, place: np.ndarray) -> np.ndarray:
    """The index of the range, of those that end at `ends`, that holds each place."""
    return np.searchsorted(ends, np.floor(place), side="right")
