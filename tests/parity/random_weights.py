"""The weights of the small models of the parity tests, drawn by NumPy from a seed."""

from collections.abc import Mapping, Sequence

import numpy as np

# Large enough for a wrong detail to stand far above float32 rounding, small enough for the softmax
# not to saturate.
STD = 0.25


def draw(tensors: Mapping[str, Sequence[int]], seed: int) -> dict[str, np.ndarray]:
    """Tensors of these names and shapes; every norm and bias matters."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in sorted(tensors):
        is_norm = len(tensors[name]) == 1 and name.endswith("weight")
        values = is_norm + STD * rng.standard_normal(tensors[name])
        found[name] = np.asarray(values, np.float32)
    return found


def tokens(count: int, vocab_size: int, seed: int) -> np.ndarray:
    """One sequence of ids, int32 [1, T]."""
    return np.random.default_rng(seed).integers(vocab_size, size=(1, count), dtype=np.int32)


def image(size: tuple[int, int], channels: int, seed: int) -> np.ndarray:
    """One normalized image, float32 [1, Y, X, C]."""
    rng = np.random.default_rng([seed, 1])
    return rng.standard_normal((1, *size, channels)).astype(np.float32)
