"""Edits of the residual stream: what they change, what they leave, and what they cost."""

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS, LLAMA, decoder, ids

from jax_massact.nn.acts import EDITABLE
from jax_massact.nn.edits import Additions, Clips, Edits, MaxMoves, VectorEdits

B, T, D = 2, 5, LLAMA.width
MODEL, TOKENS = decoder(LLAMA), ids(LLAMA, B, T)


@in_numpy.jit
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
    assert three.apply(x, 1)[0, 1, 3] == (5 + 1) * 3
    turned = jax.tree.map(lambda a: a[::-1], three)
    assert turned.apply(x, 1)[0, 1, 3] == 5
    assert int((three.apply(x, 1) != x).sum()) == 1
    np.testing.assert_array_equal(three.apply(x, 0), x)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"layer": -1}, "layer is -1; expected: 0 to 2, of 3 blocks"),
    ({"layer": LLAMA.depth}, "layer is 3; expected: 0 to 2, of 3 blocks"),
    ({"dim": 999}, "dim is 999; expected: 0 to 15, of 16 dimensions of resid_post"),
    ({"dim": -999}, "dim is -999; expected: 0 to 15"),
    ({"dim": 24, "site": "mlp_hidden"}, "dim is 24; expected: 0 to 23, .* of mlp_hidden"),
    ({"site": "q"}, "site is 'q'; expected: one of resid_pre, attn_in, attn_out"),
    ({"tokens": np.arange(T + 1) == 2}, f"a mask of 1 x {T + 1}; expected: {B} sequences"),
])
def test_what_is_out_of_range_is_refused(wrong, message):
    given = {"layer": 0, "tokens": np.arange(T) == 2, "dim": 0, "value": 1.0} | wrong
    with pytest.raises(ValueError, match=message):
        MODEL(TOKENS, edits=Edits.set_to(**given))


@pytest.mark.parametrize("tokens", [5, [0], np.arange(T), True])
def test_numbers_are_not_read_as_a_mask(tokens):
    with pytest.raises(ValueError, match="expected: a boolean mask"):
        Edits.set_to(0, tokens, 0, 1.0)


def test_setting_replaces_nan_and_infinity():
    x = jnp.full((B, T, D), jnp.nan).at[1].set(jnp.inf)
    out = Edits.set_to(0, np.ones((1, 1, T), bool), 4, -2.0).apply(x, 0)
    assert (out[:, :, 4] == -2).all()
    assert not jnp.isfinite(jnp.delete(out, 4, axis=2)).any()


def test_a_value_for_every_token():
    x = jnp.zeros((B, T, D))
    values = np.arange(B * T, dtype=np.float32).reshape(1, B, T)
    out = Edits.set_to(0, np.ones((1, B, T), bool), 4, values).apply(x, 0)
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
    np.testing.assert_array_equal(edits.apply(x, 0), expected)
    one = Edits.set_to(0, tokens[:1] if tokens.ndim > 1 else tokens, 3, 10.0)
    expected[:, 2, 4] = 1
    np.testing.assert_array_equal(one.apply(x, 0), expected)


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

    @in_numpy.jit
    def run(edits):
        traces.append(1)
        return MODEL(TOKENS, edits=edits)[0]

    edits = many(4)
    together = in_numpy.jit(jax.vmap(lambda e: MODEL(TOKENS, edits=e)[0]))(edits)
    for i in range(4):
        alone = run(jax.tree.map(lambda a, i=i: a[i], edits))
        np.testing.assert_allclose(together[i], alone, rtol=0, atol=1e-4)
    assert np.ptp(together, axis=0).max() > 1e-2
    assert len(traces) == 1


def test_gradients_flow_around_an_edit():
    places = mask((0, 1))

    def last_layer(x, edits):
        return edits.apply(x, 0).sum()

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
    out = edit(0, mask((0, 1)), 3, 0.0, 7.0).apply(x, 0)
    assert out.dtype == jnp.bfloat16 and out[0, 1, 3] == 7


def test_edits_of_another_family():
    config = CONFIGS["gpt2"]
    model, tokens = decoder(config), ids(config, B, T)
    edits = edit(0, np.ones((1, 1, T), bool), 2, 0.0, 11.0)
    _, acts = streams(model, tokens, edits)
    assert (acts.resid_post[0, :, :, 2] == 11).all()


@pytest.mark.parametrize("site", EDITABLE)
def test_every_site_is_edited_where_its_name_says(site):
    """The edited value is seen at the site itself, by what is computed from it, and no earlier."""
    edits = Edits.set_to(1, np.arange(T) == 2, 3, 50.0, site=site)
    _, plain = streams(MODEL, TOKENS)
    _, acts = streams(MODEL, TOKENS, edits)
    order = [name for name in acts._fields if name in EDITABLE]
    changed = {
        name: [bool(np.abs(a - b).max() > 1e-4) for a, b in zip(
            getattr(acts, name), getattr(plain, name), strict=True)]
        for name in order
    }
    assert (getattr(acts, site)[1, :, 2, 3] == 50).all()
    before = order[: order.index(site)]
    assert not any(changed[name][0] for name in order)
    assert not any(changed[name][1] for name in before)
    assert changed[site][1] and changed["resid_post"][1] and changed["resid_pre"][2]


