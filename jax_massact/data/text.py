"""Documents, and the fixed-length windows of token ids that are cut from them."""

import codecs
import dataclasses
import json
import os
import string
from collections.abc import Iterable, Iterator
from itertools import zip_longest
from typing import Any, Literal

import numpy as np

from jax_massact.data.files import LINE_SUFFIXES, open_binary, suffix
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import DataError
from jax_massact.settings import check_int

TokenKind = Literal["delimiter", "other"]

# The most that is read of one plain text file: more than any probe asks for.
MAX_FILE_BYTES = 64 * 2**20

_BETWEEN = "\n\n"  # short documents are joined by a blank line
_TEXT_SUFFIXES = frozenset(
    (".txt", ".text", ".md", ".rst", ".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".html", ".xml",
     ".tex", ".py", ".log")
)
_DELIMITERS = frozenset(".,;:!?…。，、；：！？")
# Characters that certainly hold a token's worth of text, in any tokenizer and language we know of;
# a wrong guess costs another round of encoding, not a wrong window.
_CHARACTERS_PER_TOKEN = 8
# Cutting a text changes the last tokens before the cut, at most those of one word or run of spaces.
_CUT_MARGIN = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Documents:
    """Texts to read, in order.

    Attributes:
      description: where they come from, in words.
      texts: the documents; may be read lazily from a file, and more than once.
      literal: whether the one document is the text that the person typed.
      stamp: what changes when the texts do; None: only the texts themselves.
    """

    description: str
    texts: Iterable[str]
    literal: bool = False
    stamp: str | None = None


def documents(source: str) -> Documents:
    """The documents that a person means by `source`.

    It is, in this order of precedence: `pydoc`, the help texts of the running Python (about 80
    documents of English); `tfds:NAME[/CONFIG][:SPLIT]`, a data set already prepared by
    tensorflow_datasets (split `train` unless given); the path of a UTF-8 text file (one document:
    its first 64 MiB) or of a `.jsonl` file (a document in the field `text` of every line), packed
    as `.xz` or `.gz` or not; otherwise the text itself. A single word that ends in a text file's
    suffix or has a slash in it is taken for a path.

    Raises:
      DataError: the file, data set or text cannot be read, or holds no text. For sources that are
        read lazily (`.jsonl`, data sets) a bad record is found while `texts` is read.
    """
    if source == "pydoc":
        return Documents("the help texts of Python (pydoc)", _Pydoc())
    if source.startswith("tfds:"):
        return _from_tfds(source)
    path = os.path.expanduser(source)
    if os.path.isfile(path):
        return _from_file(path)
    if os.path.isdir(path):
        raise DataError(f"text source {source} is a folder; expected: a text file in it")
    if _looks_like_a_path(source):
        raise DataError(
            f"text source {source!r} looks like a path, and there is no such file. A text that is "
            "given directly has at least one space in it"
        )
    return Documents("the text that was given", (_checked(source, "the text"),), literal=True)


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


def token_kind(piece: str) -> TokenKind:
    """Whether a token is a delimiter: only white space, or only sentence and clause punctuation.

    Sun et al. 2024 find massive activations at the first "." or newline. Here `. , ; : ! ?`, the
    ellipsis and their full-width forms count, with or without white space around them; brackets,
    quotes and words do not.

    Args:
      piece: the token as `Tokenizer.token_strings` gives it.
    """
    is_delimiter = piece != "" and all(c in _DELIMITERS for c in piece.strip())
    return "delimiter" if is_delimiter else "other"


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
            f"{documents.description}: {count} documents with {tokens} tokens in all; needed for "
            f"one sequence: {self._stride}. Ask for a smaller sequence length or give more text"
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


class _Pydoc:
    """The topics of `pydoc`, in alphabetical order."""

    def __iter__(self) -> Iterator[str]:
        from pydoc_data.topics import topics

        return (topics[name].strip() for name in sorted(topics))


def _from_file(path: str) -> Documents:
    if suffix(path) in LINE_SUFFIXES:
        return Documents(f"the lines of {path}", JsonLines(path))
    with open_binary(path) as file:
        data = file.read(MAX_FILE_BYTES)
        is_whole = not file.read(1)
    try:
        # A cut may fall inside a character: an incomplete one at the end is then no error.
        text = codecs.getincrementaldecoder("utf-8")().decode(data, final=is_whole)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {data[error.start]:#04x} at offset {error.start} "
            f"({error.reason})"
        ) from error
    text = text.removeprefix("\ufeff").replace("\r\n", "\n")
    return Documents(path if is_whole else f"the first 64 MiB of {path}", (_checked(text, path),))


