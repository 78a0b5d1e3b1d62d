"""Edits of the residual stream: what they change, what they leave, and what they cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS, LLAMA, decoder, ids

from jax_massact.nn.edits import Edits, apply_edits

B, T, D = 2, 5, LLAMA.width
MODEL, TOKENS = decoder(LLAMA), ids(LLAMA, B, T)


@jax.jit
def streams(model, tokens, edits=None):
    return model(tokens, tap=lambda acts: acts, edits=edits)


def mask(*places):
    m = np.zeros((len(places), B, T), bool)
    for e, place in enumerate(places):
        m[(e, *place)] = True
    return m


def edit(layer, tokens, dim, scale, add):
    as_rows = lambda x, dtype: jnp.atleast_1d(jnp.asarray(x, dtype))
    return Edits(
        as_rows(layer, jnp.int32), jnp.asarray(tokens), as_rows(dim, jnp.int32),
        as_rows(scale, jnp.float32), as_rows(add, jnp.float32),
    )


@pytest.mark.parametrize(("scale", "add"), [(0.0, 7.0), (2.5, 0.0), (1.0, -3.0), (-1.0, 0.5)])
def test_one_place_changes_and_all_before_it_stays(scale, add):
    layer, b, t, dim = 1, 1, 2, 9
    logits, acts = streams(MODEL, TOKENS)
    new_logits, new = streams(MODEL, TOKENS, edit(layer, mask((b, t)), dim, scale, add))
    expected = np.array(acts.resid_post[layer])
    expected[b, t, dim] = scale * expected[b, t, dim] + add
    np.testing.assert_allclose(new.resid_post[layer], expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(new.resid_pre[layer + 1], expected, rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(new.resid_post[0], acts.resid_post[0], rtol=0, atol=1e-5)
    np.testing.assert_allclose(new.mlp_out[layer], acts.mlp_out[layer], rtol=0, atol=1e-5)
    np.testing.assert_allclose(new_logits[0], logits[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(new_logits[b, :t], logits[b, :t], rtol=0, atol=1e-4)
    assert np.abs(new_logits - logits)[b, t:].max(-1).min() > 1e-3


def test_edits_of_one_place_are_made_in_order():
    x = jnp.full((B, T, D), 2.0)
    at = mask((0, 1), (0, 1), (0, 1))
    three = edit([1, 1, 1], at, [3, 3, 3], [0.0, 1.0, 3.0], [5.0, 1.0, 0.0])
    assert apply_edits(x, three, 1)[0, 1, 3] == (5 + 1) * 3
    turned = jax.tree.map(lambda a: a[::-1], three)
    assert apply_edits(x, turned, 1)[0, 1, 3] == 5
    assert int((apply_edits(x, three, 1) != x).sum()) == 1
    np.testing.assert_array_equal(apply_edits(x, three, 0), x)


@pytest.mark.parametrize("layer", [-1, LLAMA.depth, 99])
def test_a_layer_that_is_not_there_changes_nothing(layer):
    plain = streams(MODEL, TOKENS, edit(0, np.zeros((1, B, T), bool), 0, 0.0, 0.0))
    edited = streams(MODEL, TOKENS, edit(layer, np.ones((1, B, T), bool), 0, 0.0, 1e3))
    jax.tree.map(np.testing.assert_array_equal, plain, edited)


def test_setting_replaces_nan_and_infinity():
    x = jnp.full((B, T, D), jnp.nan).at[1].set(jnp.inf)
    out = apply_edits(x, Edits.set_to(0, np.ones((1, 1, T), bool), 4, -2.0), 0)
    assert (out[:, :, 4] == -2).all()
    assert not jnp.isfinite(jnp.delete(out, 4, axis=2)).any()


def test_a_value_for_every_token():
    x = jnp.zeros((B, T, D))
    values = np.arange(B * T, dtype=np.float32).reshape(1, B, T)
    out = apply_edits(x, Edits.set_to(0, np.ones((1, B, T), bool), 4, values), 0)
    np.testing.assert_array_equal(out[:, :, 4], values[0])


@pytest.mark.parametrize("tokens", [
    np.arange(T) == 2, (np.arange(T) == 2)[None], (np.arange(T) == 2)[None, None],
    np.tile(np.arange(T) == 2, (3, 1)), np.tile(np.arange(T) == 2, (3, B, 1)),
])
def test_set_to_takes_masks_of_fewer_axes(tokens):
    x = jnp.ones((B, T, D))
    edits = Edits.set_to([0, 0, 1], tokens, [3, 4, 5], [10.0, 20.0, 30.0])
    assert edits.tokens.shape[0] == 3
    expected = np.ones((B, T, D))
    expected[:, 2, 3], expected[:, 2, 4] = 10, 20
    np.testing.assert_array_equal(apply_edits(x, edits, 0), expected)
    one = Edits.set_to(0, tokens[:1] if tokens.ndim > 1 else tokens, 3, 10.0)
    expected[:, 2, 4] = 1
    np.testing.assert_array_equal(apply_edits(x, one, 0), expected)


def many(n, seed=0):
    rng = np.random.default_rng(seed)
    return Edits(
        jnp.asarray(rng.integers(0, LLAMA.depth, (n, 2)), jnp.int32),
        jnp.asarray(rng.random((n, 2, 1, T)) < 0.5),
        jnp.asarray(rng.integers(0, D, (n, 2)), jnp.int32),
        jnp.asarray(rng.integers(0, 2, (n, 2)), jnp.float32),
        jnp.asarray(rng.standard_normal((n, 2)), jnp.float32),
    )


def test_vmap_over_edits_is_one_by_one_and_one_compilation_serves_all():
    traces = []

    @jax.jit
    def run(edits):
        traces.append(1)
        return MODEL(TOKENS, edits=edits)[0]

    edits = many(4)
    together = jax.jit(jax.vmap(lambda e: MODEL(TOKENS, edits=e)[0]))(edits)
    for i in range(4):
        alone = run(jax.tree.map(lambda a, i=i: a[i], edits))
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-4)
    assert np.ptp(together, axis=0).max() > 1e-2
    assert len(traces) == 1


def test_gradients_flow_around_an_edit():
    places = mask((0, 1))

    def last_layer(x, edits):
        return apply_edits(x, edits, 0).sum()

    x = jnp.ones((B, T, D))
    for scale in (0.0, 1.0, 2.5):
        grads = jax.grad(last_layer)(x, edit(0, places, 3, scale, 1.0))
        expected = np.ones((B, T, D))
        expected[0, 1, 3] = scale
        np.testing.assert_array_equal(grads, expected)
    value = jnp.float32(4.0)
    through = lambda value: last_layer(x, Edits.set_to(0, places, 3, value))
    assert jax.grad(through)(value) == 1.0
    # A stream that is not a number must not poison the derivatives either.
    nan = x.at[0, 1, 3].set(jnp.nan)
    assert jax.grad(last_layer)(nan, edit(0, places, 3, 0.0, 1.0))[0, 1, 3] == 0.0


def test_edits_in_bfloat16_keep_the_dtype():
    x = jnp.ones((B, T, D), jnp.bfloat16)
    out = apply_edits(x, edit(0, mask((0, 1)), 3, 0.0, 7.0), 0)
    assert out.dtype == jnp.bfloat16 and out[0, 1, 3] == 7


def test_edits_of_another_family():
    config = CONFIGS["gpt2"]
    model, tokens = decoder(config), ids(config, B, T)
    edits = edit(0, np.ones((1, 1, T), bool), 2, 0.0, 11.0)
    _, acts = streams(model, tokens, edits)
    assert (acts.resid_post[0, :, :, 2] == 11).all()
