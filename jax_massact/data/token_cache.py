"""Token ids of a text: made once, kept on disk, read by memory-mapping."""

import hashlib
import json
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from jax_massact.cache import Report, is_sound, make_once, why_unwritable
from jax_massact.data.corpus import Corpus
from jax_massact.data.packed import Packed
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.data.vocabulary import Vocabulary
from jax_massact.errors import DataError

_IDS, _LAYOUT = "tokens.bin", "layout.json"
_FORMAT = 2  # part of the key: raise it when the same text would give other ids or another layout
_PIECE = 1 << 16  # characters from which a document is encoded in pieces
_CUT = re.compile(r"(?<=[^\W\d_])(?= [^\W\d_])|(?<=\S\n)(?=\S)")
_BATCH = 1 << 22  # characters that are encoded at once


def encoded(
    corpus: Corpus, vocabulary: Vocabulary, cache: Path | None, say: Report
) -> Packed:
    """The ids of a corpus, the end of text after every document; a part for each of its parts.

    In the cache they are raw, 16 or 32 bits each; the folder's name is a digest of the corpus'
    stamp and of the tokenizer.

    Args:
      cache: None: the ids are kept in memory, as they are when the cache cannot be written.
      say: called with a line of text before anything that takes time.

    Raises:
      DataError: the text cannot be read, or there is no tokenizer for it.
      ResourceError: the disk of the cache is full.
    """
    tokenizer = vocabulary.tokenizer
    if tokenizer is None:
        raise DataError(
            f"{corpus.name} is text, and the tokenizer is {vocabulary.name}; expected: a tokenizer"
        )
    dtype = np.dtype("<u2" if vocabulary.size <= 1 << 16 else "<u4")
    parts = (_ids(part.texts, tokenizer, vocabulary.end_of_text) for part in corpus.parts)
    key = f"{_FORMAT} {vocabulary.end_of_text} {tokenizer.digest()} {corpus.stamp}"
    name = f"tokens-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
    if cache is not None:
        if is_sound(cache / name):
            return _read(cache / name)
        if why := why_unwritable(cache):
            say(f"{why}. Until then tokens are kept in memory")
            cache = None
    doing = f"tokenizing {corpus.name} with {vocabulary.name}"
    if cache is None:
        say(doing)
        empty = np.empty(0, dtype)
        return Packed([np.concatenate([empty, *(c.astype(dtype) for c in p)]) for p in parts])

    def fill(folder: Path) -> None:
        say(doing)
        started = time.perf_counter()
        count = _write(parts, folder, dtype)
        seconds = time.perf_counter() - started
        say(f"{count:,} tokens in {seconds:.1f} s ({count / seconds:,.0f} tokens/s)")

    return _read(make_once(cache, name, fill, say))


def _ids(texts: Iterable[str], tokenizer: Tokenizer, end: int) -> Iterator[np.ndarray]:
    """The ids of documents, in chunks."""
    for batch in _batches(texts):
        ids = tokenizer.encode_batch([piece for piece, _ in batch])
        for one, (_, is_last) in zip(ids, batch, strict=True):
            yield np.append(one, end) if is_last else one


def _batches(texts: Iterable[str]) -> Iterator[list[tuple[str, bool]]]:
    """Pieces of documents, and whether each is the last of its own."""
    batch: list[tuple[str, bool]] = []
    characters = 0
    for text in texts:
        if not text.strip():
            continue
        pieces = list(pieces_of(text))
        for i, piece in enumerate(pieces, start=1):
            batch.append((piece, i == len(pieces)))
            characters += len(piece)
            if characters >= _BATCH:
                yield batch
                batch, characters = [], 0
    if batch:
        yield batch


def pieces_of(text: str) -> Iterator[str]:
    """A long document in pieces, so that all processors can work on it.

    It is cut before a space between two letters, or after a line feed between two characters that
    are not white space: there GPT-2's expression and those that came after it cut as well, so that
    the ids are those of the whole. (SentencePiece puts its leading space before every piece.)
    """
    start = 0
    while len(text) - start > _PIECE:
        cut = _CUT.search(text, start + _PIECE)
        if cut is None:
            break
        yield text[start : cut.start()]
        start = cut.start()
    yield text[start:]


def _write(parts: Iterable[Iterable[np.ndarray]], folder: Path, dtype: np.dtype) -> int:
    """Writes the ids of parts and their layout; returns how many ids there are."""
    count, ends = 0, []
    with (folder / _IDS).open("wb") as file:
        for part in parts:
            for chunk in part:
                file.write(chunk.astype(dtype).tobytes())
                count += len(chunk)
            ends.append(count)
    layout = {"dtype": dtype.str, "ends": ends}
    (folder / _LAYOUT).write_text(json.dumps(layout), encoding="utf-8")
    return count


def _read(folder: Path) -> Packed:
    layout = json.loads((folder / _LAYOUT).read_text(encoding="utf-8"))
    ends, dtype = layout["ends"], np.dtype(layout["dtype"])
    ids = np.memmap(folder / _IDS, dtype, mode="r") if ends[-1] else np.empty(0, dtype)
    return Packed(np.split(ids, ends[:-1]))
