"""Statistics against NumPy: sorted, counted and averaged in float64."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from jax.sharding import NamedSharding, PartitionSpec

from jax_massact.measure import statistics
from jax_massact.measure.statistics import (
    counts_above,
    counts_per_dim,
    gather_places,
    kurtosis,
    quantiles,
    top_magnitudes,
    top_places,
)
from jax_massact.mesh import BATCH, make_mesh

Q = (0.0, 0.25, 0.5, 0.9, 0.99, 1.0)
TINY = np.finfo(np.float32).tiny
# Few shapes: each is compiled once.
SHAPES = [(1, 1, 1), (2, 1, 2), (1, 3, 1), (3, 2, 4), (2, 5, 7)]

magnitudes32 = st.one_of(
    st.floats(0, 2.0**126, width=32),
    st.sampled_from([0.0, 1.0, 1.0, 2.0, float(TINY), 2.0**127, float("inf")]),
    st.integers(0, 3).map(float),
)


def arrays(elements, dtype=np.float32):
    return st.sampled_from(SHAPES).flatmap(lambda s: hnp.arrays(dtype, s, elements=elements))


compiled = jax.jit(quantiles, static_argnums=1)


def check_quantiles(x, found):
    x = np.float64(x).reshape(len(x), -1)
    ordered = np.sort(x, axis=1)
    for i, q in enumerate(Q):
        place = q * (x.shape[1] - 1)
        low, high = ordered[:, int(place)], ordered[:, min(int(place) + 1, x.shape[1] - 1)]
        if place == int(place):
            # An order statistic is an entry: exact, but that arithmetic may flush subnormal ones.
            np.testing.assert_allclose(found[:, i], low, rtol=0, atol=TINY, err_msg=f"{q}")
            continue
        with np.errstate(invalid="ignore", over="ignore"):
            expected = np.float32(np.quantile(x, q, axis=1))
            finite = np.isfinite(high)
            np.testing.assert_allclose(
                found[finite, i], expected[finite], rtol=2.5e-7, atol=2 * TINY, err_msg=f"{q}"
            )
            assert not np.isfinite(found[~finite, i]).any()
            assert ((found[:, i] >= low - TINY) | ~finite).all()


@settings(max_examples=150, deadline=None)
@given(arrays(magnitudes32))
def test_quantiles_of_float32(x):
    check_quantiles(x, np.asarray(compiled(x, Q)))


@settings(max_examples=100, deadline=None)
@given(arrays(magnitudes32))
def test_quantiles_of_bfloat16(x):
    with np.errstate(over="ignore"):
        x = x.astype(ml_dtypes.bfloat16)
    found = compiled(jnp.asarray(x), Q)
    assert found.dtype == jnp.float32
    check_quantiles(x.astype(np.float32), np.asarray(found))


def test_order_statistics_of_subnormal_numbers():
    x = np.float32([[[0, 1e-45, 1e-40, 2e-39, TINY]]])
    found = np.asarray(compiled(x, Q))
    # As bits: the comparison of subnormal floats may flush them to zero.
    assert found[0, [0, 1, 2, 5]].view(np.int32).tolist() == (
        x[0, 0, [0, 1, 2, 4]].view(np.int32).tolist()
    )


def test_quantiles_count_nan_as_largest():
    x = np.abs(np.float32([[[1, np.nan, 3, 2, 4]]]))
    found = np.asarray(compiled(x, (0.25, 0.5, 1.0)))[0]
    assert found[0] == 2 and found[1] == 3 and np.isnan(found[2])


@pytest.mark.parametrize("shape", [(2, 33, 64), (1, 64, 33), (1, 7, 311)])
def test_quantiles_of_many_numbers(shape):
    x = np.abs(np.random.default_rng(0).standard_normal(shape)).astype(np.float32)
    check_quantiles(x, np.asarray(compiled(x, Q)))
    np.testing.assert_array_equal(jax.jit(jax.vmap(lambda x: quantiles(x[None], Q)[0]))(x),
                                  compiled(x, Q))


def test_the_ways_of_tpus(monkeypatch):
    """There the bits are fixed two at a time, and pairs and masks are summed in another order."""
    monkeypatch.setattr(statistics, "platform", lambda: "tpu")
    x = np.abs(np.random.default_rng(0).standard_normal((2, 33, 64)).astype(np.float32))
    for dtype in (jnp.float32, jnp.bfloat16):
        given = jnp.asarray(x, dtype)
        found = jax.jit(lambda x: quantiles(x, Q))(given)
        check_quantiles(np.asarray(given, np.float32), np.asarray(found))
    masks = [x > limit for limit in (0.0, 0.5, 1.0, 9.0)]
    for mask, count in zip(masks, jax.jit(counts_per_dim)(masks), strict=True):
        np.testing.assert_array_equal(count, mask.sum(1))


def test_quantiles_of_one_sequence_over_a_mesh():
    x = np.abs(np.random.default_rng(0).standard_normal((1, 5, 8))).astype(np.float32)
    mesh = make_mesh(devices=jax.devices()[:1])
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec(BATCH)))
        check_quantiles(x, np.asarray(jax.jit(lambda x: quantiles(x, Q))(placed)))


def sorted_places(key, k):
    """A full stable sort: equal entries by (token, dimension)."""
    order = np.argsort(-key.reshape(len(key), -1), axis=1, kind="stable")[:, :k]
    return order // key.shape[2], order % key.shape[2]


@settings(max_examples=150, deadline=None)
@given(arrays(st.integers(-2, 3).map(float) | st.floats(-(2.0**99), 2.0**99, width=32)),
       st.sampled_from([1, 3, 64]))
def test_top_places(x, k):
    x = x + np.float32(0)  # top_k tells -0 from 0
    position, dim = jax.jit(top_places, static_argnums=1)(x, k)
    expected = sorted_places(x, k)
    np.testing.assert_array_equal(position, expected[0])
    np.testing.assert_array_equal(dim, expected[1])


def test_top_places_with_many_ties_in_bfloat16():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 6, (3, 40, 9)).astype(np.float32)
    for k in (1, 5, 100):
        found = jax.jit(top_places, static_argnums=1)(jnp.asarray(x, jnp.bfloat16), k)
        np.testing.assert_array_equal(found, sorted_places(x, k))


def test_top_magnitudes_are_signed_and_sorted():
    x = np.random.default_rng(1).standard_normal((2, 6, 5)).astype(np.float32)
    top = jax.jit(top_magnitudes, static_argnums=1)(x, 4)
    flat = x.reshape(2, -1)
    order = np.argsort(-np.abs(flat), axis=1)[:, :4]
    np.testing.assert_array_equal(top.value, np.take_along_axis(flat, order, 1))
    np.testing.assert_array_equal(top.position * 5 + top.dim, order)
    assert (np.asarray(top.value) < 0).any()
    np.testing.assert_array_equal(gather_places(x, top.position, top.dim), top.value)
    mapped = jax.vmap(lambda x: top_magnitudes(x, 4))(x[:, None])
    np.testing.assert_array_equal(mapped.value[:, 0], top.value)


@pytest.mark.parametrize(("loc", "scale"), [(0.0, 1.0), (50.0, 2.0), (-3.0, 1e-3), (0.0, 1e4)])
def test_kurtosis(loc, scale):
    rng = np.random.default_rng(2)
    x = np.float32(loc + scale * rng.standard_t(8, (3, 40, 16)))
    centred = np.float64(x) - np.float64(x).mean((1, 2), keepdims=True)
    expected = (centred**4).mean((1, 2)) / (centred**2).mean((1, 2)) ** 2
    np.testing.assert_allclose(jax.jit(kurtosis)(x), expected, rtol=2e-3 if loc else 1e-4)
    assert 3 < expected.min()


@pytest.mark.parametrize("scale", [1e-30, 1e-10, 1e9, 1e36])
def test_kurtosis_neither_overflows_nor_vanishes(scale):
    x = np.float32(np.random.default_rng(0).standard_normal((2, 16, 24)) * scale)
    exact = x.astype(np.float64) - x.astype(np.float64).mean((1, 2), keepdims=True)
    expected = (exact**4).mean((1, 2)) / (exact**2).mean((1, 2)) ** 2
    np.testing.assert_allclose(kurtosis(jnp.asarray(x)), expected, rtol=1e-5)
    with_one = np.float32(np.random.default_rng(1).standard_normal((1, 64, 96)))
    with_one[0, 3, 5] = 5e9
    np.testing.assert_allclose(kurtosis(jnp.asarray(with_one)), 6142, rtol=1e-4)


def test_kurtosis_of_one_large_number_among_n_is_about_n():
    x = np.zeros((1, 32, 32), np.float32)
    x[0, 3, 4] = 1e4
    n = x.size
    np.testing.assert_allclose(kurtosis(jnp.asarray(x)), n - 2 + 1 / (n - 1), rtol=1e-4)
    assert kurtosis(jnp.asarray(x, jnp.bfloat16)).dtype == jnp.float32


@settings(max_examples=100, deadline=None)
@given(arrays(st.integers(0, 4).map(float)))
def test_counts_above(x):
    thresholds = (0.0, 1.0, 2.5, 4.0)
    found = jax.jit(counts_above, static_argnums=1)(x, thresholds)
    for i, t in enumerate(thresholds):
        over = x > t
        np.testing.assert_array_equal(found.entries[:, i], over.sum((1, 2)))
        np.testing.assert_array_equal(found.dims[:, i], over.any(1).sum(1))
        np.testing.assert_array_equal(found.tokens[:, i], over.any(2).sum(1))


@pytest.mark.parametrize("tokens", [1, 127, 128, 129, 300])
def test_counts_per_dim(tokens):
    rng = np.random.default_rng(3)
    masks = [rng.random((2, tokens, 5)) < p for p in (0.0, 0.4, 1.0, 0.9)]
    found = jax.jit(counts_per_dim)(masks)
    for mask, count in zip(masks, found, strict=True):
        np.testing.assert_array_equal(count, mask.sum(1))


@pytest.mark.parametrize("width", [1, 2, 63, 64, 65, 96, 128, 192])
def test_top_places_of_any_width(width):
    x = np.random.default_rng(4).integers(0, 900, (2, 70, width)).astype(np.float32)
    for k in (1, 7, 64):
        np.testing.assert_array_equal(
            jax.jit(top_places, static_argnums=1)(x, k), sorted_places(x, k)
        )


def test_quantiles_where_many_entries_are_equal():
    # Counts in 16 bit beside each other: none may spill into the other.
    for value in (0.0, 1.0, float("inf")):
        x = np.full((2, 3, 4096), value, np.float32)
        x[1, 0, :9] = 2.0
        for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
            check_quantiles(x, np.asarray(compiled(jnp.asarray(x, dtype), Q)))
