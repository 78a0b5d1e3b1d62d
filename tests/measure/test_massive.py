"""Massive activations: found where they were planted, and as a plain second implementation finds
them."""

import dataclasses

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_probe import find
from planted import CONFIG, DIM, MARK, REMOVER, VALUE, WRITER, Plant, written_and_removed
from tiny_models import CONFIGS, decoder, ids

from jax_massact.measure.definition import Definition, Threshold
from jax_massact.measure.magnitudes import magnitudes
from jax_massact.measure.massive import (
    SUBLAYERS,
    Moments,
    decide,
    find_massive,
    is_outlier,
    tally,
)

B, T = 5, 16
TOKENS = ids(CONFIG, B, T)


measure = in_numpy.jit(magnitudes, static=["definition"])
judge = in_numpy.jit(find_massive, static=["definition"])
count = in_numpy.jit(tally)


def run(model, tokens, definition=None):
    definition = definition or Definition()
    # What is measured depends on the thresholds alone: compiled once for all other settings.
    thresholds = dataclasses.replace(definition, min_share=0.5, min_layers=2)
    stats = measure(model, tokens, definition=thresholds)
    return jax.device_get((stats, judge(stats, definition)))


def as_records(massive):
    """`Massive` in the form of `plain_probe.find`."""

    def sublayer(layer, index, value):
        return None if index < 0 else (int(layer), SUBLAYERS[index], value)

    plain = ("strict", "first_layer", "last_layer", "peak_layer", "value_mean", "value_std",
             "value_count", "ratio", "share_of_sequences")
    records = {}
    for d in np.nonzero(massive.relaxed)[0].tolist():
        m = {name: np.asarray(x)[..., d] for name, x in massive._asdict().items()}
        records[d] = {name: m[name].item() for name in plain} | {
            "trajectory": m["trajectory"],
            "written_by": sublayer(m["writer_layer"], m["writer_sublayer"], m["writer_value"]),
            "removed_by": sublayer(m["remover_layer"], m["remover_sublayer"], m["remover_value"]),
        }
    return records


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for d, record in expected.items():
        for name, value in record.items():
            got = found[d][name]
            if name in ("written_by", "removed_by"):
                assert (got and got[:2]) == (value and value[:2]), (d, name)
                got, value = (got and got[2]), (value and value[2])
            if value is not None:
                np.testing.assert_allclose(
                    np.float64(got), value, rtol=2e-4, atol=1e-5, err_msg=f"{d} {name}"
                )


@in_numpy.jit
def all_acts(model, tokens):
    return model(tokens, tap=lambda acts: acts)[1]


def both(model, tokens, definition=None):
    """The package's records, found to be those of the plain implementation."""
    stats, massive = run(model, tokens, definition)
    records = as_records(massive)
    acts = jax.device_get(all_acts(model, tokens))
    assert_same(records, find(acts, definition or Definition()))
    return stats, records


def test_planted_and_removed():
    stats, records = both(written_and_removed().build(), TOKENS)
    assert records.keys() == {DIM}
    r = records[DIM]
    assert r["strict"] and r["share_of_sequences"] == 1
    assert (r["first_layer"], r["last_layer"]) == (WRITER, REMOVER - 1)
    assert r["peak_layer"] in range(WRITER, REMOVER)
    assert r["value_mean"] == pytest.approx(VALUE, rel=0.03) and r["value_std"] < 0.02 * VALUE
    assert r["written_by"] == (WRITER, "mlp", pytest.approx(VALUE, rel=0.03))
    assert r["removed_by"] == (REMOVER, "mlp", pytest.approx(-VALUE, rel=0.03))
    assert np.isnan(r["trajectory"][[0, REMOVER, 5]]).all()
    assert (stats.strict[WRITER:REMOVER] == 1).all()
    assert stats.strict.sum() == B * (REMOVER - WRITER)
    top = stats.top
    assert (top.position[WRITER:REMOVER, :, 0] == 0).all()
    assert (top.dim[WRITER:REMOVER, :, 0] == DIM).all()


def test_negative_values_keep_their_sign():
    _, records = both(written_and_removed(-VALUE).build(), TOKENS)
    # What is removed where DIM is far above its mean is not removed where it is far below.
    r = records[DIM]
    assert r["value_mean"] == pytest.approx(-VALUE, rel=0.03)
    assert r["written_by"] == (WRITER, "mlp", pytest.approx(-VALUE, rel=0.03))
    assert r["last_layer"] == CONFIG.depth - 1 and r["removed_by"] is None


