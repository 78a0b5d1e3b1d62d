"""Token ids in one long row, and the windows that are cut from it."""

import hashlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from jax_massact.errors import DataError

# A digest reads at most this many blocks of this many ids.
_BLOCKS, _BLOCK = 1024, 1 << 14
_ROUNDS = 6  # of the Feistel network; four are enough for it to pass as random


class Packed:
    """Several arrays of ids, memory-mapped or not, read as if they were one."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        """Joins the parts, 1-D integer arrays, in order."""
        self.parts = list(parts)
        self._ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.parts else 0

    def read(self, start: int, count: int) -> np.ndarray:
        """Ids `start` to `start + count - 1`, all of which exist."""
        i = int(np.searchsorted(self._ends, start, side="right"))
        offset = start - (int(self._ends[i - 1]) if i else 0)
        pieces = [self.parts[i][offset : offset + count]]
        missing = count - len(pieces[0])
        while missing:
            i += 1
            pieces.append(self.parts[i][:missing])
            missing -= len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def digest(self) -> str:
        """A digest of the ids, wherever they are stored: of all, or of 1,024 blocks and the number.

        Blocks of 16 Ki ids are spread evenly where there are more than 16 Mi ids, so that the
        digest of any corpus takes a second at most. An edit that moves no other id can then go
        unnoticed; one that adds or removes ids cannot.
        """
        digest = hashlib.sha256(str(len(self)).encode())
        starts = range(0, len(self), _BLOCK)
        step = -(-len(starts) // _BLOCKS) or 1
        for start in (*starts[::step], *starts[-1:]):
            block = self.read(start, min(_BLOCK, len(self) - start))
            digest.update(block.astype("<u4").tobytes())
        return digest.hexdigest()


def check_ids(ids: np.ndarray, vocab_size: int, name: str) -> None:
    """Raises DataError unless all ids are from 0 to `vocab_size - 1`."""
    low, high = int(ids.min(initial=0)), int(ids.max(initial=0))
    if low < 0 or high >= vocab_size:
        raise DataError(
            f"{name}: holds the id {low if low < 0 else high}; expected with this tokenizer: ids "
            f"from 0 to {vocab_size - 1}"
        )


def split(tokens: Packed, held_out: Sequence[bool], share: float) -> tuple[Packed, Packed, str]:
    """Divides tokens into those for training and those for validation.

    Args:
      held_out: for each part, whether it is for validation as a whole.
      share: of every part, from its end, that is held out when no part is as a whole.

    Returns:
      The two, and in words how they were divided.
    """
    parts = tokens.parts
    if any(held_out):
        chosen = [p for p, out in zip(parts, held_out, strict=True) if out]
        others = [p for p, out in zip(parts, held_out, strict=True) if not out]
        return Packed(others), Packed(chosen), f"{len(chosen)} of {len(parts)} files, by name"
    cuts = [len(part) - round(share * len(part)) for part in parts]
    training = [part[:cut] for part, cut in zip(parts, cuts, strict=True)]
    validation = [part[cut:] for part, cut in zip(parts, cuts, strict=True)]
    how = f"the last {100 * share:g}%" + (" of every file" if len(parts) > 1 else "")
    return Packed(training), Packed(validation), how


class Windows:
    """An endless sequence of windows of T + 1 tokens; every window once in each epoch.

    The windows of an epoch lie side by side, T apart, so that every token is a target once, and
    come in an order that a keyed permutation of their numbers gives: a Feistel network, which needs
    no memory and finds window i without those before it. Against windows at random places, which a
    single expression would give, no part of a small corpus is left out while another comes again.
    From one epoch to the next the grid is shifted by less than T, so that the borders fall
    elsewhere; the shift costs each epoch fewer than 2 T of the tokens.
    """

    def __init__(
        self,
        tokens: Packed,
        name: str,
        *,
        seed: int,
        length: int,
        first_token: int | None,
        vocab_size: int,
        shift: bool = True,
    ) -> None:
        """Prepares windows; nothing is read yet.

        Args:
          name: what the tokens are, for errors.
          seed: of the order.
          length: targets in a window (T).
          first_token: replaces the first token of every window; None: nothing does.
          vocab_size: every id is below this.
          shift: whether epochs differ; if not, the first is repeated.

        Raises:
          DataError: there are too few tokens for one window.
        """
        spare = len(tokens) - 1 - length
        if spare < 0:
            raise DataError(
                f"{name}: {len(tokens)} tokens; expected: at least {length + 1}, for one window. "
                "Ask for a smaller sequence length or give more text"
            )
        self._tokens = tokens
        self._name = name
        self._seed = seed
        self._length = length
        self._first_token = first_token
        self._vocab_size = vocab_size
        self._shift = shift
        # With a shift the last window of the unshifted grid may not fit.
        self.count = max(1, (spare + 1) // length) if shift else 1 + spare // length
        self._shifts = min(length, len(tokens) - self.count * length)

    def __call__(self, lo: int, hi: int) -> Int[np.ndarray, "N T+1"]:
        """Windows number `lo` to `hi - 1`, int32.

        Raises:
          DataError: an id is not below the size of the vocabulary.
        """
        rows = np.empty((hi - lo, self._length + 1), np.int64)
        for row, start in zip(rows, self.starts(lo, hi), strict=True):
            row[:] = self._tokens.read(int(start), self._length + 1)
        check_ids(rows, self._vocab_size, self._name)
        if self._first_token is not None:
            rows[:, 0] = self._first_token
        return rows.astype(np.int32)

    def starts(self, lo: int, hi: int) -> Int[np.ndarray, " N"]:
        """The places in the tokens where windows `lo` to `hi - 1` begin."""
        epoch, number = np.divmod(np.arange(lo, hi, dtype=np.int64), self.count)
        starts = np.empty(hi - lo, np.int64)
        for e in np.unique(epoch):
            seeds = np.random.SeedSequence((self._seed, int(e) if self._shift else 0))
            shift, *keys = seeds.generate_state(1 + _ROUNDS, np.uint64)
            offset = int(shift) % self._shifts if self._shift else 0
            now = epoch == e
            starts[now] = offset + self._length * permuted(number[now], self.count, keys)
        return starts


def permuted(
    index: Int[np.ndarray, " N"], count: int, keys: Sequence[np.uint64]
) -> Int[np.ndarray, " N"]:
    """A permutation of 0 to `count - 1`, chosen by `keys`, at some of its places.

    A balanced Feistel network, one round for each key, over the smallest even number of bits that
    holds `count`; a result that is too large goes through again until it is not (cycle walking,
    Black and Rogaway 2002).
    """
    half = np.uint64(max(1, ((count - 1).bit_length() + 1) // 2))
    mask = (np.uint64(1) << half) - np.uint64(1)
    out = index.astype(np.uint64)
    todo = np.ones(len(out), bool)
    while todo.any():
        left, right = out[todo] >> half, out[todo] & mask
        for key in keys:
            left, right = right, left ^ (_mixed(right + key) & mask)
        out[todo] = (left << half) | right
        todo = out >= count
    return out.astype(np.int64)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea and Flood 2014): each bit depends on all."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
