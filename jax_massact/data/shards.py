"""Files of token ids: raw 16-bit words or NumPy arrays."""

from pathlib import Path

import numpy as np

from jax_massact.data.files import SHARD_SUFFIXES, readable
from jax_massact.data.packed import Packed, check_ids
from jax_massact.errors import DataError

# llm.c puts 256 words of 32 bits in front of the ids, of which these are the first two.
_LLM_C_START = (20240520, 1)
_LLM_C_HEADER = 256 * 4
_CHECKED = 1 << 20  # ids at a file's start that are looked at before anything is trained


def open_shards(paths: list[Path], vocab_size: int) -> Packed:
    """Memory-maps files of ids, one part each.

    `.bin` holds unsigned 16-bit little-endian ids and nothing else (nanoGPT), or the same after
    llm.c's header, by which it is known. `.npy` holds one dimension of integers.

    Raises:
      DataError: a file cannot be read, is empty or damaged, or has an id of `vocab_size` or more
        near its start.
    """
    return Packed([_open(path, vocab_size) for path in paths])


def _open(path: Path, vocab_size: int) -> np.ndarray:
    kind = path.suffix.lower()
    if kind not in SHARD_SUFFIXES:
        raise DataError(f"{path} is packed; ids are read in place: unpack it first")
    ids = _open_npy(path) if kind == ".npy" else _open_bin(path)
    if not len(ids):
        raise DataError(f"{path} holds no ids")
    check_ids(ids[:_CHECKED], vocab_size, str(path))
    return ids


def _open_bin(path: Path) -> np.ndarray:
    with readable(path):
        size = path.stat().st_size
        if size % 2:
            raise DataError(
                f"{path} has an odd number of bytes, {size}; expected: ids of 2 bytes each"
            )
        start = tuple(np.fromfile(path, "<u4", 3))
        skipped = _LLM_C_HEADER if start[:2] == _LLM_C_START else 0
        # An empty file cannot be mapped.
        ids = np.memmap(path, "<u2", "r", skipped) if size > skipped else np.empty(0, "<u2")
    if skipped and start[2] != len(ids):
        raise DataError(
            f"{path} is damaged or cut short: {len(ids)} ids; its header says {start[2]}"
        )
    return ids


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
