"""Streaming batches: the same result for every batch size, in memory that does not grow."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from planted import CONFIG, DIM, MARK, REMOVER, WRITER, Plant, written_and_removed
from tiny_models import LLAMA, ids, varied

from jax_massact.measure.definition import Definition, Threshold
from jax_massact.mesh import make_mesh
from jax_massact.nn.transformer import abstract
from jax_massact.studies.collector import (
    PROMPT_TOKENS,
    compile_probe,
    first_sequence,
    kept,
    probe_inputs,
    probe_reading,
)
from jax_massact.studies.frame import versions
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.passes import InMemory, compile_reading, step_of
from jax_massact.studies.records import MAX_LISTED, massive_records, outlier_records

S, T = 5, 12
TOKENS = np.array(ids(CONFIG, S, T))
TOKENS[TOKENS == 6] = 7
TOKENS[[0, 0, 2, 3], [5, 9, 4, 5]] = 6


def pieces(ids):
    return ["." if i % 3 == 0 else f"w{i}" for i in ids]


def kind(piece):
    return "delimiter" if piece == "." else "other"


# The mark of the first token, 4 or -4, is an outlier feature then.
DEFINITION = Definition(outlier=Threshold(magnitude=3.0, ratio=10.0))


def two_kinds():
    plant = written_and_removed()
    # Token 6, a "delimiter", is massive in another dimension, in the embedding already.
    plant.p["embed"][6, 11] = 350.0
    return plant.build()


MODEL = two_kinds()


def probe(batch_size, model=MODEL, tokens=TOKENS, definition=DEFINITION, **settings):
    shape = (batch_size, tokens.shape[1])
    step = compile_probe(model, shape, top_k=3, definition=definition)
    inputs = Inputs(tokens, pieces, kind=kind)
    found = (jax.device_get(step(model, *batch[:2])) for batch in kept(inputs, batch_size))
    return probe_inputs(found, inputs, definition=definition, **settings)


def results(probed):
    return {
        "layers": probed.layers, "massive": massive_records(probed),
        "outliers": outlier_records(probed), "prompt": probed.prompt,
    }


def assert_close(a, b, path=""):
    assert type(a) is type(b), path
    if isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            assert_close(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_close(x, y, f"{path}[{i}]")
    elif isinstance(a, float):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-4), path
    else:
        assert a == b, path


@pytest.fixture(scope="module")
def whole():
    return probe(S)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_batch_size_changes_nothing(batch_size, whole):
    done = []
    probed = probe(batch_size, progress=done.append)
    assert_close(results(probed), results(whole))
    np.testing.assert_allclose(probed.map.magnitude, whole.map.magnitude, rtol=1e-4, atol=1e-4)
    assert done == [*range(batch_size, S, batch_size), S]


def test_a_mesh_may_split_the_sequences():
    keep, map_of_each = np.ones(4, bool), np.arange(8.0).reshape(1, 4, 2)
    with jax.set_mesh(make_mesh(data=2, devices=jax.devices()[:2])):
        reading = probe_reading(top_k=5, definition=DEFINITION)
        run = lambda tokens: step_of(reading)(MODEL, tokens, keep)
        assert jax.eval_shape(run, TOKENS[:4]).map.shape == (CONFIG.depth, 1, T, CONFIG.width)
        split = jax.device_put(map_of_each, jax.P(None, "data"))
        np.testing.assert_array_equal(jax.jit(first_sequence)(split), map_of_each[:, :1])


def test_results_are_plain_json(whole):
    record = results(whole)
    # A tuple is a list in JSON.
    record["prompt"] = record["prompt"] | {"massive": [[*x] for x in record["prompt"]["massive"]]}
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_layers_are_means_over_sequences(whole):
    streams = np.float64(jax.jit(lambda m, t: m(t, tap=lambda a: a.resid_post)[1])(MODEL, TOKENS))
    size = np.abs(streams).reshape(CONFIG.depth, S, -1)
    ordered = -np.sort(-size, axis=-1)
    assert [layer["layer"] for layer in whole.layers] == list(range(CONFIG.depth))
    for l, layer in enumerate(whole.layers):
        near = lambda x: pytest.approx(x, rel=1e-5)
        assert layer["median"] == near(np.median(size[l], axis=-1).mean())
        assert layer["quantile"] == {
            "0.9": near(np.quantile(size[l], 0.9, axis=-1).mean()),
            "0.99": near(np.quantile(size[l], 0.99, axis=-1).mean()),
        }
        assert layer["max"] == near(size[l].max())
        assert layer["count_above"] == {
            f"{t}": near((size[l] > t).sum(-1).mean()) for t in (10, 100, 1000)
        }
        assert layer["nonfinite"] == 0
        for i, entry in enumerate(layer["top"]):
            assert entry["magnitude"] == near(ordered[l, :, i].mean())
            assert entry["magnitude_std"] == pytest.approx(
                ordered[l, :, i].std(), rel=1e-3, abs=1e-2)
            assert abs(entry["value"]) <= entry["magnitude"] * (1 + 1e-6)
    top = whole.layers[WRITER]["top"][0]
    assert (top["position"], top["dim"], top["share"]) == (0, DIM, 1.0)
    first = [pieces([i])[0] for i in TOKENS[:, 0]]
    assert top["token"] in first


def test_records_of_what_was_planted(whole):
    records = {r["dim"]: r for r in massive_records(whole)}
    assert [*records] == [DIM, 11] and records[11]["strict"]
    r = records[DIM]
    assert (r["first_layer"], r["last_layer"]) == (WRITER, REMOVER - 1)
    assert r["positions"] == [{"position": 0, "sequences": S}]
    assert r["kinds"] == {"first": 1.0, "delimiter": 0.0, "other": 0.0}
    assert sum(t["sequences"] for t in r["tokens"]) == S
    assert {t["token"] for t in r["tokens"]} == set(pieces(TOKENS[:, 0]))
    assert (r["written_by"]["layer"], r["written_by"]["sublayer"]) == (WRITER, "mlp")
    assert (r["removed_by"]["layer"], r["removed_by"]["sublayer"]) == (REMOVER, "mlp")
    assert [v is None for v in r["trajectory"]] == [
        not WRITER <= l < REMOVER for l in range(CONFIG.depth)
    ]
    other = records[11]
    places = np.argwhere(TOKENS == 6)
    assert other["share_of_sequences"] == pytest.approx(len({*places[:, 0]}) / S)
    assert {p["position"] for p in other["positions"]} == {*places[:, 1].tolist()}
    assert other["written_by"]["sublayer"] == "embedding" and other["removed_by"] is None
    assert other["kinds"] == {"first": 0.0, "delimiter": 1.0, "other": 0.0}
    assert other["tokens"] == [{"token": ".", "kind": "delimiter", "sequences": 4}]
    (outlier,) = outlier_records(whole)
    assert outlier["dim"] == MARK and (outlier["first_layer"], outlier["last_layer"]) == (0, 5)
    assert outlier["share_of_tokens"] == outlier["share_of_sequences"] == 1
    assert outlier["magnitude"] == pytest.approx(4, rel=0.05)


def test_prompt_and_map_are_of_the_first_sequence(whole):
    assert whole.prompt["tokens"] == pieces(TOKENS[0])
    expected = {(0, DIM)} | {(int(t), 11) for t in np.nonzero(TOKENS[0] == 6)[0]}
    assert whole.prompt["massive"] == sorted(expected)
    assert whole.map.tokens == pieces(TOKENS[0]) and whole.map.first_dim.tolist() == [*range(16)]
    assert whole.map.magnitude.shape == (CONFIG.depth, T, 16)
    assert whole.map.magnitude[WRITER, 0].argmax() == DIM


def test_a_quiet_model_has_no_records():
    probed = probe(S, model=Plant().build())
    assert massive_records(probed) == []
    assert [r["dim"] for r in outlier_records(probed)] == [MARK]
    quiet = probe(S, model=Plant().build(), definition=Definition())
    assert outlier_records(quiet) == []
    assert probed.prompt["massive"] == []


def test_lists_in_the_result_are_bounded():
    config = dataclasses.replace(CONFIG, depth=1, context_length=PROMPT_TOKENS + 8)
    plant = Plant(config)
    plant.p["positions"][:] = 0.0
    plant.p["embed"][6, 11] = 5000.0
    tokens = np.full((1, PROMPT_TOKENS + 8), 7)
    tokens[0, ::25] = 6
    assert len(tokens[0, ::25]) > MAX_LISTED
    tokens[0, -1] = 6
    probed = probe(1, model=plant.build(), tokens=tokens)
    (record,) = massive_records(probed)
    assert len(record["positions"]) == MAX_LISTED
    assert len(probed.prompt["tokens"]) == PROMPT_TOKENS
    assert max(p for p, _ in probed.prompt["massive"]) < PROMPT_TOKENS


def memory(config, batch, length, step):
    tokens = jax.ShapeDtypeStruct((batch, length), jnp.int32)
    keep = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    compiled = jax.jit(step).lower(abstract(config), tokens, keep).compile()
    return compiled.memory_analysis()


def test_memory_does_not_grow_with_depth_and_stays_below_that_of_logits():
    sizes = dict(width=64, hidden=128, vocab_size=2048, context_length=256)

    def logits(model, tokens, keep):
        return model(tokens)[0]

    peak = {}
    for depth in (2, 12):
        config = varied(LLAMA, depth=depth, **sizes)
        reading = probe_reading(top_k=5, definition=Definition())
        found = memory(config, 2, 256, step_of(reading))
        # What is returned may grow, by layers: but not by tokens x dimensions.
        assert found.output_size_in_bytes < depth * 2 * 256 * 64 * 4 / 2
        peak[depth] = found.temp_size_in_bytes
        plain = memory(config, 2, 256, logits)
        assert peak[depth] < 1.1 * (plain.temp_size_in_bytes + plain.output_size_in_bytes)
    assert peak[12] - peak[2] < 0.3 * peak[2]


def test_shapes_are_enough_to_compile():
    reading = probe_reading(top_k=3, definition=Definition())
    shapes = [jax.ShapeDtypeStruct((1, T), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.bool_)]
    step = compile_reading(reading, abstract(CONFIG), *shapes)
    inputs = Inputs(TOKENS[:1], pieces, kind=kind)
    results = InMemory(MODEL, {reading: step}).run(reading, kept(inputs, 1))
    probed = probe_inputs(results, inputs, definition=Definition())
    assert probed.layers[0]["layer"] == 0 and len(probed.layers[0]["top"]) == 3


def test_versions_name_the_device():
    found = versions()
    assert found["jax"] == jax.__version__ and found["device"].startswith("cpu")
