"""Attention against a dense softmax and its derivative, in float64 and written out in NumPy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import FIELDS, dense, mask_of, operands, rounded_alibi

from jax_massact.nn import attention
from jax_massact.nn.acts import Mask
from jax_massact.nn.attention import (
    MAX_BLOCKS,
    QUERY_BLOCK,
    attend,
    query_blocks,
)
from jax_massact.nn.extra import Extra


def run(x, window, extra, reach=None):
    fields = {n: x[n] for n in FIELDS[extra]}
    key = Extra(**fields) if fields else None
    return attend(x["q"], x["k"], x["v"], mask_of(x, window, reach), extra=key)


def check(B, T, N, K, H, window, extra, reach=None):
    x, cotangent = operands(B, T, N, K, H)

    @jax.jit
    def forward_and_back(x, cotangent):
        out, vjp = jax.vjp(lambda x: run(x, window, extra, reach), x)
        return out, vjp(cotangent)[0]

    out, back = forward_and_back(x, cotangent)
    fields = {n: x[n] for n in FIELDS[extra]}
    expected, grads = dense(x["q"], x["k"], x["v"], window, fields, reach, cotangent)
    np.testing.assert_allclose(out, expected, rtol=0, atol=6e-6)
    # Float32 sums over T terms: the largest derivative of an operand sets the scale.
    for name in ("q", "k", "v", *fields):
        limit = 4e-6 * max(1.0, np.abs(grads[name]).max())
        np.testing.assert_allclose(back[name], grads[name], rtol=0, atol=limit, err_msg=name)


@pytest.mark.parametrize("extra", FIELDS)
@pytest.mark.parametrize("window", [None, 5])
def test_values_and_gradients_of_grouped_heads(window, extra):
    check(2, 13, 4, 2, 6, window, extra)


@pytest.mark.parametrize("reach", [0, 1, 4, 13, 99])
def test_the_extra_key_can_be_out_of_reach(reach):
    check(2, 13, 4, 2, 6, 5, "all", reach)


@pytest.mark.parametrize(
    ("T", "heads", "window", "extra"),
    [
        (1, (1, 1), None, "none"),
        (1, (3, 1), 1, "all"),
        (17, (3, 3), 1, "none"),
        (QUERY_BLOCK + 1, (2, 1), None, "key_value"),
        (QUERY_BLOCK + 3, (2, 2), QUERY_BLOCK, "logit"),
        (2 * QUERY_BLOCK + 5, (2, 1), 7, "none"),
    ],
)
def test_values_and_gradients_across_query_blocks(T, heads, window, extra):
    check(1, T, *heads, 4, window, extra)


@pytest.mark.parametrize("window", [None, 150])
def test_alibi_across_query_blocks(window):
    """Exact, and rounded to bfloat16 at every key as Falcon-RW has it, where it has steps of 2."""
    T, first, slopes = 2 * QUERY_BLOCK + 5, 300, (0.9, 0.3)
    x, _ = operands(1, T, 2, 1, 6)
    exact = dataclasses.replace(mask_of(x, window), slopes=slopes)
    rounded = dataclasses.replace(exact, rounded_from=first)
    run = jax.jit(lambda x: [attend(x["q"], x["k"], x["v"], m) for m in (exact, rounded)])
    at = np.array([rounded_alibi(slope, first + np.arange(T)) for slope in slopes])
    plain = np.array(slopes)[:, None] * np.arange(T)
    for out, taken in zip(run(x), (plain, at / np.sqrt(6)), strict=True):
        bias = taken[:, None, :] - taken[:, :, None]
        expected, _ = dense(x["q"], x["k"], x["v"], window, bias=bias)
        np.testing.assert_allclose(out, expected, rtol=0, atol=2e-5)


def test_memory_does_not_grow_with_the_square_of_the_length(monkeypatch):
    monkeypatch.setattr(attention, "QUERY_BLOCK", 16)
    monkeypatch.setattr(attention, "MAX_BLOCKS", 2)

    def temporary(T):
        q = jax.ShapeDtypeStruct((1, T, 2, 4), jnp.float32)
        step = jax.jit(lambda q, k, v: attend(q, k, v, Mask(scale=1.0)))
        return step.lower(q, q, q).compile().memory_analysis().temp_size_in_bytes

    short, long = temporary(1024), temporary(2048)
    assert long < 2.5 * short and long < 0.3 * 2 * 2048**2 * 4


def test_query_blocks_grow_with_the_sequence(monkeypatch):
    x, _ = operands(1, MAX_BLOCKS * QUERY_BLOCK + 17, 2, 1, 4)
    out = jax.jit(lambda x: run(x, 200, "all"))(x)
    expected, _ = dense(x["q"], x["k"], x["v"], 200, {n: x[n] for n in FIELDS["all"]})
    np.testing.assert_allclose(out, expected, rtol=0, atol=6e-6)
    monkeypatch.setattr(attention, "MAX_BLOCKS", 2)
    check(1, 2 * QUERY_BLOCK + 17, 2, 1, 4, 150, "all")


@pytest.mark.parametrize("length", [1, 127, 128, 129, 257, 2047, 2048, 2049, 5000])
def test_query_blocks_cover_the_sequence_once(length):
    blocks = query_blocks(length)
    assert [i for start, stop in blocks for i in range(start, stop)] == list(range(length))
    assert len(blocks) <= MAX_BLOCKS
    sizes = [stop - start for start, stop in blocks]
    assert max(sizes) <= max(QUERY_BLOCK, -(-length // MAX_BLOCKS))
    assert len(blocks) == 1 or 1 < min(sizes) >= max(sizes) - MAX_BLOCKS


def test_keys_out_of_the_window_are_not_multiplied():
    x, _ = operands(1, 512, 1, 1, 4)

    def flops(window):
        compiled = jax.jit(lambda x: run(x, window, "none")).lower(x).compile()
        return compiled.cost_analysis()["flops"]

    # 4 x 128 queries: causal sees 1 + 2 + 3 + 4 blocks of keys, a window of 1 sees 4.
    assert flops(1) < 0.5 * flops(None)


def test_large_logits_neither_overflow_nor_vanish():
    x, _ = operands(1, 9, 2, 2, 4)
    x["q"] = 100 * x["q"]
    for logit in (1e4, 0.0, -1e4):
        x["logit"] = jnp.full_like(x["logit"], logit)
        out = jax.jit(run, static_argnums=(1, 2))(x, None, "all")
        expected, _ = dense(x["q"], x["k"], x["v"], None, {n: x[n] for n in FIELDS["all"]})
        np.testing.assert_allclose(out, expected, rtol=0, atol=1e-3)


def test_an_extra_key_out_of_reach_changes_nothing():
    x, _ = operands(2, 9, 2, 1, 4)
    x["logit"] = jnp.full_like(x["logit"], -1e4)
    np.testing.assert_array_equal(run(x, None, "all"), run(x, None, "none"))


def test_bfloat16_sums_in_float32():
    x, _ = operands(1, 300, 2, 1, 8)
    low = jax.tree.map(lambda a: a.astype(jnp.bfloat16), x)
    out = jax.jit(lambda x: run(x, None, "all"))(low)
    assert out.dtype == jnp.bfloat16
    expected, _ = dense(low["q"], low["k"], low["v"], None, {n: low[n] for n in FIELDS["all"]})
    # The scaled queries, the weights and the result are rounded to 8 bits, the sums are not.
    np.testing.assert_allclose(np.float32(out), expected, rtol=0, atol=0.06)
    assert np.sqrt(np.mean((np.float32(out) - expected) ** 2)) < 0.008
