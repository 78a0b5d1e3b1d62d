"""GGUF files, versions 2 and 3: metadata, and tensors of every type that can be dequantized.

Layout (github.com/ggml-org/ggml, docs/gguf.md): the magic `GGUF`, version, counts, key-value pairs,
tensor descriptions, then the tensors' bytes one after another, each aligned. Nothing is allocated
for a count before that many entries are known to fit into the file.
"""

import functools
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from jax_massact.errors import WeightsError
from jax_massact.weights.tensors import (
    Decode,
    Tensor,
    check_digest,
    merge,
    reading,
    size_of,
)

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
# Value type -> NumPy type, for those of a fixed size.
_SCALARS = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_STRING, _ARRAY = 8, 9
_MAX_NESTING = 4
_MAX_DIMS = 4
_MAX_NAME = 65_535
# The fewest bytes that an entry can take: a name's length and its type, and what follows.
_MIN_PAIR, _MIN_TENSOR = 8 + 4 + 1, 8 + 4 + 4 + 8
# Blocks are dequantized by the group, so that scratch space stays small and in cache.
_DECODE_ELEMENTS = 1 << 16
_PART_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")


class Metadata(Mapping[str, Any]):
    """The key-value pairs of a GGUF file, each decoded when it is asked for."""

    def __init__(self, header: "_Header", places: Mapping[str, tuple[int, int]]):
        self._header = header
        self._places = places

    def __getitem__(self, key: str) -> Any:
        kind, at = self._places[key]
        # A cursor of its own: threads may read at once.
        return self._header.cursor(at).value(key, kind)

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class GgufFile(NamedTuple):
    """A GGUF file, or a split one as a whole.

    Attributes:
      metadata: of the first file.
      tensors: by name.
    """

    metadata: Metadata
    tensors: dict[str, Tensor]


def open_gguf(path: Path) -> GgufFile:
    """Reads the header of a GGUF file, and of all parts of a split one.

    Raises:
      WeightsError: a file is damaged, truncated, of another version or byte order, or a part is
        missing; or a digest stated beside it differs.
    """
    first = _open_one(path)
    count = first.metadata.get("split.count", 0)
    if not isinstance(count, int) or count <= 1:
        return first
    parts = [_open_part(part, i, count) for i, part in enumerate(_parts(path, count))]
    tensors = merge(part.tensors for part in parts)
    total = first.metadata.get("split.tensors.count", len(tensors))
    if total != len(tensors):
        raise WeightsError(
            f"{path}: its {count} parts hold {len(tensors)} tensors; expected: {total}, as "
            "split.tensors.count states"
        )
    return GgufFile(parts[0].metadata, tensors)


