"""Padded batches give, for every sequence, what it gives alone."""

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS, decoder, ids, varied

import jax_massact as ma
from jax_massact.measure.padding import unpad
from jax_massact.mesh import make_mesh
from jax_massact.nn.edits import MaxMoves, VectorEdits

T, LENGTHS = 11, (11, 6, 6)
B, D, PAD = len(LENGTHS), 16, 63
LOW = ma.Definition(
    strict=ma.Threshold(magnitude=0.9, ratio=1.5), relaxed=ma.Threshold(magnitude=0.6, ratio=1.1),
    outlier=ma.Threshold(magnitude=0.2, ratio=0.4), outlier_share=0.5,
)


def measure(model, tokens, massive, edits, mask=None):
    return (
        ma.magnitudes(model, tokens, mask=mask, top_k=4, definition=LOW, edits=edits),
        ma.explain(model, tokens, massive, mask=mask, sink_length=4),
        ma.token_losses(model, tokens, mask=mask, edits=edits),
    )


numbers = in_numpy.jit(measure)


def mask(side):
    """Where the real tokens are: in front, behind, or here and there."""
    real = np.arange(T) < np.array(LENGTHS)[:, None]
    if side == "scattered":
        return np.random.default_rng(0).permuted(real, axis=1)
    return real[:, ::-1] if side == "left" else real


@pytest.fixture(scope="module", params=["standard", "window, sink"])
def case(request):
    sink = varied(CONFIGS["mistral"], variant="sink")
    model = decoder(CONFIGS["llama"] if request.param == "standard" else sink)
    return model, np.array(ids(model.config, B, T)), int(model.prefix is not None)


@pytest.mark.parametrize("side", ["right", "left", "scattered"])
def test_every_sequence_is_measured_as_if_alone(case, side):
    model, tokens, rows = case
    real = mask(side)
    padded = np.where(real, tokens, PAD)
    # In the padding as well, where they must not count.
    marks = np.random.default_rng(2).random((B, rows + T)) < 0.4
    edited = np.arange(rows + T) == rows + T - 3
    edits = lambda tokens: ma.Edits.set_to(1, tokens, 4, 6.0)
    stats, layers, losses = numbers(model, padded, marks, edits(edited), real)
    total = []
    for b in range(B):
        place = np.concatenate([np.arange(rows), np.flatnonzero(real[b]) + rows])
        alone = numbers(
            model, tokens[b][real[b]][None], marks[b][place][None], edits(edited[place])
        )
        there = lambda part, place=place: part._replace(position=place[part.position])
        expected = alone[0]._replace(top=there(alone[0].top), places=there(alone[0].places))
        found, mechanism = (
            jax.tree.map(lambda x, b=b: x[:, b : b + 1], x) for x in (stats, layers)
        )
        n = len(place)
        assert not found.map[:, :, n:].any()
        found = found._replace(map=found.map[:, :, :n])
        mechanism = mechanism._replace(map=mechanism.map[..., :n, :n])
        for a, e in zip(
            jax.tree.leaves((found, mechanism)), jax.tree.leaves((expected, alone[1])), strict=True
        ):
            np.testing.assert_allclose(a, e, rtol=1e-4, atol=2e-5)
        np.testing.assert_allclose(losses[b][place[rows + 1 :] - rows - 1], alone[2][0], atol=2e-5)
        assert np.count_nonzero(losses[b]) == n - rows - 1
        total += list(alone[2][0])
    perplexity = in_numpy.jit(ma.perplexity)(model, padded, mask=real, edits=edits(edited))
    assert float(perplexity) == pytest.approx(np.exp(np.mean(total)), rel=1e-5)


def test_ids_of_padding_may_be_any():
    real = mask("left")
    for pad in (-100, 10_000):
        tokens = np.where(real, np.arange(B * T).reshape(B, T), pad)
        found = unpad(tokens, np.int64(real))
        assert found.count.tolist() == [11, 6, 6]
        assert found.tokens[1].tolist() == [16, 17, 18, 19, 20, 21] + 5 * [16]
        assert found.order[1].tolist() == [5, 6, 7, 8, 9, 10, 0, 1, 2, 3, 4]


def test_whole_vectors_follow_their_tokens():
    vectors = np.random.default_rng(1).normal(size=(1, B, T, D)).astype(np.float32)
    here = np.arange(T) > 6
    edit = VectorEdits(jnp.array([1]), jnp.asarray(here)[None, None], jnp.asarray(vectors))
    batch = unpad(np.zeros((B, T), int), mask("left"))
    (moved,) = batch.edits(edit)
    np.testing.assert_array_equal(moved.vector[0, 1, :6], vectors[0, 1, 5:])
    assert moved.tokens[0, 1].tolist() == 2 * [False] + 4 * [True] + 5 * [False]


def test_under_a_mesh():
    model, tokens = decoder(CONFIGS["llama"]), np.array(ids(CONFIGS["llama"], 4, T))
    real = np.arange(T) >= np.array([[0], [2], [5], [9]])
    massive = np.arange(T) == np.array([[0], [2], [5], [9]])
    edits = ma.Edits.set_to([0, 1], np.arange(T) == 10, [1, 4], [5.0, -7.0])
    expected = numbers(model, tokens, massive, edits, real)
    with jax.set_mesh(make_mesh(data=2, fsdp=2, model=2)):
        found = jax.jit(measure)(model, tokens, massive, edits, real)
    assert found[0].quantile.addressable_shards[0].data.shape[1] == 4 // 4
    found = jax.device_get(found)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * np.abs(b).max())


@pytest.mark.parametrize(("wrong", "words"), [
    (np.ones((B, T - 1), bool), r"shape \(3, 10\).*expected: \(3, 11\)"),
    (np.zeros((B, T), np.float32), "dtype float32"),
    (np.full((B, T), 2), "mask holds 2"),
    (np.arange(T) < np.array([[4], [0], [2]]), "sequence 1 has no real token"),
])
def test_masks_that_are_none(wrong, words):
    model, tokens = decoder(CONFIGS["llama"]), ids(CONFIGS["llama"], B, T)
    for call in (ma.magnitudes, ma.perplexity):
        with pytest.raises(ValueError, match=words):
            call(model, tokens, mask=wrong)


def test_maxima_over_tokens_cannot_be_moved_in_padded_batches():
    model, tokens = decoder(CONFIGS["llama"]), ids(CONFIGS["llama"], B, T)
    edit = MaxMoves(jnp.array([1]), jnp.array([3]), jnp.array([0]))
    with pytest.raises(ValueError, match="expected: sequences without padding"):
        ma.token_losses(model, tokens, mask=mask("left"), edits=edit)
