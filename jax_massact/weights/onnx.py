"""The weights of an ONNX file by the names of the module that was exported.

Layout: github.com/onnx/onnx, onnx.proto. Only what holds weights is read: a graph's initializers
and, since exporters rename the matrices of linear layers, the nodes that multiply with them.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jax_massact.errors import WeightsError
from jax_massact.weights.tensors import reading

_GRAPH, _NODE, _INITIALIZER = 7, 1, 5
_INPUT, _NODE_NAME, _KIND = 1, 3, 4
_DIMS, _TYPE, _NAME, _RAW = 1, 2, 8, 9
_FLOAT = 1


def onnx_weights(path: Path) -> dict[str, np.ndarray]:
    """Every float32 initializer; the matrix of a linear layer as PyTorch names and lays it out.

    A matrix that the node `/a/b/MatMul` multiplies with is `a.b.weight`, transposed.

    Raises:
      WeightsError: the file cannot be read as ONNX.
    """
    with reading(path) as file:
        data = memoryview(file.read())
    try:
        graph = next(value for field, value in _fields(data) if field == _GRAPH)
        parts = list(_fields(graph))
        found = dict(filter(None, (_tensor(v) for f, v in parts if f == _INITIALIZER)))
        for field, value in parts:
            if field == _NODE and (matrix := _matrix(value)) and matrix[1] in found:
                name, tensor = matrix
                found[name] = found.pop(tensor).T
    except (StopIteration, IndexError, KeyError, ValueError, TypeError) as error:
        raise WeightsError(
            f"{path} cannot be read as ONNX ({error or type(error).__name__}); expected: a whole "
            "file with its weights inside"
        ) from None
    return found


def _tensor(message: memoryview) -> tuple[str, np.ndarray] | None:
    dims: list[int] = []
    kind, name, raw = 0, "", None
    for field, value in _fields(message):
        if field == _DIMS:
            dims += [value] if isinstance(value, int) else _numbers(value)
        elif field == _TYPE:
            kind = value
        elif field == _NAME:
            name = bytes(value).decode()
        elif field == _RAW:
            raw = value
    if kind != _FLOAT or raw is None:
        return None
    return name, np.frombuffer(raw, "<f4").reshape(dims)


def _matrix(message: memoryview) -> tuple[str, str] | None:
    """The name of a linear layer's matrix, and what the file calls it."""
    inputs, name, kind = [], "", ""
    for field, value in _fields(message):
        if field == _INPUT:
            inputs.append(bytes(value).decode())
        elif field == _NODE_NAME:
            name = bytes(value).decode()
        elif field == _KIND:
            kind = bytes(value).decode()
    if kind != "MatMul" or len(inputs) != 2:
        return None
    return name.strip("/").removesuffix("/MatMul").replace("/", ".") + ".weight", inputs[1]


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """(field, value) of a protocol buffer: numbers, or the bytes of all else."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        field, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _number(message, at)
        else:
            size, at = _number(message, at) if wire == 2 else ({1: 8, 5: 4}[wire], at)
            value = message[at : at + size]
            at += size
            if len(value) != size:
                raise ValueError("it is truncated")
        yield field, value


def _numbers(packed: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(packed):
        value, at = _number(packed, at)
        found.append(value)
    return found


def _number(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
        if byte < 128:
            return value, at
