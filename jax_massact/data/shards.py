"""Files of token ids: raw words, with or without llm.c's header, or NumPy arrays."""

from pathlib import Path

import numpy as np

from jax_massact.data.files import SHARD_SUFFIXES, check_format, readable
from jax_massact.data.packed import Packed, check_ids
from jax_massact.errors import DataError

# llm.c puts 256 words of 32 bits in front of the ids. By the first, its mark: the second, a
# version, and the type of the ids (GPT-2's and Llama 3's).
_LLM_C = {20240520: (1, "<u2"), 20240801: (7, "<u4")}
_LLM_C_HEADER = 256 * 4
_MEGATRON = b"MMIDIDX"  # begins the index `X.idx` of a file `X.bin`
_PICKLE = b"\x80\x02\x8a\x0a"  # begins a checkpoint of PyTorch
# Ids of 32 bits have this at most in their upper halves: vocabularies end below 2^20.
_HIGH_WORD, _FEW = 15, 32
_CHECKED = 1 << 20  # ids at a file's start that are looked at before anything is trained


def open_shards(paths: list[Path], vocab_size: int) -> Packed:
    """Memory-maps files of ids, one part each.

    `.bin` holds unsigned 16-bit little-endian ids and nothing else (nanoGPT), or ids of 16 or 32
    bits after llm.c's header, which states their type. `.npy` holds one dimension of integers.

    Raises:
      DataError: a file cannot be read, is empty or damaged, is of another layout, or has an id of
        `vocab_size` or more near its start.
    """
    return Packed([_open(path, vocab_size) for path in paths])


def _open(path: Path, vocab_size: int) -> np.ndarray:
    kind = path.suffix.lower()
    if kind not in SHARD_SUFFIXES:
        raise DataError(f"{path} is packed; ids are read in place: unpack it first")
    with readable(path):
        head = _head(path)
    check_format(path, head)
    ids = _open_npy(path) if kind == ".npy" else _open_bin(path, head)
    if not len(ids):
        raise DataError(f"{path} holds no ids")
    check_ids(ids[:_CHECKED], vocab_size, str(path))
    return ids


def _open_bin(path: Path, head: bytes) -> np.ndarray:
    with readable(path):
        size = path.stat().st_size
        _check_layout(path, head)
        mark, version, count = np.frombuffer(head[:12].ljust(12, b"\0"), "<u4").tolist()
        expected, dtype = _LLM_C.get(mark, (None, "<u2"))
        skipped = 0 if expected is None else _LLM_C_HEADER
        if expected not in (None, version):
            raise DataError(
                f"{path} begins with llm.c's mark {mark} and version {version}; expected: version "
                f"{expected}"
            )
        item = np.dtype(dtype).itemsize
        if size % item:
            raise DataError(
                f"{path} has {size} bytes; expected: ids of {item} bytes each, a multiple of {item}"
            )
        # An empty file cannot be mapped.
        ids = np.memmap(path, dtype, "r", skipped) if size > skipped else np.empty(0, dtype)
    if skipped and count != len(ids):
        raise DataError(
            f"{path} is damaged or cut short: {len(ids)} ids; expected: {count}, from its header"
        )
    if not skipped and _looks_wider(ids[:_CHECKED]):
        raise DataError(
            f"{path} looks like ids of 32 bits: every second word of 16 bits is at most "
            f"{_HIGH_WORD}; expected: 16 bits, or a file that states its type, such as that of "
            "np.save('NAME.npy', np.fromfile('NAME.bin', 'uint32'))"
        )
    return ids


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(64)


def _check_layout(path: Path, head: bytes) -> None:
    """Raises DataError where a file is known to be something else than ids."""
    index = path.with_suffix(".idx")
    if index.is_file() and _head(index).startswith(_MEGATRON):
        raise DataError(
            f"{path} is a data set of Megatron-LM, whose index {index.name} states its type; "
            "expected: ids alone. Save them with np.save as a .npy file"
        )
    if head.startswith((b"\x93NUMPY", _PICKLE, b"GGUF")):
        raise DataError(
            f"{path} begins with {head[:6]!r}; expected: ids of 16 bits (a NumPy array has a name "
            "that ends in .npy)"
        )


def _looks_wider(words: np.ndarray) -> bool:
    low, high = words[::2], words[1::2]
    return len(high) >= _FEW and int(high.max()) <= _HIGH_WORD < int(low.max())


def _open_npy(path: Path) -> np.ndarray:
    try:
        with readable(path):
            # Unlike np.load, it takes no other kind of file.
            ids = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is not a NumPy array: {error}") from error
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise DataError(
            f"{path} holds {ids.dtype} of shape {ids.shape}; expected: integers in one dimension"
        )
    return ids
