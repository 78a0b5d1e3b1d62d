"""Rounding against NumPy, bit for bit; where it acts; a model without it stays as it is."""

import dataclasses

import in_numpy
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from tiny_models import CONFIGS, SWITCHES, decoder, ids, varied

from jax_massact.measure.loss import losses_of
from jax_massact.nn.acts import SITES
from jax_massact.nn.rounding import (
    E4M3,
    E4M3_LARGEST,
    INTEGER,
    Rounding,
    levels_of,
    scale_of,
    to_format,
)

L, S = 3, len(SITES)


ONE = np.float32(1)


def numbers(seed: int, *shape: int) -> np.ndarray:
    """Sizes over many powers of two, with zeros, halves and a large one."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * 2.0 ** rng.integers(-12, 6, shape)
    x.flat[:3] = 0, 0.5, -1.5
    x.flat[7] = 3000
    return x.astype(np.float32)


def rounding(length: int, kinds=(), *, bits: int = 8, sites=SITES, **changes) -> Rounding:
    """Rounds what `kinds` {(layer, site): kind} says."""
    S = len(sites)
    kind = np.zeros((L, S), np.int32)
    for (layer, site), value in dict(kinds).items():
        kind[layer, sites.index(site)] = value
    largest = np.where(kind == E4M3, E4M3_LARGEST, levels_of(bits)).astype(np.float32)
    made = Rounding(
        kind=kind,
        largest=largest,
        per_token=np.zeros((L, S), bool),
        limit=np.zeros((L, S), np.float32),
        kept=np.zeros((1, length), bool),
        sites=sites,
    )
    made = dataclasses.replace(made, **changes)
    return jax.tree.map(jnp.asarray, made)


@pytest.mark.parametrize("bits", [2, 4, 8, 12, 16])
def test_integers_and_scales_are_those_of_numpy_bit_for_bit(bits):
    x = numbers(bits, 2, 5, 64)
    levels = np.float32(2 ** (bits - 1) - 1)
    for axes in ((1, 2), (2,), (0, 1)):  # a tensor for each sequence, a token, a channel
        largest = np.abs(x).max(axes, keepdims=True)
        scale = np.where(largest == 0, ONE, largest * (ONE / levels))
        got = jax.jit(scale_of)(jnp.asarray(largest), levels)
        np.testing.assert_array_equal(np.asarray(got), scale, strict=True)
        expected = np.clip(np.rint(x * (ONE / scale)), -levels, levels)
        found = jax.jit(to_format)(x, got, INTEGER, levels)
        np.testing.assert_array_equal(found, expected, strict=True)
        assert np.abs(expected).max() == levels
    cut = jax.jit(to_format)(
        np.float32([1e9, -1e9, np.inf, np.nan]), jnp.float32(0.5), INTEGER, levels
    )
    np.testing.assert_array_equal(cut, np.float32([levels, -levels, levels, np.nan]))


def test_e4m3_is_that_of_ml_dtypes_and_cuts_in_place_of_nan():
    convert = lambda x: jax.jit(to_format)(x, jnp.float32(1), E4M3, E4M3_LARGEST)
    every = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    every = np.unique(every[np.isfinite(every)])
    between = (every[1:] + every[:-1]) / 2  # ties, and their neighbours
    near = [np.nextafter(between, side) for side in (-np.inf, np.inf)]
    x = np.concatenate([every, between, *near, numbers(1, 4096), numbers(2, 4096) / 64])
    expected = np.clip(x, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    np.testing.assert_array_equal(convert(x), expected, strict=True)
    np.testing.assert_array_equal(np.signbit(convert(x)), np.signbit(expected))
    beyond = np.float32([448, 464, 465, 1e9, -np.inf, np.nan])
    assert np.isnan(np.asarray(jnp.asarray(beyond).astype(jnp.float8_e4m3fn), np.float32)[2])
    np.testing.assert_array_equal(convert(beyond), np.float32([448] * 4 + [-448, np.nan]))


def reference(x, kind, *, per_token=False, limit=0.0, kept=(), bits=8):
    """One site in NumPy: x [B T F]."""
    top = {INTEGER: 2 ** (bits - 1) - 1, E4M3: 448}[kind]
    token = np.abs(x).max(-1)
    token[:, list(kept)] = 0
    largest = token if per_token else np.broadcast_to(
        np.float32(limit) if limit else token.max(1, keepdims=True), token.shape
    )
    scale = largest * (ONE / np.float32(top))
    scale = np.where(scale == 0, ONE, scale)[..., None]
    y = np.clip(x * (ONE / scale), -top, top)
    y = np.rint(y) if kind == INTEGER else y.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    y = y * scale
    y[:, list(kept)] = x[:, list(kept)]
    return y


@pytest.mark.parametrize("kind", [INTEGER, E4M3])
@pytest.mark.parametrize("how", [{}, {"per_token": True}, {"limit": 5.0}, {"kept": (0, 3)}])
def test_a_site_is_rounded_as_in_numpy(kind, how):
    x = numbers(3, 2, 6, 16)
    x[1, 2] = 0  # a row of zeros stays one
    changes = {name: np.full((L, S), value) for name, value in how.items() if name != "kept"}
    if "kept" in how:
        changes["kept"] = np.isin(np.arange(6), how["kept"])[None]
    made = rounding(6, {(1, "mlp_in"): kind}, **changes)
    apply = jax.jit(lambda made, x, layer: made.apply("mlp_in", x, layer))
    expected = reference(x, kind, **how)
    np.testing.assert_array_equal(apply(made, x, 1), expected, strict=True)
    np.testing.assert_array_equal(apply(made, x, 0), x)  # another layer
    np.testing.assert_array_equal(made.apply("z", x.reshape(2, 6, 4, 4), 1),
                                  x.reshape(2, 6, 4, 4))  # another site
    assert not np.array_equal(expected, x)


def test_nan_stays_and_zeros_stay():
    x = numbers(3, 1, 4, 8)
    x[0, 1, 2] = np.nan
    for per_token in (False, True):
        made = rounding(4, {(0, "z"): INTEGER}, per_token=np.full((L, S), per_token))
        found = np.isnan(made.apply("z", jnp.asarray(x), 0))
        assert [*found.all(-1)[0]] == ([False, True, False, False] if per_token else [True] * 4)
    assert (made.apply("z", jnp.zeros((1, 4, 8)), 0) == 0).all()


def test_products_are_those_of_integers():
    """x and W rounded and multiplied in float are the integers' sum times both scales."""
    rng = np.random.default_rng(0)
    x, w = numbers(5, 1, 7, 32), rng.standard_normal((32, 9)).astype(np.float32)
    made = rounding(7, {(0, "mlp_in"): INTEGER}, per_token=np.ones((L, S), bool))
    xs = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    ws = np.abs(w).max(0) / np.float32(127)
    sums = np.rint(x / xs).astype(np.int64) @ np.rint(w / ws).astype(np.int64)
    rounded = to_format(jnp.asarray(w), ws, INTEGER, 127.0) * ws
    got = made.apply("mlp_in", jnp.asarray(x), 0) @ rounded
    exact = sums * xs.astype(np.float64) * ws
    np.testing.assert_allclose(got, exact, atol=1e-6 * np.abs(exact).max())


