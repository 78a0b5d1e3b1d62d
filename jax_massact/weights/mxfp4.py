"""MXFP4 in safetensors, as gpt-oss is published (OCP Microscaling Formats 1.0).

A matrix X is two tensors: `X_blocks`, uint8 [..., rows, blocks, 16], with two numbers of four bits
in a byte, the lower half first, and `X_scales`, uint8 [..., rows, blocks], the exponents of the
factor of each block of 32. Rows are outputs: X itself, with inputs first, is the transpose.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

import ml_dtypes
import numpy as np

from jax_massact.weights.tensors import Tensor

_BLOCKS, _SCALES = "_blocks", "_scales"
_BYTES = 16  # of a block
_BIAS = 127  # of an exponent
# Sign, two bits of exponent, one of mantissa.
_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_NUMBERS = np.array([*_POSITIVE, *(-x for x in _POSITIVE)], np.float32)


@dataclass(frozen=True, slots=True)
class _Packed(Tensor):
    """The matrix of two tensors; the place is that of its blocks.

    Attributes:
      scales: the other tensor.
    """

    scales: Tensor

    def raw(self) -> np.ndarray:
        """The bytes of the blocks, then of the scales."""
        return np.concatenate([Tensor.raw(self), self.scales.raw()])


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a folder, with one in place of each pair of blocks and scales.

    Raises:
      WeightsError: the shapes of a pair do not fit together.
    """
    found = dict(tensors)
    for name, blocks in tensors.items():
        base = name.removesuffix(_BLOCKS)
        scales = tensors.get(base + _SCALES)
        if base == name or scales is None:
            continue
        if blocks.dtype != "U8" or scales.dtype != "U8" or len(blocks.shape) < 3:
            raise blocks.error(f"is of type {blocks.dtype}", "U8, blocks of MXFP4")
        if blocks.shape != (*scales.shape, _BYTES):
            raise blocks.error(
                f"has shape {[*blocks.shape]}", f"{[*scales.shape, _BYTES]}, from its scales"
            )
        *front, rows, count = scales.shape
        shape = (*front, 2 * _BYTES * count, rows)
        decode = functools.partial(_decode, scales.shape)
        del found[name], found[base + _SCALES]
        found[base] = _Packed(
            base, blocks.file, shape, "MXFP4", blocks.offset, blocks.nbytes, decode, scales
        )
    return found


def _decode(shape: tuple[int, ...], raw: np.ndarray) -> np.ndarray:
    """The matrix, in bfloat16, which holds every such number."""
    count = int(np.prod(shape))
    blocks, scales = raw[: count * _BYTES].reshape(*shape, _BYTES), raw[count * _BYTES :]
    halves = np.stack([blocks & 0x0F, blocks >> 4], axis=-1)
    factors = np.ldexp(np.float32(1), scales.astype(np.int32) - _BIAS).reshape(*shape, 1)
    numbers = _NUMBERS[halves].reshape(*shape, 2 * _BYTES) * factors
    rows = numbers.reshape(*shape[:-1], -1).astype(ml_dtypes.bfloat16)
    return np.ascontiguousarray(rows.swapaxes(-1, -2))