def _parts(path: Path, count: int) -> list[Path]:
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match[3]) != count:
        raise WeightsError(
            f"{path}: split.count says that it is one of {count} parts; expected: a file name that "
            f"ends in -00001-of-{count:05d}.gguf"
        )
    parts = [path.with_name(f"{match[1]}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    missing = next((part for part in parts if not part.exists()), None)
    if missing is not None:
        raise WeightsError(f"{path}: part {missing.name} is missing; expected: all {count} parts")
    return parts


def _open_part(path: Path, index: int, count: int) -> GgufFile:
    part = _open_one(path)
    for key, expected in (("split.no", index), ("split.count", count)):
        if part.metadata.get(key) != expected:
            found = part.metadata.get(key)
            raise WeightsError(f"{path}: {key} is {found!r}; expected: {expected}")
    return part


def _open_one(path: Path) -> GgufFile:
    check_digest(path)
    size = size_of(path)
    if size < 24:
        raise WeightsError(f"{path} has {size} bytes; expected: a GGUF file, at least 24 bytes")
    with reading(path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = _Header(path, data, size)
        places, descriptions = header.walk()
        # Only the header stays in memory, and only as it is in the file.
        header.data = data[: header.at]
    metadata = Metadata(header, places)
    return GgufFile(metadata, _place(header, metadata, descriptions))


class _Description(NamedTuple):
    """The header's entry for a tensor; `dims` runs fastest first."""

    name: str
    dims: tuple[int, ...]
    type: int
    offset: int


class _Header:
    """A cursor over the header of one file that never leaves it."""

    def __init__(self, path: Path, data: Any, size: int):
        self.path, self.data, self.size, self.at = path, data, size, 0

    def walk(self) -> tuple[dict[str, tuple[int, int]], list[_Description]]:
        """Walks over the whole header; `at` is then its end.

        Returns the (type, position) of each metadata value, and the tensors in order.
        """
        tensors, pairs = self._counts()
        places: dict[str, tuple[int, int]] = {}
        for i in range(pairs):
            key = self.text(f"the name of metadata entry {i}")
            kind = self.u32(f"the type of {key}")
            if key in places:
                raise self.error(f"metadata entry {key!r} stands twice", "each key once")
            places[key] = (kind, self.at)
            self._skip(key, kind)
        names: set[str] = set()
        descriptions = []
        for i in range(tensors):
            descriptions.append(self._description(i))
            name = descriptions[-1].name
            if name in names:
                raise self.error(f"tensor {name!r} stands twice", "each tensor once")
            names.add(name)
        return places, descriptions

    def _counts(self) -> tuple[int, int]:
        if self.data[:4] != b"GGUF":
            raise self.error(f"begins with {self.data[:4]!r}", "b'GGUF', the mark of a GGUF file")
        self.at = 4
        version = self.u32("the version")
        if version & 0xFFFF == 0 and version:
            raise self.error("is big-endian", "a little-endian GGUF file")
        if version not in (2, 3):
            raise self.error(f"is GGUF version {version}", "version 2 or 3")
        tensors, pairs = self.u64("the number of tensors"), self.u64("the number of pairs")
        self._check_count("tensors", tensors, _MIN_TENSOR)
        self._check_count("metadata entries", pairs, _MIN_PAIR)
        return tensors, pairs

    def _check_count(self, what: str, count: int, least: int) -> None:
        room = (self.size - self.at) // least
        if count > room:
            raise self.error(
                f"states {count:,} {what}",
                f"at most {room:,}, as many as its {self.size:,} bytes can hold",
            )

    def _description(self, i: int) -> _Description:
        name = self.text(f"the name of tensor {i}")
        count = self.u32(f"the number of dimensions of tensor {name!r}")
        if not 1 <= count <= _MAX_DIMS:
            raise self.error(f"tensor {name!r} has {count:,} dimensions", f"1 to {_MAX_DIMS}")
        dims = tuple(self.u64(f"a dimension of tensor {name!r}") for _ in range(count))
        kind = self.u32(f"the type of tensor {name!r}")
        return _Description(name, dims, kind, self.u64(f"the offset of tensor {name!r}"))

    # Reading one value

    def take(self, count: int, what: str) -> int:
        """Moves on by `count` bytes and returns where they begin."""
        start = self.at
        if count > self.size - start:
            raise self.error(
                f"{what} takes {count:,} bytes at {start:,}",
                f"at most {self.size - start:,}, where the file ends",
            )
        self.at = start + count
        return start

    def u32(self, what: str) -> int:
        return _U32.unpack_from(self.data, self.take(4, what))[0]

    def u64(self, what: str) -> int:
        return _U64.unpack_from(self.data, self.take(8, what))[0]

    def text(self, what: str) -> str:
        length = self.u64(what)
        if length > _MAX_NAME:
            raise self.error(f"{what} has {length:,} bytes", f"at most {_MAX_NAME:,}")
        start = self.take(length, what)
        return self._decode_text(self.data[start : self.at], what)

    def _decode_text(self, raw: bytes, what: str) -> str:
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{what} is {raw[:40]!r}", "text in UTF-8") from error

    def _skip(self, key: str, kind: int, nesting: int = 0) -> None:
        if kind in _SCALARS:
            self.take(_SCALARS[kind].itemsize, key)
        elif kind == _STRING:
            self.take(self.u64(key), key)
        elif kind == _ARRAY:
            self._skip_array(key, nesting)
        else:
            raise self.error(f"metadata entry {key!r} has type {kind}", "0 to 12")

    def _skip_array(self, key: str, nesting: int) -> None:
        kind, count = self.u32(key), self.u64(key)
        if kind in _SCALARS:
            self.take(count * _SCALARS[kind].itemsize, key)
            return
        if kind == _STRING:
            self._skip_strings(key, count)
            return
        if nesting == _MAX_NESTING:
            raise self.error(f"{key} is nested too deeply", f"at most {_MAX_NESTING} levels")
        self._check_count(f"entries of {key}", count, 12)
        for _ in range(count):
            self._skip(key, kind, nesting + 1)

    def _skip_strings(self, key: str, count: int) -> None:
        # A vocabulary has some hundred thousand: a tight loop.
        self._check_count(f"entries of {key}", count, 8)
        data, at, last, unpack = self.data, self.at, self.size - 8, _U64.unpack_from
        for _ in range(count):
            if at > last:
                at = self.size + 1
                break
            at += 8 + unpack(data, at)[0]
        if at > self.size:
            raise self.error(
                f"{key}, of {count:,} strings, goes on beyond byte {self.size:,}",
                "an end before the file's",
            )
        self.at = at

    # Decoding the values

    def cursor(self, at: int) -> "_Header":
        """Another cursor over the same header, at `at`."""
        other = _Header(self.path, self.data, self.size)
        other.at = at
        return other

    def value(self, key: str, kind: int) -> Any:
        """The value of type `kind` that begins here, as a Python object."""
        if kind in _SCALARS:
            return self._scalars(key, kind, 1)[0]
        if kind == _STRING:
            return self._string(key)
        kind, count = self.u32(key), self.u64(key)
        if kind in _SCALARS:
            return self._scalars(key, kind, count)
        return [self.value(key, kind) for _ in range(count)]

    def _scalars(self, key: str, kind: int, count: int) -> list[Any]:
        start = self.take(count * _SCALARS[kind].itemsize, key)
        return np.frombuffer(self.data, _SCALARS[kind], count, start).tolist()

    def _string(self, key: str) -> str:
        start = self.take(self.u64(key), key)
        return self._decode_text(self.data[start : self.at], key)

    def error(self, found: str, expected: str) -> WeightsError:
        return WeightsError(f"{self.path}: {found}; expected: {expected}")


def _place(
    header: _Header, metadata: Metadata, descriptions: list[_Description]
) -> dict[str, Tensor]:
    """The tensors, whose bytes must follow each other without a gap, as ggml itself requires."""
    alignment = _alignment(header, metadata)
    start = _align(header.at, alignment)
    expected = 0
    tensors = {}
    for d in descriptions:
        kind, nbytes = _sized(header, d)
        if d.offset != expected:
            raise header.error(
                f"tensor {d.name!r} begins at offset {d.offset:,}",
                f"{expected:,}, where the tensor before it ends",
            )
        if start + d.offset + nbytes > header.size:
            raise header.error(
                f"is truncated: it has {header.size:,} bytes, and tensor {d.name!r} takes those "
                f"from {start + d.offset:,} to {start + d.offset + nbytes:,}",
                f"at least {start + d.offset + nbytes:,} bytes",
            )
        tensors[d.name] = Tensor(
            d.name, header.path, d.dims[::-1], kind.name, start + d.offset, nbytes, _decoder(kind)
        )
        expected = _align(d.offset + nbytes, alignment)
    if header.size > max(start + expected, header.at):
        raise header.error(
            f"{header.size - start - expected:,} bytes follow the last tensor",
            "the end of the file",
        )
    return tensors


def _alignment(header: _Header, metadata: Metadata) -> int:
    value = metadata.get("general.alignment", 32)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1 or value & (value - 1):
        raise header.error(f"general.alignment is {value!r}", "a power of two")
    return value


def _align(position: int, alignment: int) -> int:
    return -(-position // alignment) * alignment


def _sized(header: _Header, d: _Description) -> tuple[GGMLQuantizationType, int]:
    """A tensor's type and its number of bytes."""
    try:
        kind = GGMLQuantizationType(d.type)
    except ValueError as error:
        raise header.error(
            f"tensor {d.name!r} has type {d.type}", "a type of the gguf package"
        ) from error
    block, nbytes = GGML_QUANT_SIZES[kind]
    if min(d.dims) < 1:
        raise header.error(f"tensor {d.name!r} has shape {[*d.dims[::-1]]}", "sizes above 0")
    if d.dims[0] % block:
        raise header.error(
            f"tensor {d.name!r} of type {kind.name} has rows of {d.dims[0]:,}",
            f"a multiple of {block}",
        )
    for size in d.dims:
        nbytes *= size
    return kind, nbytes // block


@functools.cache
def _decoder(kind: GGMLQuantizationType) -> Decode | None:
    """The function from raw bytes of a type to float32; None: the gguf package has none."""
    block, nbytes = GGML_QUANT_SIZES[kind]
    if kind == GGMLQuantizationType.F32:
        return lambda raw: raw.view(np.float32)
    if kind == GGMLQuantizationType.F16:
        return lambda raw: raw.view(np.float16)
    try:
        _dequantize(np.zeros((1, nbytes), np.uint8), kind)
    except NotImplementedError:
        return None

    def decode(raw: np.ndarray) -> np.ndarray:
        out = np.empty(raw.size // nbytes * block, np.float32)
        step = max(_DECODE_ELEMENTS // block, 1)
        for i in range(0, raw.size // nbytes, step):
            blocks = raw[i * nbytes : (i + step) * nbytes]
            # One long row: the package works through rows in a Python loop.
            out[i * block : (i + step) * block] = _dequantize(blocks[None], kind)[0]
        return out

    return decode


def _dequantize(rows: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    # Damaged scales overflow; `Tensor.read` says so with the place.
    with np.errstate(all="ignore"):
        return dequantize(rows, kind)
