"""Files of a data source: finding, telling apart and opening them."""

import bz2
import contextlib
import glob
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from jax_massact.errors import DataError
from jax_massact.weights.lfs import HEAD_BYTES, pointer_problem

SHARD_SUFFIXES = frozenset((".bin", ".npy"))
LINE_SUFFIXES = frozenset((".jsonl", ".ndjson", ".json"))
# Files that are taken from a folder; a file that is named may be called anything.
_TEXT_SUFFIXES = LINE_SUFFIXES | {".txt", ".text", ".md", ".rst"}
_OPENERS = {".xz": lzma.open, ".gz": gzip.open, ".bz2": bz2.open}
# Formats that are not read: suffix, first bytes, and what to do about it.
_TO_JSON = (
    "python -c \"import pandas; "
    "pandas.{}('{}').to_json('{}.jsonl', orient='records', lines=True)\""
)
_NOT_READ = (
    (".zst", b"\x28\xb5\x2f\xfd", "packed with zstandard", "zstd -d {path}"),
    (".parquet", b"PAR1", "a Parquet table", _TO_JSON.format("read_parquet", "{path}", "{path}")),
    (".arrow", b"ARROW1", "an Arrow table", _TO_JSON.format("read_feather", "{path}", "{path}")),
    (".zip", b"PK\x03\x04", "a zip archive", "unzip {path}"),
)
_LISTED = 3
# Hidden files, those about a data set, and a model's beside one.
_NOT_DATA = re.compile(
    r"\.|readme|licen[cs]e"
    r"|(dataset_infos?|dataset_dict|state|features|metadata|config|tokenizer\w*)\.json$",
    re.IGNORECASE,
)
_NAMED = {
    "validation": re.compile(r"(^|[._-])(val|valid|validation|dev|eval)([._-]|$)", re.IGNORECASE),
    "test": re.compile(r"(^|[._-])test([._-]|$)", re.IGNORECASE),
}


def find_files(source: str) -> list[Path]:
    """The files that a path, a folder or a glob names; none if `source` is none of these.

    Of a folder: its text files and shards at any depth, but for hidden ones and those about the
    data set (readmes, licences, dataset_info.json and the like).
    The order is that of their names.

    Raises:
      DataError: the folder or the glob has no file, or text and shards are mixed.
    """
    path = os.path.expanduser(source)
    if os.path.isfile(path):
        return [Path(path)]
    if os.path.isdir(path):
        files = [p for p in _walk(Path(path)) if suffix(p) in _TEXT_SUFFIXES | SHARD_SUFFIXES]
        if not files:
            for found in _walk(Path(path)):
                with open_binary(found):
                    pass  # which says how to convert it, if that is known
            wanted = ", ".join(sorted(_TEXT_SUFFIXES | SHARD_SUFFIXES))
            raise DataError(f"folder {source} has no file to read; expected: any of {wanted}")
    elif glob.has_magic(path) and not any(c.isspace() for c in path):
        files = sorted(Path(p) for p in glob.glob(path, recursive=True) if os.path.isfile(p))
        if not files:
            raise DataError(f"no file matches {source}")
    else:
        return []
    if 0 < sum(map(is_shard, files)) < len(files):
        shard = next(filter(is_shard, files))
        text = next(p for p in files if not is_shard(p))
        raise DataError(
            f"{source} has both shards of ids ({shard.name}) and text ({text.name}); expected: one "
            "or the other"
        )
    return files


def called(source: str, files: list[Path]) -> str:
    """The name of a source of files, with their number."""
    return source if len(files) == 1 else f"{source} ({len(files)} files)"


def suffix(path: str | os.PathLike[str]) -> str:
    """The suffix of a file's name, in lower case, without that of its compression."""
    stem, last = os.path.splitext(os.fspath(path).lower())
    return os.path.splitext(stem)[1] if last in _OPENERS else last


def is_shard(path: Path) -> bool:
    return suffix(path) in SHARD_SUFFIXES


def splits_of(files: Sequence[Path]) -> list[str]:
    """The purpose of every file: `training`, `validation` or `test`.

    The names of files and of their folders inside the source say it: `val.bin`,
    `web_val_000.bin`, `wiki.test.raw`, `validation/0.txt`. Where none is left for training, all
    are: a single file is just data.
    """
    shared = Path(os.path.commonpath([path.absolute().parent for path in files])) if files else None
    splits = []
    for path in files:
        parts = path.absolute().relative_to(shared or "/").parts
        named = [split for part in reversed(parts)
                 for split, name in _NAMED.items() if name.search(part)]
        splits.append(named[0] if named else "training")
    return splits if "training" in splits else ["training"] * len(files)


def listed(files: Sequence[Path]) -> str:
    """The names of some files, for a line of text."""
    names = [path.name for path in files[:_LISTED]]
    more = len(files) - len(names)
    return ", ".join(names) + (f" and {more} more" if more else "")


def stamp(paths: Iterable[Path]) -> str:
    """A text that changes when the files do: their paths, sizes and times of modification.

    Raises:
      DataError: a file cannot be read.
    """
    lines = []
    for path in paths:
        with readable(path):
            status = path.stat()
        lines.append(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n")
    return "".join(lines)


def check_format(path: str | os.PathLike[str], head: bytes) -> None:
    """Raises DataError if a file that begins with `head` is of a format that is not read."""
    name = os.fspath(path)
    if problem := pointer_problem(head):
        raise DataError(f"{name} {problem}")
    for _, mark, what, command in _NOT_READ:
        if head.startswith(mark):
            raise DataError(
                f"{name} is {what}, which is not read; expected: text, or JSON lines. This makes "
                f"it readable: {command.format(path=name)}"
            )


@contextlib.contextmanager
def open_binary(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """Opens a file for reading, unpacking `.xz`, `.gz` and `.bz2`.

    Raises:
      DataError: it cannot be read, also later, while it is being read, or is of a format that is
        not read.
    """
    with readable(path):
        with open(path, "rb") as file:
            check_format(path, file.read(HEAD_BYTES))
        opener = _OPENERS.get(os.path.splitext(os.fspath(path))[1].lower(), open)
        with opener(path, "rb") as file:
            yield file  # pyright: ignore[reportReturnType]


@contextlib.contextmanager
def readable(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns errors in reading a file into a DataError that names it."""
    name = os.fspath(path)
    try:
        yield
    except (lzma.LZMAError, zlib.error, gzip.BadGzipFile, EOFError) as error:
        raise DataError(f"{name} is damaged or cut short: {error}") from error
    except OSError as error:
        raise DataError(f"{name} cannot be read: {error.strerror or error}") from error


def _walk(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(_NOT_DATA.match(part) for part in path.relative_to(folder).parts)
    )