def test_relaxed_only():
    _, records = both(written_and_removed(60.0).build(), TOKENS)
    r = records[DIM]
    assert not r["strict"] and r["value_mean"] == pytest.approx(60, rel=0.05)
    assert (r["first_layer"], r["last_layer"]) == (WRITER, REMOVER - 1)
    assert r["removed_by"] == (REMOVER, "mlp", pytest.approx(-60, rel=0.05))


def test_values_are_of_all_sequences_and_not_of_those_over_the_threshold_alone():
    model = written_and_removed().build()
    acts = jax.device_get(all_acts(model, TOKENS))
    values = np.sort(acts.resid_post[WRITER:REMOVER, :, 0, DIM], axis=1)
    # At most one sequence of a layer reaches this threshold.
    lone = Threshold(magnitude=float(values[:, -2:].mean(1).max()), ratio=1.0)
    definition = Definition(strict=lone, relaxed=lone)
    _, records = both(model, TOKENS, definition)
    r = records[DIM]
    assert r["share_of_sequences"] < 0.5 and r["value_count"] == B
    layer = r["peak_layer"] - WRITER
    assert r["value_mean"] == pytest.approx(values[layer].mean(), rel=1e-5)
    assert r["value_std"] == pytest.approx(values[layer].std(), rel=1e-3)


def test_nothing_to_find():
    stats, records = both(Plant().build(), TOKENS)
    assert records == {}
    massive = judge(stats, Definition())
    for name in ("first_layer", "last_layer", "peak_layer", "writer_layer", "writer_sublayer",
                 "remover_layer", "remover_sublayer"):
        assert (getattr(massive, name) == -1).all(), name
    assert not massive.strict.any() and not massive.share_of_sequences.any()


def test_an_outlier_feature_is_not_massive():
    plant = written_and_removed()
    plant.p["embed"][:, 9] = 8.0
    plant.p["embed"][:, 10] = 700.0
    stats, records = both(plant.build(), TOKENS)
    assert 9 not in records and 10 not in records
    outlier = np.asarray(is_outlier(stats))
    assert outlier[:, :, [9, 10]].all() and not outlier[:, :, DIM].any()
    np.testing.assert_allclose(stats.outliers.magnitude[0, :, 9], 8, rtol=0.05)
    assert (stats.outliers.share[:, :, 10] == 1).all()
    # Every place would be taken by dimension 10 if it were not passed over.
    assert stats.relaxed.min() >= T and (stats.places.dim[:, :, 0] != 10).all()


def test_written_by_attention_and_never_removed():
    plant = Plant()
    p = {n: plant.p[f"blocks.attn.{n}"][2] for n in ("q", "k", "v", "out")}
    # Uniform attention spreads token 0's value v over the tokens as v / (t + 1).
    p["q"][:], p["v"][:], p["out"][:] = 0.0, 0.0, 0.0
    plant.p["positions"][0, 13] = 4.0
    plant.p["positions"][:, MARK] = 0.0
    p["v"][13, 0, 0] = 1.0
    p["out"][0, 0, DIM] = 150 / np.sqrt(15)
    stats, records = both(plant.build(), TOKENS)
    r = records[DIM]
    assert r["strict"] and r["removed_by"] is None
    assert (r["first_layer"], r["last_layer"]) == (2, CONFIG.depth - 1)
    assert r["written_by"] == (2, "attn", pytest.approx(150, rel=0.03))
    assert (stats.relaxed[2] > 3).all() and (stats.strict[2] == 1).all()


def test_written_by_the_embedding_and_removed():
    plant = Plant()
    plant.p["positions"][0, DIM] = 300.0
    plant.mlp(3, 6, DIM, DIM, -300 / (10 * (np.sqrt(15) - 1)))
    _, records = both(plant.build(), TOKENS)
    r = records[DIM]
    assert r["written_by"] == (-1, "embedding", pytest.approx(300, rel=0.01))
    assert (r["first_layer"], r["last_layer"]) == (0, 2)
    assert r["removed_by"][:2] == (3, "mlp")


def test_min_layers_and_min_share():
    # At one layer only: written by block 1 and removed by block 2.
    plant = Plant()
    unit = 10 * (np.sqrt(15) - 1)
    plant.mlp(1, 5, MARK, DIM, VALUE / unit).mlp(2, 6, DIM, DIM, -VALUE / unit)
    for layers, strict in ((1, True), (2, False)):
        _, records = both(plant.build(), TOKENS, Definition(min_layers=layers))
        assert records[DIM]["strict"] == strict
        assert (records[DIM]["first_layer"], records[DIM]["last_layer"]) == (1, 1)
    # In the sequences that begin with token 7 only: 2 of 5.
    plant = Plant()
    plant.p["positions"][:, MARK] = 0.0
    plant.p["embed"][:, MARK] = -4.0
    plant.p["embed"][7, MARK] = 4.0
    plant.mlp(1, 5, MARK, DIM, VALUE / unit)
    tokens = np.where(TOKENS == 7, 8, TOKENS)
    tokens[[1, 3], [0, 9]] = 7
    for share, strict in ((0.3, True), (0.4, False), (0.5, False)):
        _, records = both(plant.build(), tokens, Definition(min_share=share))
        assert records[DIM]["strict"] == strict
        assert records[DIM]["share_of_sequences"] == pytest.approx(0.4)