def test_a_rotation_is_turned_back():
    x = numbers(6, 2, 4, 16)
    q, _ = np.linalg.qr(np.random.default_rng(1).standard_normal((16, 16)))
    q = q.astype(np.float32)
    made = rounding(4, {(0, "z"): INTEGER}, rotations={"16": jnp.asarray(q)})
    got = made.apply("z", jnp.asarray(x).reshape(2, 4, 4, 4), 0).reshape(x.shape)
    np.testing.assert_allclose(got, reference(x @ q, INTEGER) @ q.T, atol=2e-3 * 3000 / 127)
    assert np.abs(got - reference(x, INTEGER)).max() > 1


@pytest.fixture(scope="module")
def model():
    return decoder(CONFIGS["llama"])


@pytest.fixture(scope="module")
def run():
    return in_numpy.jit(
        lambda model, tokens, rounding=None: model(
            tokens, tap=lambda acts: (
                acts.resid_pre, acts.q, acts.z, acts.mlp_hidden, acts.resid_post
            ),
            rounding=rounding,
        )
    )


@pytest.mark.parametrize("site", SITES)
def test_every_site_acts_in_its_layer_and_after(model, run, site):
    tokens = ids(model.config, 2, 9)
    plain = run(model, tokens)
    unchanged = run(model, tokens, rounding(9))
    np.testing.assert_array_equal(unchanged[0], plain[0])
    logits, taps = run(model, tokens, rounding(9, {(1, site): INTEGER}, bits=4))
    assert not np.allclose(logits, plain[0], atol=1e-4)
    np.testing.assert_array_equal(taps[-1][0], plain[1][-1][0])  # the block before
    # Where a tap sees the site itself, it sees a few levels.
    index = {"resid_pre": 0, "q": 1, "z": 2, "mlp_hidden": 3, "resid_post": 4}.get(site)
    if index is not None:
        seen = np.asarray(taps[index][1])
        for sequence in seen:
            assert len(np.unique(sequence)) <= 15
    # Kept tokens are in float, and so is what comes before them.
    kept = jnp.ones((1, 9), bool)
    all_kept = run(model, tokens, rounding(9, {(1, site): INTEGER}, bits=4, kept=kept))
    np.testing.assert_allclose(all_kept[0], plain[0], atol=1e-5)


