"""Every field of `Magnitudes` against NumPy over the same residual streams."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from plain_probe import of_stream
from planted import CONFIG, DIM, VALUE, WRITER, written_and_removed
from tiny_models import CONFIGS, LLAMA, decoder, ids

from jax_massact.measure.definition import Definition, Threshold
from jax_massact.measure.magnitudes import (
    MAP_BINS,
    MAP_TOKENS,
    NUM_PLACES,
    QUANTILES,
    THRESHOLDS,
    magnitudes,
    magnitudes_tap,
    map_first_dims,
    residual_streams,
)
from jax_massact.nn.acts import Acts
from jax_massact.nn.edits import Edits
from jax_massact.nn.transformer import from_parameters, parameters

B, T = 3, 11
LOW = Definition(
    strict=Threshold(magnitude=2.0, ratio=2.5), relaxed=Threshold(magnitude=1.0, ratio=1.2),
    outlier=Threshold(magnitude=0.5, ratio=0.7), outlier_share=0.3,
)
measure = jax.jit(magnitudes, static_argnames=("top_k", "definition"))
streams = jax.jit(residual_streams)


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def case(request):
    config = CONFIGS[request.param]
    # A few large numbers, so that every count is more than zero.
    model, tokens = decoder(config, spread=0.6), ids(config, B, T)
    params = parameters(model)
    row = params["embed"].at[int(tokens[0, 3]), 2].set(1500.0)
    model = from_parameters(config, params | {"embed": row})
    stats = jax.device_get(measure(model, tokens, top_k=4, definition=LOW))
    acts = jax.device_get(jax.jit(lambda m, t: m(t, tap=lambda acts: acts)[1])(model, tokens))
    return stats, acts


def test_top(case):
    stats, acts = case
    flat = acts.resid_post.reshape(*acts.resid_post.shape[:2], -1)
    order = np.argsort(-np.abs(flat), axis=-1, kind="stable")[..., :4]
    np.testing.assert_array_equal(stats.top.position * 16 + stats.top.dim, order)
    np.testing.assert_array_equal(stats.top.value, np.take_along_axis(flat, order, -1))


def test_quantiles_kurtosis_and_counts(case):
    stats, acts = case
    post = np.float64(acts.resid_post)
    size = np.abs(post)
    for i, q in enumerate(QUANTILES):
        np.testing.assert_allclose(
            stats.quantile[..., i], np.quantile(size, q, axis=(2, 3)), rtol=1e-6
        )
    np.testing.assert_array_equal(stats.median, stats.quantile[..., 0])
    np.testing.assert_allclose(stats.median, np.median(size, axis=(2, 3)), rtol=1e-6)
    centred = post - post.mean((2, 3), keepdims=True)
    kurtosis = (centred**4).mean((2, 3)) / (centred**2).mean((2, 3)) ** 2
    np.testing.assert_allclose(stats.kurtosis, kurtosis, rtol=1e-4)
    for i, t in enumerate(THRESHOLDS):
        np.testing.assert_array_equal(stats.counts.entries[..., i], (size > t).sum((2, 3)))
        np.testing.assert_array_equal(stats.counts.dims[..., i], (size > t).any(2).sum(2))
        np.testing.assert_array_equal(stats.counts.tokens[..., i], (size > t).any(3).sum(2))
    assert stats.counts.entries[..., 2].any() and not stats.nonfinite.any()


def test_thresholds_and_outliers(case):
    stats, acts = case
    L = len(acts.resid_post)
    for l in range(L):
        for b in range(B):
            plain = of_stream(np.float64(acts.resid_post[l, b]), LOW)
            assert stats.strict[l, b] == plain["strict"]
            assert stats.relaxed[l, b] == plain["relaxed"] > plain["strict"]
            outliers = stats.outliers
            np.testing.assert_allclose(outliers.share[l, b], plain["outlier_share"], rtol=1e-6)
            np.testing.assert_allclose(outliers.magnitude[l, b], plain["outlier_size"], rtol=1e-5)
            common = outliers.relaxed_share[l, b] > LOW.outlier_share
            np.testing.assert_array_equal(common, plain["common"])
    assert 0 < (stats.outliers.share > LOW.outlier_share).mean() < 1


def test_places(case):
    stats, acts = case
    L, _, _, D = acts.resid_post.shape
    parts = (acts.resid_pre, acts.attn_out, acts.mlp_out, acts.resid_post)
    for l in range(L):
        for b in range(B):
            position, dim = stats.places.position[l, b], stats.places.dim[l, b]
            found = stats.places
            for part, value in zip(parts, (found.pre, found.attn, found.mlp, found.post),
                                   strict=True):
                np.testing.assert_array_equal(value[l, b], part[l, b][position, dim])
            median = stats.median[l, b]
            cut = max(LOW.relaxed.magnitude, LOW.relaxed.ratio * median)
            key = np.full((T, D), -1.0)
            for x in (np.abs(acts.resid_pre[l, b]), np.abs(acts.resid_post[l, b])):
                rare = (x > cut).mean(0) <= LOW.outlier_share
                key = np.maximum(key, np.where(rare, x, -1))
            order = np.argsort(-key.reshape(-1), kind="stable")[:NUM_PLACES]
            np.testing.assert_array_equal(position * D + dim, order)


def test_map(case):
    stats, acts = case
    np.testing.assert_array_equal(stats.map, np.abs(acts.resid_post))


def test_map_of_a_wide_model_holds_the_largest_of_each_bin():
    config = dataclasses.replace(LLAMA, width=300, context_length=80, depth=2)
    model, tokens = decoder(config), ids(config, 1, 70)
    found = np.asarray(measure(model, tokens).map)
    size = np.abs(np.asarray(streams(model, tokens)))
    firsts = map_first_dims(300).tolist()
    assert firsts == list(range(0, 300, 3)) and len(firsts) <= MAP_BINS
    assert found.shape == (2, 1, MAP_TOKENS, len(firsts))
    for i, first in enumerate(firsts):
        np.testing.assert_array_equal(found[..., i], size[:, :, :64, first : first + 3].max(-1))


def test_residual_streams_are_those_of_the_tap(case):
    _, acts = case
    assert acts.resid_post.shape == (3, B, T, 16)
    config = CONFIGS["llama"]
    model, tokens = decoder(config), ids(config, B, T)
    edits = Edits.set_to(1, np.ones(T, bool), 3, 9.0)
    edited = streams(model, tokens, edits=edits)
    assert (edited[1, :, :, 3] == 9).all()
    stats = measure(model, tokens, edits=edits)
    np.testing.assert_allclose(stats.median, np.median(np.abs(edited), axis=(2, 3)), rtol=1e-6)
    np.testing.assert_allclose(edited[0], streams(model, tokens)[0], rtol=0, atol=1e-5)


def test_numbers_that_are_not_finite_are_counted():
    config = CONFIGS["llama"]
    model, tokens = decoder(config), ids(config, 2, T)
    at = np.arange(T) == 4
    edits = Edits.set_to([2, 2], np.stack([at, at]), [3, 5], [np.nan, np.inf])
    stats = measure(model, tokens, edits=edits)
    np.testing.assert_array_equal(stats.nonfinite, [[0, 0], [0, 0], [2, 2]])
    assert np.isfinite(stats.median).all()


def test_thresholds_are_exact_at_the_limit():
    # The stream of every token: 15 times 0.5 and one number that is on, below or above a limit.
    config = dataclasses.replace(LLAMA, depth=1)
    model = jax.tree.map(jnp.zeros_like, decoder(config))
    params = parameters(model)
    cut = Threshold(magnitude=100.0, ratio=200.0)  # 200 x 0.5 = 100
    above_ratio = Threshold(magnitude=99.0, ratio=200.0)
    below, above = np.nextafter(np.float32(100), np.float32([0, 200]))
    for value, over_100, from_100 in ((below, 0, 0), (100, 0, 1), (above, 1, 1)):
        embed = jnp.full((64, 16), 0.5).at[7, 3].set(value)
        model = from_parameters(config, params | {"embed": embed})
        stats = measure(model, jnp.full((1, 1), 7),
                        definition=Definition(strict=cut, relaxed=cut))
        assert (stats.strict, stats.median) == (over_100, 0.5)
        stats = measure(model, jnp.full((1, 1), 7),
                        definition=Definition(strict=above_ratio, relaxed=above_ratio))
        assert stats.strict == from_100


@pytest.mark.parametrize("magnitude", [1.0037, 0.30001, 0.2999])
def test_bfloat16_counts_agree_with_the_definition(magnitude):
    rng = np.random.default_rng(0)
    post = jnp.asarray(rng.standard_normal((40, 15, 16)), jnp.bfloat16)
    size = np.abs(np.float64(post.astype(jnp.float32)))
    # Limits that bfloat16 does not hold, nor many of the products of ratio and median.
    cut = Threshold(magnitude=magnitude, ratio=1.7)
    tap = lambda x: magnitudes_tap(
        Acts(**dict.fromkeys(Acts._fields, x)), definition=Definition(strict=cut, relaxed=cut)
    )
    median = np.median(size, axis=(1, 2), keepdims=True)
    expected = ((size > magnitude) & (size >= 1.7 * median)).sum((1, 2))
    np.testing.assert_array_equal(jax.jit(tap)(post).strict, expected)


def test_bfloat16_finds_what_was_planted():
    model = written_and_removed().build()
    low = from_parameters(dataclasses.replace(CONFIG, dtype="bfloat16"), parameters(model))
    stats = measure(low, ids(CONFIG, 2, T))
    assert stats.quantile.dtype == stats.top.value.dtype == jnp.float32
    assert (stats.top.dim[WRITER, :, 0] == DIM).all()
    np.testing.assert_allclose(stats.top.value[WRITER, :, 0], VALUE, rtol=0.05)


def test_vmap_over_tokens():
    model, tokens = decoder(LLAMA), ids(LLAMA, 4, T)
    one_by_one = jax.jit(jax.vmap(lambda t: magnitudes(model, t[None])))(tokens)
    together = measure(model, tokens)
    for a, b in zip(jax.tree.leaves(one_by_one), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(np.moveaxis(a[:, :, 0], 0, 1), b, rtol=1e-4, atol=1e-5)
