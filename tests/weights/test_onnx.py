"""Weights in ONNX files, of a file written byte by byte after onnx.proto."""

import numpy as np
import pytest

from jax_massact.errors import WeightsError
from jax_massact.weights.onnx import onnx_weights


def number(value: int) -> bytes:
    found = b""
    while value > 127:
        found, value = found + bytes([value & 127 | 128]), value >> 7
    return found + bytes([value])


def field(index: int, value: bytes | int) -> bytes:
    if isinstance(value, int):
        return number(index << 3) + number(value)
    return number(index << 3 | 2) + number(len(value)) + value


def tensor(name: str, array: np.ndarray, packed: bool) -> bytes:
    kind = {"float32": 1, "int64": 7}[array.dtype.name]
    dims = [field(1, b"".join(map(number, array.shape)))] if packed else [
        field(1, size) for size in array.shape
    ]
    return b"".join(dims) + field(2, kind) + field(8, name.encode()) + field(9, array.tobytes())


def node(kind: str, name: str, *inputs: str) -> bytes:
    return b"".join(field(1, x.encode()) for x in inputs) + field(3, name.encode()) + field(
        4, kind.encode()
    )


def test_matrices_get_the_names_of_their_layers(tmp_path):
    rng = np.random.default_rng(0)
    matrix, norm = (rng.standard_normal(s).astype(np.float32) for s in ((3, 200), (3,)))
    graph = b"".join([
        field(1, node("MatMul", "/a/layer.0/query/MatMul", "x", "onnx::MatMul_7")),
        field(1, node("MatMul", "/a/scores/MatMul", "q", "k")),
        field(5, tensor("onnx::MatMul_7", matrix, packed=True)),
        field(5, tensor("a.norm.weight", norm, packed=False)),
        field(5, tensor("shape", np.arange(3), packed=True)),
    ])
    path = tmp_path / "model.onnx"
    # A fixed-size field before the graph is passed over.
    path.write_bytes(field(1, 8) + number(9 << 3 | 5) + b"abcd" + field(7, graph))
    found = onnx_weights(path)
    assert found.keys() == {"a.layer.0.query.weight", "a.norm.weight"}
    np.testing.assert_array_equal(found["a.layer.0.query.weight"], matrix.T)
    np.testing.assert_array_equal(found["a.norm.weight"], norm)


@pytest.mark.parametrize("data", [b"", b"\x3a\x7fshort", b"\xff" * 9, b"\x08\x01"])
def test_what_is_no_onnx_is_refused(tmp_path, data):
    path = tmp_path / "model.onnx"
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="cannot be read as ONNX"):
        onnx_weights(path)
