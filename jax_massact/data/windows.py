"""Windows of token ids of one length, cut from documents."""

from itertools import zip_longest

import numpy as np

from jax_massact.data.text import Documents
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import DataError
from jax_massact.settings import check_int

_BETWEEN = "\n\n"  # short documents are joined by a blank line
# Characters that certainly hold a token's worth of text, in any tokenizer and language we know of;
# a wrong guess costs another round of encoding, not a wrong window.
_CHARACTERS_PER_TOKEN = 8
# Cutting a text changes the last tokens before the cut, at most those of one word or run of spaces.
_CUT_MARGIN = 256


def windows(
    documents: Documents,
    tokenizer: Tokenizer,
    *,
    sequences: int,
    sequence_length: int,
    bos: bool,
) -> np.ndarray:
    """Cuts documents into windows of equal length.

    Every window begins with BOS if `bos`, and goes on with the next `sequence_length - bos` tokens
    of its document; windows do not overlap and what remains at a document's end is dropped. The
    first window of every document comes first, then the second of every document, so that no long
    document takes all places. Documents too short for a window are joined in order, a blank line
    between, until they fill one. The result depends on nothing but the arguments.

    If there is only one document and it fills no window, it is one sequence of its own length.

    Args:
      documents: what to read; reading stops when there is enough.
      tokenizer: turns them into ids.
      sequences: how many windows are wanted (S).
      sequence_length: tokens in each (T), BOS included.
      bos: whether BOS is at position 0 of every window.

    Returns:
      Token ids, int32 [S, T]. There are fewer than S rows when the documents hold no more, and
      fewer than T columns for a single short document.

    Raises:
      ConfigError: a number is out of range.
      DataError: there is no text, or too little for one window.
    """
    check_int("sequences", sequences, 1)
    check_int("sequence_length", sequence_length, 2 if bos else 1)
    cutter = _Cutter(tokenizer, sequence_length - bos)
    rows = cutter.cut(documents, sequences)
    ids = np.stack(rows)
    if bos:
        # encode, not bos_id: it says so when there is no BOS.
        front = np.broadcast_to(tokenizer.encode("", bos=True), (len(rows), 1))
        ids = np.concatenate([front, ids], axis=1)
    return ids


class _Cutter:
    """Cuts windows of `stride` tokens, encoding no more text than they take."""

    def __init__(self, tokenizer: Tokenizer, stride: int) -> None:
        self._tokenizer = tokenizer
        self._stride = stride

    def cut(self, documents: Documents, sequences: int) -> list[np.ndarray]:
        """At most `sequences` windows, int32 [stride] each, at least one."""
        count, tokens, last = 0, 0, np.zeros(0, np.int32)
        long_texts: list[str] = []
        firsts: list[np.ndarray] = []
        waiting: list[tuple[str, int]] = []  # short documents and their numbers of tokens
        for text in documents.texts:
            if not text.strip():
                continue
            count += 1
            last = self._lead(text, self._stride)
            tokens += len(last)
            if len(last) < self._stride:
                waiting.append((text, len(last)))
                if sum(n for _, n in waiting) < self._stride:
                    continue
                text = _BETWEEN.join(t for t, _ in waiting)
                last = self._lead(text, self._stride)
                if len(last) < self._stride:  # tokens can merge across the seam
                    continue
                waiting.clear()
            long_texts.append(text)
            firsts.append(last)
            if len(firsts) == sequences:
                return firsts
        if firsts:
            return self._deepen(long_texts, sequences)
        if count == 1 and len(last):
            return [last]
        raise DataError(
            f"{documents.description}: {count} documents with {tokens} tokens; expected: "
            f"at least {self._stride}, for one sequence. Ask for a smaller sequence length or give "
            "more text"
        )

    def _deepen(self, texts: list[str], sequences: int) -> list[np.ndarray]:
        """First windows of all texts, then second windows, and so on."""
        per_text = [self._split(self._lead(text, sequences * self._stride)) for text in texts]
        by_rank = zip_longest(*per_text)
        rows = [row for rank in by_rank for row in rank if row is not None]
        return rows[:sequences]

    def _split(self, ids: np.ndarray) -> list[np.ndarray]:
        return list(ids[: len(ids) // self._stride * self._stride].reshape(-1, self._stride))

    def _lead(self, text: str, tokens: int) -> np.ndarray:
        """The first `tokens` ids of a text, or all of them if there are fewer."""
        characters = (tokens + _CUT_MARGIN) * _CHARACTERS_PER_TOKEN
        while characters < len(text):
            ids = self._tokenizer.encode(text[:characters], bos=False)
            if len(ids) >= tokens + _CUT_MARGIN:
                return ids[:tokens]
            characters *= 2
        return self._tokenizer.encode(text, bos=False)[:tokens]
