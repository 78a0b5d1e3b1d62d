"""Documents: the texts of a source."""

import codecs
import dataclasses
import difflib
import hashlib
import importlib.resources
import json
import lzma
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
HELP = "help-3.11"  # the default text
LITERAL = "text:"  # begins a source that is the text itself
_HELP_SHA256 = "63e6a0ff606cdb7bc3a531ef53a339d88dedc8c184199a423711c46cdf06a417"


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

    It is one of: `help-3.11`, the help texts of Python 3.11 (79 documents of English, the same
    everywhere); `pydoc`, those of the running Python; `tfds:NAME[/CONFIG][:SPLIT]`, a data set
    already prepared by tensorflow_datasets (split `train` unless given); `text:...`, the text after
    the colon; or the path of a UTF-8 text file (one document: its first 64 MiB) or of JSON lines
    (`.jsonl`, `.ndjson` or `.json`: a document in the field `text_field` of every line), packed as
    `.xz`, `.gz` or `.bz2` or not.

    Raises:
      DataError: the file, data set or text cannot be read, or holds no text. For sources that are
        read lazily (JSON lines, data sets) a bad record is found while `texts` is read.
    """
    if source == HELP:
        return Documents(f"the help texts of Python 3.11 ({HELP})", _Help(), stamp=_HELP_SHA256)
    if source == "pydoc":
        return Documents("the help texts of Python (pydoc)", _Pydoc())
    if source.startswith(LITERAL):
        text = source.removeprefix(LITERAL)
        _check_not_blank(text, "the text")
        return Documents("the text that was given", (text,), literal=True)
    if source.startswith("tfds:"):
        data_set = open_tfds(source, text_field)
        return Documents(data_set.description, data_set, stamp=data_set.stamp)
    path = os.path.expanduser(source)
    if os.path.isfile(path):
        return _from_file(path, text_field)
    if os.path.isdir(path):
        raise DataError(f"text source {source} is a folder; expected: a text file in it")
    raise DataError(_unknown(source))


def _unknown(source: str) -> str:
    """The error for a source that does not exist, with the nearest names of sources and files."""
    shown = repr(source if len(source) <= 200 else f"{source[:200]}...")
    message = f"there is no text source or file {shown}."
    parent, name = os.path.split(os.path.expanduser(source))
    try:
        files = os.listdir(parent or os.curdir)
    except (OSError, ValueError):
        files = []
        if parent:
            message = f"there is no text file {shown}, nor its folder."
    near = [os.path.join(parent, n) for n in difflib.get_close_matches(name, files, 2)]
    near += [] if parent else difflib.get_close_matches(source, (HELP, "pydoc"), 1)
    if near:
        message += f" Did you mean {' or '.join(near)}?"
    return (
        f"{message} Expected: {HELP}, pydoc, tfds:NAME[:SPLIT], a file, or {LITERAL}... for the "
        "text itself"
    )


class _Help:
    """The topics of CPython 3.11.7's `pydoc`, which come with this package."""

    def __iter__(self) -> Iterator[str]:
        file = importlib.resources.files("jax_massact.data") / "help" / "help-3.11.json.xz"
        content = lzma.decompress(file.read_bytes())
        if hashlib.sha256(content).hexdigest() != _HELP_SHA256:
            raise DataError(f"{file} is damaged; expected: SHA-256 {_HELP_SHA256}. Install again")
        return iter(json.loads(content))


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


def _check_not_blank(text: str, name: str) -> None:
    if not text.strip(string.whitespace + "\ufeff\u200b\u00a0"):
        raise DataError(f"{name} is empty" if not text else f"{name} holds only white space")
    check_unicode(text, name)
