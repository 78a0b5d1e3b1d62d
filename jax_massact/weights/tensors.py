"""Tensors in files: described without reading them, and read one at a time."""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from jax_massact.errors import WeightsError
from jax_massact.weights.lfs import HEAD_BYTES, pointer_problem

# Raw bytes, uint8 [n], to numbers, [m].
Decode = Callable[[np.ndarray], np.ndarray]

# Checked at a time, so that no mask of a whole tensor is made.
_FINITE_CHUNK = 1 << 20
# Bits that are all set in what is not finite: NumPy is slow at looking at 16 bits as numbers.
_EXPONENTS = {
    np.dtype(np.float16): np.uint16(0x7C00), np.dtype(ml_dtypes.bfloat16): np.uint16(0x7F80)
}
# XLA computes on arrays of the host as they lie where their addresses are multiples of this.
_ALIGNMENT = 64


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of a checkpoint that has not been read.

    Attributes:
      name: as the file calls it.
      file: the file that holds it.
      shape: in row-major order, as NumPy states it.
      dtype: the file format's name for its type, for people.
      offset, nbytes: place and number of its bytes, which are inside the file.
      decode: the function from raw bytes to numbers; None: its type holds no weights.
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: str
    offset: int
    nbytes: int
    decode: Decode | None

    def read(self) -> np.ndarray:
        """Returns its numbers: float16, bfloat16 or float32, of `shape`.

        Raises:
          WeightsError: the bytes are gone, or some number is infinite or not a number.
        """
        if self.decode is None:
            raise self.error(f"is of type {self.dtype}", "a type of floating-point weights")
        array = self.decode(self.raw()).reshape(self.shape)
        self._check_finite(array)
        return array

    def raw(self) -> np.ndarray:
        """Returns its bytes, uint8 [nbytes]."""
        # Read rather than mapped: a file that shrinks meanwhile is an error, not a signal.
        raw = _aligned(self.nbytes)
        with reading(self.file) as file:
            file.seek(self.offset)
            found = file.readinto(memoryview(raw))  # pyright: ignore[reportArgumentType]
        if found != self.nbytes:
            raise self.error(f"has {found:,} bytes left", f"{self.nbytes:,} bytes")
        return raw

    def error(self, found: str, expected: str) -> WeightsError:
        """The error that names this tensor, what was found and what was expected."""
        return WeightsError(f"{self.file}: tensor {self.name!r} {found}; expected: {expected}")

    def _check_finite(self, array: np.ndarray) -> None:
        flat = array.reshape(-1)
        exponent = _EXPONENTS.get(array.dtype)
        for start in range(0, flat.size, _FINITE_CHUNK):
            chunk = flat[start : start + _FINITE_CHUNK]
            if exponent and (chunk.view(np.uint16) & exponent).max() < exponent:
                continue
            finite = np.isfinite(chunk)
            if not finite.all():
                at = start + int(np.argmin(finite))
                index = [int(i) for i in np.unravel_index(at, self.shape)]
                raise self.error(f"is {float(flat[at])} at index {index}", "finite numbers")


def _aligned(nbytes: int) -> np.ndarray:
    room = np.empty(nbytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + nbytes]


def reading(path: Path) -> io.BufferedReader:
    """Opens a file for reading its bytes.

    Raises:
      WeightsError: it does not exist, is not a plain file, may not be read, or is a pointer of
        Git LFS.
    """
    if path.exists() and not path.is_file():
        # Opening a pipe would wait for a writer.
        raise WeightsError(f"{path} is not a plain file; expected: a file of weights")
    try:
        file = path.open("rb")
        problem = pointer_problem(file.peek(HEAD_BYTES))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    if problem:
        file.close()
        raise WeightsError(f"{path} {problem}")
    return file


def size_of(path: Path) -> int:
    """The number of bytes of a file.

    Raises:
      WeightsError: it cannot be read.
    """
    with reading(path) as file:
        return os.fstat(file.fileno()).st_size


def merge(parts: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of a checkpoint that has several files.

    Raises:
      WeightsError: a tensor lies in two of them.
    """
    merged: dict[str, Tensor] = {}
    for tensors in parts:
        for name, tensor in tensors.items():
            if name in merged:
                first = merged[name].file
                raise tensor.error(f"lies in {first.name} as well", "each tensor in one file")
            merged[name] = tensor
    return merged


def check_digest(path: Path) -> None:
    """Compares a file with `<file>.sha256` beside it, if there is one, as `sha256sum -c` would.

    Without it a flipped byte inside a tensor cannot be told from a weight.

    Raises:
      WeightsError: the digests differ, or the sidecar holds none for this file.
    """
    sidecar = path.with_name(f"{path.name}.sha256")
    if not sidecar.is_file():
        return
    expected = _stated_digest(sidecar, path.name)
    with reading(path) as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != expected:
        raise WeightsError(
            f"{path}: its SHA-256 is {found}; expected: {expected}, stated in {sidecar.name}"
        )


def _stated_digest(sidecar: Path, name: str) -> str:
    with reading(sidecar) as file:
        text = file.read(1 << 16).decode("utf-8", errors="replace")
    lines = re.findall(r"^([0-9a-fA-F]{64})(?:[ \t]+\*?(.*?))?\s*$", text, re.MULTILINE)
    named = [digest for digest, of in lines if of == name]
    if not named and len(lines) == 1:
        named = [lines[0][0]]
    if len(named) != 1:
        raise WeightsError(
            f"{sidecar} states {len(named)} digests for {name}; expected: one line as sha256sum "
            "prints it"
        )
    return named[0].lower()
