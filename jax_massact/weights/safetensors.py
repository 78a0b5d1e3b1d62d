"""Safetensors files: a JSON header, then the tensors' bytes without a gap.

Layout: github.com/huggingface/safetensors, README, "Format". Read here rather than by
`safetensors.safe_open`, for two reasons measured on version 0.8: it maps the file, so that one that
shrinks ends the process with a bus error in place of a message; and of 27 damaged files its
errors name the file for none and the tensor for 4.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jax_massact.errors import WeightsError
from jax_massact.weights.tensors import (
    Decode,
    Tensor,
    check_digest,
    reading,
    size_of,
)

# The format's own limit.
_MAX_HEADER = 100_000_000
# NumPy's.
_MAX_DIMS = 64

_DECODERS: dict[str, Decode] = {
    "F64": lambda raw: _narrowed(raw.view("<f8")),
    "F32": lambda raw: raw.view("<f4"),
    "F16": lambda raw: raw.view("<f2"),
    "BF16": lambda raw: raw.view(ml_dtypes.bfloat16),
}
_ITEM_BYTES = {
    **{"BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1},
    **{"F8_E4M3FNUZ": 1, "F8_E5M2FNUZ": 1},
    **{"U16": 2, "I16": 2, "F16": 2, "BF16": 2},
    **{"U32": 4, "I32": 4, "F32": 4},
    **{"U64": 8, "I64": 8, "F64": 8, "C64": 8},
}


def _narrowed(array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # `Tensor.read` says where
        return array.astype(np.float32)


def open_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, by name.

    Raises:
      WeightsError: the file is damaged or truncated, or a digest stated beside it differs.
    """
    check_digest(path)
    header, start = _header(path)
    data = size_of(path) - start
    header.pop("__metadata__", None)
    tensors = [_tensor(path, name, entry, start, data) for name, entry in header.items()]
    _check_places(path, tensors, start, data)
    return {tensor.name: tensor for tensor in tensors}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the data begins."""
    size = size_of(path)
    with reading(path) as file:
        length = int.from_bytes(file.read(8), "little")
        limit = min(size - 8, _MAX_HEADER)
        if size < 8 or length > limit:
            raise WeightsError(
                f"{path}: states a header of {length:,} bytes and has {size:,} bytes in all; "
                f"expected: a whole safetensors file, with a header of at most {max(limit, 0):,}"
            )
        raw = file.read(length)
    header = parse_json(raw, f"{path}: its header", "{")
    return header, 8 + length


def parse_json(raw: bytes, what: str, opening: str = "") -> dict[str, Any]:
    """A JSON object in which no key stands twice.

    Args:
      what: a name for it in errors.
      opening: the text it must begin with, to the byte.

    Raises:
      WeightsError: it is something else.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in pairs:
            if key in found:
                raise WeightsError(f"{what} has {key!r} twice; expected: each key once")
            found[key] = value
        return found

    try:
        text = raw.decode("utf-8")
        value = json.loads(text, object_pairs_hook=unique)
    except WeightsError:
        raise
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{what} is not JSON: {error}; expected: a JSON object") from error
    if not isinstance(value, dict) or not text.startswith(opening):
        raise WeightsError(f"{what} is {text[:40]!r}; expected: a JSON object")
    return value


def _tensor(path: Path, name: str, entry: Any, start: int, data: int) -> Tensor:
    """The tensor of an entry, whose bytes are inside the file and fit its shape and type."""

    def error(found: str, expected: str) -> WeightsError:
        return WeightsError(f"{path}: tensor {name!r} {found}; expected: {expected}")

    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        keys = sorted(entry) if isinstance(entry, Mapping) else entry
        raise error(f"is described by {keys!r}", "dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise error(f"has dtype {dtype!r}", f"one of {', '.join(_ITEM_BYTES)}")
    if not _are_sizes(shape) or len(shape) > _MAX_DIMS:
        raise error(f"has shape {str(shape)[:80]}", f"a list of at most {_MAX_DIMS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise error(f"has data_offsets {offsets!r}", "[begin, end]")
    begin, end = offsets
    if end > data:
        raise WeightsError(
            f"{path}: is truncated: it has {start + data:,} bytes, and tensor {name!r} takes those "
            f"from {start + begin:,} to {start + end:,}; expected: at least {start + end:,} bytes"
        )
    nbytes = _ITEM_BYTES[dtype]
    for size in shape:
        nbytes *= size
    if end - begin != nbytes:
        raise error(
            f"has {end - begin:,} bytes", f"{nbytes:,} for shape {shape} of type {dtype}"
        )
    return Tensor(name, path, tuple(shape), dtype, start + begin, nbytes, _DECODERS.get(dtype))


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _check_places(path: Path, tensors: list[Tensor], start: int, data: int) -> None:
    """Raises WeightsError unless the tensors cover the data, each byte once."""
    at = start
    for tensor in sorted(tensors, key=lambda t: (t.offset, t.nbytes)):
        if tensor.offset != at:
            raise tensor.error(
                f"begins at byte {tensor.offset - start:,} of the data",
                f"{at - start:,}, where the tensor before it ends",
            )
        at += tensor.nbytes
    if at != start + data:
        raise WeightsError(
            f"{path}: {start + data - at:,} bytes follow the last tensor; expected: the end of "
            "the file"
        )