def test_the_softmax_is_rounded_in_a_known_range(model):
    """Against a model whose softmax a tap computes: weights are multiples of 1/127."""
    w = np.float32([[0.5, 0.25, 0.2, 0.05]])[None, None, None]
    made = rounding(4, {(0, "weights"): INTEGER})
    got = made.softmax(jnp.asarray(w), jnp.arange(1), 0)
    scale = np.float32(1) / np.float32(127)
    np.testing.assert_array_equal(got, np.rint(w / scale) * scale)
    per_query = dataclasses.replace(made, per_token=np.ones((L, S), bool))
    scale = np.float32(0.5) / np.float32(127)
    np.testing.assert_array_equal(
        per_query.softmax(jnp.asarray(w), jnp.arange(1), 0), np.rint(w / scale) * scale
    )


@pytest.mark.parametrize("name", ["kv_bias", "softmax1"])
def test_an_extra_key_is_rounded_with_the_others(name):
    model = decoder(varied(CONFIGS["llama"], variant=name))
    tokens = ids(model.config, 1, 5)
    run = in_numpy.jit(lambda rounding: model(tokens, rounding=rounding)[0])
    every = {(l, "weights"): INTEGER for l in range(L)}
    plain, fine, rough = (
        run(rounding(5, kinds, bits=bits, sites=("weights",)))
        for kinds, bits in (({}, 8), (every, 16), (every, 3))
    )
    np.testing.assert_allclose(fine, plain, atol=5e-3)
    assert np.abs(rough - plain).max() > 0.05


def test_rounding_can_be_mapped_over_rows_with_one_compilation(model):
    """Rows differ in kind, site, bits and ranges; `vmap` gives what each gives alone."""
    tokens = ids(model.config, 1, 8)
    sites = ("z", "resid_mid")
    rows = [
        rounding(8, kinds, sites=sites, **how) for kinds, how in (
            ({}, {}), ({(0, "z"): INTEGER}, {}), ({(2, "resid_mid"): E4M3}, {}),
            ({(1, "z"): INTEGER}, {"bits": 5, "limit": np.full((L, 2), 0.7, np.float32)}),
        )
    ]
    compiled = 0

    @jax.jit
    def losses(rounding):
        nonlocal compiled
        compiled += 1
        return losses_of(model(tokens, rounding=rounding)[0], tokens)

    alone = jnp.stack([losses(row) for row in rows])
    assert compiled == 1
    mapped = jax.vmap(losses)(jax.tree.map(lambda *x: jnp.stack(x), *rows))
    np.testing.assert_allclose(mapped, alone, atol=1e-5)
    assert len({round(float(x), 5) for x in alone.mean((1, 2))}) == 4


def test_a_model_without_rounding_is_the_computation_that_it_was(model):
    """No operation of rounding, and no function for it, is in what is lowered."""
    tokens = ids(model.config, 1, 8)
    plain = jax.jit(lambda m, t: m(t)[0]).lower(model, tokens).as_text()
    step = jax.jit(lambda m, t, r: m(t, rounding=r)[0])
    rounds = step.lower(model, tokens, rounding(8)).as_text()
    for name in ("round_nearest_even", "stablehlo.case"):
        assert name in rounds and name not in plain


def test_what_does_not_fit_is_refused(model):
    tokens = ids(model.config, 1, 8)
    with pytest.raises(ValueError, match=r"kept is a mask of \(1, 7\); expected: \(1, 8\)"):
        model(tokens, rounding=rounding(7))
    wrong = dataclasses.replace(rounding(8), kind=jnp.zeros((2, S), jnp.int32))
    with pytest.raises(ValueError, match="rounding.kind has shape"):
        model(tokens, rounding=wrong)
    wrong = dataclasses.replace(rounding(8), kind=jnp.full((L, S), 3))
    with pytest.raises(ValueError, match="rounding.kind is out of range"):
        model(tokens, rounding=wrong)


@pytest.mark.parametrize("name", ["gemma", "qwen2_moe"])
def test_other_kinds_of_blocks_are_rounded_too(name):
    model = decoder(SWITCHES[name])
    tokens = ids(model.config, 1, 7)
    sites = ("attn_in", "mlp_hidden", "resid_post")
    every = {(l, site): INTEGER for l in range(L) for site in sites}
    run = in_numpy.jit(lambda rounding: model(tokens, rounding=rounding)[0])
    plain, fine = (run(rounding(7, kinds, bits=16, sites=sites)) for kinds in ({}, every))
    assert 0 < np.abs(plain - fine).max() < 0.05 * np.abs(plain).max()
