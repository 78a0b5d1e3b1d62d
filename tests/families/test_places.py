"""The language of layouts: every rule that files need, forwards and back."""

import numpy as np
import pytest

from jax_massact.families.places import Place, file_shape, fused, join, split

SIZES = {"1": 1, "d": 5, "n": 4, "k": 2, "g": 2, "h": 6, "i": 3, "j": 2, "f": 7}
D, N, K, G, H, F = 5, 4, 2, 2, 6, 7
SHAPES = {"q": (D, N, H), "k": (D, K, H), "v": (D, K, H), "gate": (D, F), "up": (D, F)}


def q_k_v(*layouts):
    return {n: Place("t", layout) for n, layout in zip("qkv", layouts, strict=True)}


def rows(*parts):
    """Matrices [D, ...] as rows of one file matrix."""
    return np.concatenate([part.reshape(D, -1) for part in parts], axis=1).T


# A table's rows, and the file's array of parameters made another way.
RULES = {
    "split heads": ({"q": Place("t", "(nh)d->dnh")}, lambda q: rows(q)),
    "transposed": ({"up": Place("t", "fd->df")}, lambda up: up.T),
    # llama.cpp's converter: pairs (i, i + H/2) become neighbours.
    "interleaved": (
        {"q": Place("t", "(nij)d->dn(ji)")},
        lambda q: rows(q).reshape(N, 2, H // 2, D).swapaxes(1, 2).reshape(N * H, D),
    ),
    "one after another (GPT-2)": (
        q_k_v(*["d([1]nh)->dnh"] * 3),
        lambda q, k, v: np.concatenate([x.reshape(D, -1) for x in (q, k, v)], axis=1),
    ),
    "of different sizes (Phi-3)": (
        q_k_v("([n]h)d->dnh", "([k]h)d->dkh", "([k]h)d->dkh"), rows
    ),
    "within each head (NeoX)": (
        q_k_v(*["(n[1]h)d->dnh"] * 3),
        lambda *qkv: np.stack([x.transpose(1, 2, 0) for x in qkv], axis=1).reshape(-1, D),
    ),
    "within each group (Falcon)": (
        q_k_v("(k[g]h)d->d(kg)h", "(k[1]h)d->dkh", "(k[1]h)d->dkh"),
        lambda q, k, v: np.concatenate(
            [q.reshape(D, K, G, H), k[:, :, None], v[:, :, None]], axis=2
        ).transpose(1, 2, 3, 0).reshape(-1, D),
    ),
    "gate and up": (
        {name: Place("t", "([1]f)d->df") for name in ("gate", "up")}, rows
    ),
    "gate and up, alternating (gpt-oss)": (
        {name: Place("t", "d(f[1])->df") for name in ("gate", "up")},
        lambda gate, up: np.stack([gate, up], axis=2).reshape(D, -1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RULES)
def test_a_layout_forwards_and_back(name):
    group, made = RULES[name]
    # Of models in which every query head has its own keys, as these files do.
    sizes = SIZES if "NeoX" not in name and "GPT-2" not in name else SIZES | {"k": N, "g": 1}
    rng = np.random.default_rng(0)
    shapes = SHAPES | ({"k": (D, N, H), "v": (D, N, H)} if sizes["k"] == N else {})
    parts = {name: rng.normal(size=shapes[name]) for name in group}
    expected = made(*parts.values())
    assert file_shape(group, sizes) == expected.shape
    np.testing.assert_array_equal(join(group, parts, sizes), expected)
    found = split(group, expected, sizes)
    assert list(found) == list(group)
    for part, array in found.items():
        np.testing.assert_array_equal(array, parts[part])


def test_what_lies_in_one_tensor_is_one_group():
    places = q_k_v(*["d([1]nh)->dnh"] * 3) | {"out": Place("o", "(nh)d->nhd")}
    assert [list(group) for group in fused(places)] == [["q", "k", "v"], ["out"]]