def test_whole_vectors_are_set():
    vector = jnp.arange(2 * D, dtype=jnp.float32).reshape(2, D)
    tokens = jnp.asarray(np.arange(T) == np.array([[1], [3]]))[:, None]
    edits = VectorEdits(jnp.array([0, 2]), tokens, vector, "resid_pre")
    _, acts = streams(MODEL, TOKENS, edits)
    np.testing.assert_array_equal(acts.resid_pre[0, :, 1], np.tile(vector[0], (B, 1)))
    np.testing.assert_array_equal(acts.resid_pre[2, :, 3], np.tile(vector[1], (B, 1)))
    # One vector for every token of every sequence.
    each = jnp.asarray(np.random.default_rng(0).standard_normal((1, B, T, D)), jnp.float32)
    everywhere = VectorEdits(jnp.array([1]), jnp.ones((1, 1, T), bool), each, "resid_post")
    np.testing.assert_array_equal(streams(MODEL, TOKENS, everywhere)[1].resid_post[1], each[0])
    with pytest.raises(ValueError, match="vector has 3 entries; expected: 16"):
        MODEL(TOKENS, edits=VectorEdits(jnp.array([1]), tokens[:1], jnp.zeros((1, 3))))


def test_vectors_are_added_as_long_as_each_token_wants():
    size = np.zeros((1, B, T), np.float32)
    size[0, 1, 2] = 3.0
    vector = np.arange(D, dtype=np.float32)[None]
    _, plain = streams(MODEL, TOKENS)
    _, acts = streams(MODEL, TOKENS, Additions(jnp.array([1]), jnp.asarray(size), vector))
    np.testing.assert_array_equal(acts.resid_post[0], plain.resid_post[0])
    expected = np.array(plain.resid_post[1])
    expected[1, 2] += 3 * vector[0]
    np.testing.assert_allclose(acts.resid_post[1], expected, atol=1e-5)
    with pytest.raises(ValueError, match="vector has the axes"):
        MODEL(TOKENS, edits=Additions(jnp.array([1]), jnp.asarray(size), vector[:, :3]))


def test_a_units_largest_activation_is_moved_to_one_token():
    _, plain = streams(MODEL, TOKENS)
    moves = MaxMoves(jnp.array([0, 1]), jnp.array([4, 7]), jnp.array([0, T - 1]))
    _, acts = streams(MODEL, TOKENS, moves)
    expected = np.zeros((B, T))
    expected[:, 0] = plain.mlp_hidden[0, :, :, 4].max(1)
    np.testing.assert_allclose(acts.mlp_hidden[0, :, :, 4], expected, rtol=1e-6)
    others = np.delete(np.arange(24), 4)
    np.testing.assert_allclose(
        acts.mlp_hidden[0][..., others], plain.mlp_hidden[0][..., others], rtol=1e-5, atol=1e-5
    )
    assert (acts.mlp_hidden[1, :, :-1, 7] == 0).all()
    for wrong, message in (({"unit": 24}, "unit is 24; expected: 0 to 23"),
                           ({"token": T}, f"token is {T}; expected: 0 to {T - 1}"),
                           ({"token": -2}, "token is -2")):
        given = {"layer": 0, "unit": 0, "token": 0} | wrong
        with pytest.raises(ValueError, match=message):
            MODEL(TOKENS, edits=MaxMoves(**{n: jnp.array([x]) for n, x in given.items()}))


def test_edits_of_several_kinds_are_made_together():
    at = np.arange(T) == 1
    edits = (
        Edits.set_to(0, at, 3, 8.0, site="mlp_out"), Edits.set_to(0, at, 3, 9.0, site="resid_post"),
        Edits.set_to(0, at, 4, 7.0),
    )
    _, acts = streams(MODEL, TOKENS, edits)
    assert (acts.mlp_out[0, :, 1, 3] == 8).all() and (acts.resid_post[0, :, 1, 3] == 9).all()
    assert (acts.resid_post[0, :, 1, 4] == 7).all()


def test_a_dimension_is_clipped_at_every_token_of_its_block():
    _, acts = streams(MODEL, TOKENS)
    stream = np.asarray(acts.resid_post)
    limit = np.abs(stream[1, ..., 9]).mean()
    both = Clips(jnp.array([1, 0]), jnp.array([9, 3]), jnp.array([limit, np.inf]))
    _, new = streams(MODEL, TOKENS, both)
    expected = stream[:2].copy()
    expected[1, ..., 9] = np.clip(expected[1, ..., 9], -limit, limit)
    assert not np.array_equal(expected, stream[:2])
    np.testing.assert_array_equal(np.asarray(new.resid_post)[:2], expected)
    with pytest.raises(ValueError, match="dim is 1000"):
        MODEL(TOKENS, edits=Clips(jnp.array([1]), jnp.array([1000]), jnp.array([1.0])))
