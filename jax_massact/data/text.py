"""Documents: what a text source means."""

import codecs
import dataclasses
import os
import string
from collections.abc import Iterable, Iterator

from jax_massact.data.files import LINE_SUFFIXES, open_binary, suffix
from jax_massact.data.jsonl import JsonLines
from jax_massact.data.tfds import open_tfds
from jax_massact.data.unicode import check_unicode
from jax_massact.errors import DataError

# The most that is read of one plain text file: more than any probe asks for.
MAX_FILE_BYTES = 64 * 2**20
_TEXT_SUFFIXES = LINE_SUFFIXES | {
    ".txt", ".text", ".md", ".rst", ".csv", ".tsv", ".html", ".xml", ".tex", ".py", ".log"
}


@dataclasses.dataclass(frozen=True, slots=True)
class Documents:
    """Texts to read, in order.

    Attributes:
      description: the source, in words.
      texts: the documents; may be read lazily from a file, and more than once.
      literal: whether the one document is the text that the user typed.
      stamp: a text that changes when the documents do; None: only the texts themselves.
    """

    description: str
    texts: Iterable[str]
    literal: bool = False
    stamp: str | None = None


def documents(source: str, text_field: str = "text") -> Documents:
    """The documents that a user means by `source`.

    It is, in this order of precedence: `pydoc`, the help texts of the running Python (about 80
    documents of English); `tfds:NAME[/CONFIG][:SPLIT]`, a data set already prepared by
    tensorflow_datasets (split `train` unless given); the path of a UTF-8 text file (one document:
    its first 64 MiB) or of JSON lines (`.jsonl`, `.ndjson` or `.json`: a document in the field
    `text_field` of every line), packed as `.xz`, `.gz` or `.bz2` or not; otherwise the text itself.
    A single word that ends in a text file's suffix or has a slash in it is taken for a path.

    Raises:
      DataError: the file, data set or text cannot be read, or holds no text. For sources that are
        read lazily (JSON lines, data sets) a bad record is found while `texts` is read.
    """
    if source == "pydoc":
        return Documents("the help texts of Python (pydoc)", _Pydoc())
    if source.startswith("tfds:"):
        data_set = open_tfds(source, text_field)
        return Documents(data_set.description, data_set, stamp=data_set.stamp)
    path = os.path.expanduser(source)
    if os.path.isfile(path):
        return _from_file(path, text_field)
    if os.path.isdir(path):
        raise DataError(f"text source {source} is a folder; expected: a text file in it")
    if _looks_like_a_path(source):
        raise DataError(
            f"text source {source!r} looks like a path, and there is no such file. A text that is "
            "given directly has at least one space in it"
        )
    _check_not_blank(source, "the text")
    return Documents("the text that was given", (source,), literal=True)


class _Pydoc:
    """The topics of `pydoc`, in alphabetical order."""

    def __iter__(self) -> Iterator[str]:
        from pydoc_data.topics import topics

        return (topics[name].strip() for name in sorted(topics))


def _from_file(path: str, text_field: str) -> Documents:
    if suffix(path) in LINE_SUFFIXES:
        return Documents(f"the lines of {path}", JsonLines(path, text_field))
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
    _check_not_blank(text, path)
    return Documents(path if is_whole else f"the first 64 MiB of {path}", (text,))


def _looks_like_a_path(source: str) -> bool:
    if not source or any(c.isspace() for c in source):
        return False
    has_separator = "/" in source or os.sep in source
    return has_separator or suffix(source) in _TEXT_SUFFIXES


def _check_not_blank(text: str, name: str) -> None:
    if not text.strip(string.whitespace + "\ufeff\u200b\u00a0"):
        raise DataError(f"{name} is empty" if not text else f"{name} holds only white space")
    check_unicode(text, name)