class JsonLines:
    """A document in the field `text` of every line; read anew each time it is iterated over."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __iter__(self) -> Iterator[str]:
        with open_binary(self._path) as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield self._text(line, f"{self._path}, line {number}")

    @staticmethod
    def _text(line: bytes, where: str) -> str:
        try:
            record = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:  # of UTF-8 and of JSON
            raise DataError(f"{where} is not a JSON object in UTF-8: {error}") from error
        if not isinstance(record, dict):
            found = type(record).__name__
            raise DataError(f"{where} holds a {found}; expected: an object with a field 'text'")
        if not isinstance(record.get("text"), str):
            fields = ", ".join(map(repr, record)) or "none"
            raise DataError(f"{where} has no string in a field 'text'; its fields: {fields}")
        return _checked(record["text"], where, allow_blank=True)


def _from_tfds(source: str) -> Documents:
    name, _, split = source.removeprefix("tfds:").partition(":")
    split = split or "train"
    if not name:
        raise DataError(f"text source {source!r} names no data set; expected: tfds:NAME[:SPLIT]")
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"text source {source} needs tensorflow_datasets, which cannot be imported ({error}); "
            "install it with: pip install 'jax-massact[tfds]'"
        ) from error
    try:
        builder: Any = tfds.builder(name)
        splits = dict(builder.info.splits)
    except Exception as error:  # its errors share no narrower base class
        raise DataError(f"text source {source}: {_first_line(error)}") from error
    if not splits:
        raise DataError(
            f"text source {source}: the data set is not prepared in {builder.data_dir}. Prepare it "
            f"with: tfds build {name} --file_format=array_record"
        )
    if split not in splits:
        raise DataError(f"text source {source}: no split {split!r}; its splits: {_listed(splits)}")
    feature = _text_feature(builder.info.features, source)
    try:
        records = builder.as_data_source(split=split)
    except Exception as error:
        raise DataError(
            f"text source {source} cannot be read record by record ({_first_line(error)}); prepare "
            "it with --file_format=array_record"
        ) from error
    stamp = f"{builder.data_dir} {split} {len(records)}"
    return Documents(f"{name} ({split})", _Records(records, feature, source), stamp=stamp)


class _Records:
    """One string feature of a random-access data source."""

    def __init__(self, records: Any, feature: str, source: str) -> None:
        self._records = records
        self._feature = feature
        self._source = source

    def __iter__(self) -> Iterator[str]:
        for i in range(len(self._records)):
            value = self._records[i][self._feature]
            where = f"{self._source}, record {i}"
            try:
                text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not UTF-8 text: {error}") from error
            yield _checked(text, where, allow_blank=True)


def _text_feature(features: Any, source: str) -> str:
    """The feature named `text`, or the only one that holds a string."""

    def holds_string(feature: Any) -> bool:
        dtype = getattr(feature, "np_dtype", None)
        is_string = dtype is not None and np.dtype(dtype).kind in "OSU"
        return is_string and getattr(feature, "shape", None) == ()

    strings = [name for name, feature in dict(features).items() if holds_string(feature)]
    if "text" in strings:
        return "text"
    if len(strings) == 1:
        return strings[0]
    raise DataError(
        f"text source {source}: no feature 'text' and not exactly one string; its string features: "
        f"{_listed(strings) or 'none'}"
    )


def _looks_like_a_path(source: str) -> bool:
    if not source or any(c.isspace() for c in source):
        return False
    has_separator = "/" in source or os.sep in source
    return has_separator or suffix(source) in _TEXT_SUFFIXES


def _checked(text: str, where: str, *, allow_blank: bool = False) -> str:
    if not allow_blank and not text.strip(string.whitespace + "\ufeff\u200b\u00a0"):
        raise DataError(f"{where} is empty" if not text else f"{where} holds only white space")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{where} holds a lone surrogate at character {error.start}; expected: valid Unicode"
        ) from error
    return text


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