def test_a_depth_below_min_layers():
    config = dataclasses.replace(CONFIG, depth=1)
    plant = Plant(config).mlp(0, 5, MARK, DIM, VALUE / 28)
    _, records = both(plant.build(), TOKENS)
    assert records[DIM]["strict"]


# 4 x 16 scalars: all of them are among the places.
LOW = Definition(
    strict=Threshold(magnitude=2.0, ratio=2.5), relaxed=Threshold(magnitude=1.0, ratio=1.2),
    outlier=Threshold(magnitude=0.5, ratio=0.7), min_share=0.3,
)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_every_field_on_random_models(family):
    config = CONFIGS[family]
    counts = []
    for seed in range(8):
        model = decoder(config, seed, spread=0.25 + 0.03 * seed)
        tokens = ids(config, 3, 4, seed)
        found = as_records(run(model, tokens, LOW)[1])
        assert_same(found, find(jax.device_get(all_acts(model, tokens)), LOW))
        counts += [(r["strict"], r["removed_by"] is None, r["written_by"][1])
                   for r in found.values()]
    # Both kinds of every verdict were compared.
    assert all(len(set(kinds)) > 1 for kinds in zip(*counts, strict=True))


def test_batches_merged_are_one_batch():
    stats = jax.device_get(measure(written_and_removed().build(), TOKENS, definition=Definition()))
    part = lambda s: jax.device_get(count(jax.tree.map(lambda x: x[:, s], stats)))
    whole = jax.device_get(count(stats))
    merged = part(slice(0, 2)).merge(part(slice(2, 3))).merge(part(slice(3, 5)))
    assert merged.sequences == B
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
    verdict = in_numpy.jit(decide)
    assert_same(*(as_records(jax.device_get(verdict(tally))) for tally in (whole, merged)))


def test_sequences_that_are_not_kept_count_for_nothing():
    stats = jax.device_get(measure(written_and_removed().build(), TOKENS, definition=Definition()))
    keep = np.array([True, False, True, False, True])
    some = jax.device_get(count(stats, keep=keep))
    alone = jax.device_get(count(jax.tree.map(lambda x: x[:, keep], stats)))
    assert some.sequences == 3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6), some, alone)
    none = jax.device_get(count(stats, keep=np.zeros(B, bool)))
    assert all(not leaf.any() for leaf in jax.tree.leaves(none))
    jax.tree.map(np.testing.assert_array_equal, alone.merge(none), alone)


def test_vmap_over_models():
    models = [written_and_removed(v).build() for v in (500.0, 60.0, 1.0)]
    stack = jax.tree.map(lambda *x: jnp.stack(x), *models)
    probe = lambda model: find_massive(magnitudes(model, TOKENS))
    together = in_numpy.jit(jax.vmap(probe))(stack)
    assert together.strict[:, DIM].tolist() == [True, False, False]
    assert together.relaxed[:, DIM].tolist() == [True, True, False]


finite = st.floats(-1e6, 1e6)
samples = st.lists(finite, max_size=5)


def moments(numbers):
    x = np.float64(numbers)
    mean = x.mean() if len(x) else 0.0
    return Moments(np.float64(len(x)), np.float64(mean), np.float64(((x - mean) ** 2).sum()))


@settings(max_examples=200, deadline=None)
@given(samples, samples, samples)
def test_moments_merge_as_the_samples_do(a, b, c):
    merged = moments(a).merge(moments(b)).merge(moments(c))
    whole = a + b + c
    assert merged.count == len(whole)
    np.testing.assert_allclose(merged.mean, np.mean(whole) if whole else 0, rtol=1e-9, atol=1e-8)
    np.testing.assert_allclose(merged.std, np.std(whole) if whole else 0, rtol=1e-6, atol=1e-6)


def test_moments_keep_the_digits_of_a_small_spread():
    rng = np.random.default_rng(0)
    x = np.float32(5e4 + rng.standard_normal(100))
    total = moments(x[:1])
    for number in x[1:]:
        total = total.merge(moments([number]))
    np.testing.assert_allclose(total.std, np.float64(x).std(), rtol=1e-9)
