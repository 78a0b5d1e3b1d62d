"""`intervene` on planted models in a folder, every number against a plain NumPy model."""

import functools
import json

import numpy as np
import oracle
import pytest
from model_folders import folder_of
from planted import BOS, DIM, MARK, REMOVER, WRITER, Plant, llama_written_and_removed
from planted import LLAMA_CONFIG as CONFIG

from jax_massact.errors import ConfigError, DataError
from jax_massact.studies.frame import prepare
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.interventions import intervene_checkpoint, split
from jax_massact.studies.interventions_result import InterveneResult, Rebuilt, Target
from jax_massact.studies.settings import InterveneConfig
from jax_massact.studies.targets import (
    TargetPlace,
    choose_control_dims,
    choose_targets,
    control_places,
)

T = 10
TEXT = "text:abcdefgh ijklmnop qrstuvwx yz.,;:! " * 20


def needed():
    """What attention gives depends on the massive token."""
    plant = llama_written_and_removed().louder()
    plant.p["head"] *= 10
    return plant


def rewritten():
    """Block WRITER + 1 writes it again from the mark, if it is gone or not."""
    plant = llama_written_and_removed()
    # The value takes the mark's place in the norm; a zeroed value gives it back.
    return plant.mlp(WRITER + 1, 7, MARK, DIM, 500.0 / 1600)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    quiet = Plant(CONFIG)
    plants = {"needed": needed(), "rewritten": rewritten(), "quiet": quiet}
    return {name: folder_of(plant.build(), root / name) for name, plant in plants.items()}


def settings(**changes):
    values = dict(text=TEXT, bos="true", sequence_length=T, calibration_sequences=4, sequences=5)
    return InterveneConfig(**values | changes)


@functools.cache
def intervene(folder, **changes):
    config = settings(**changes)
    prepared = prepare(str(folder), config)
    seen = []
    note = lambda *counts: seen.append(counts)
    result = intervene_checkpoint(prepared, config, progress=note)
    assert seen[-1] == (len(prepared.inputs), len(prepared.inputs))
    return result, prepared


@pytest.mark.parametrize("layers", ["first", "all", "2,3"])
def test_every_perplexity_is_that_of_the_plain_model(folders, layers):
    result, prepared = intervene(
        folders["needed"], layers=layers, fractions=(0.25, 2.0), batch_size=2
    )
    assert result.keys() == InterveneResult.__annotations__.keys()
    model = prepared.checkpoint.load_model()
    calibration, held_out = prepared.inputs.tokens[:4], prepared.inputs.tokens[4:9]
    at = {"first": [WRITER], "all": [*range(WRITER, REMOVER)], "2,3": [2, 3]}[layers]
    assert [(t["layer"], t["dim"]) for t in result["targets"]] == [(l, DIM) for l in at]
    means = {
        l: np.mean([oracle.run(model, row)["post"][l][0, DIM] for row in calibration])
        for l in at
    }
    for target in result["targets"]:
        assert target.keys() == Target.__annotations__.keys() and target["strict"]
        (mean,) = target["means"]
        assert (mean["kind"], mean["count"]) == ("first", 4)
        assert mean["mean"] == pytest.approx(means[target["layer"]], rel=1e-4)
        assert target["activations"] == target["control_activations"] == 5
    for name, factor in (("zero", 0.0), ("mean", 1.0), ("fraction_0.25", 0.25),
                         ("fraction_2", 2.0), ("original", None)):
        rows = []
        for row in held_out:
            edits = () if factor is None else [(l, 0, DIM, factor * means[l]) for l in at]
            rows.append(oracle.losses(oracle.run(model, row, edits)["logits"], row))
        loss = np.mean(rows)
        assert result["loss"][name]["mean"] == pytest.approx(loss, abs=2e-4)
        std = np.std(np.mean(rows, axis=1))
        assert result["loss"][name]["std"] == pytest.approx(std, abs=2e-4)
        assert result["perplexity"][name] == pytest.approx(np.exp(loss), rel=3e-4)
    data = result["data"]
    assert (data["window"], data["stride"], data["scored_tokens"]) == (T, T - 1, 5 * (T - 1))
    assert (data["calibration_sequences"], data["sequences"]) == (4, 5)
    # The trajectory: what was at the place, and what is there once it is zeroed.
    (trajectory,) = result["after_zero"]["trajectories"]
    edits = [(l, 0, DIM, 0.0) for l in at]
    for name, changes in (("original", ()), ("zero", edits)):
        runs = [oracle.run(model, row, changes)["post"] for row in held_out]
        expected = [np.mean([run[l][0, DIM] for run in runs]) for l in range(CONFIG.depth)]
        np.testing.assert_allclose(trajectory[name], expected, rtol=1e-3, atol=2e-3)
    json.dumps(result)


def test_the_control_zeroes_as_many_ordinary_activations(folders):
    result, prepared = intervene(folders["needed"])
    (target,) = result["targets"]
    control = target["control_dim"]
    assert control != DIM
    model, held_out = prepared.checkpoint.load_model(), prepared.inputs.tokens[4:9]
    rows = []
    for s, row in enumerate(held_out):
        post = oracle.run(model, row)["post"][WRITER]
        low, high = np.quantile(np.abs(post), [0.5, 0.9])
        size = np.abs(post[:, control])
        free = np.nonzero((size >= low) & (size <= high))[0]
        place = np.random.default_rng([0, s, 0]).choice(free, 1, replace=False)
        edits = [(WRITER, int(t), control, 0.0) for t in place]
        rows.append(oracle.losses(oracle.run(model, row, edits)["logits"], row))
    assert result["loss"]["control_zero"]["mean"] == pytest.approx(np.mean(rows), abs=2e-4)
    other, _ = intervene(folders["needed"], batch_size=3)
    for name, value in result["perplexity"].items():
        assert other["perplexity"][name] == pytest.approx(value, rel=1e-5)


def test_needed_or_rebuilt(folders):
    result, _ = intervene(folders["needed"])
    after = result["after_zero"]
    assert after.keys() == Rebuilt.__annotations__.keys()
    assert (after["verdict"], after["dims"]) == ("needed", [])
    assert result["perplexity"]["zero"] > 1.01 * result["perplexity"]["original"]
    again, _ = intervene(folders["rewritten"])
    assert again["after_zero"]["verdict"] == "rebuilt" and again["after_zero"]["dims"] == [DIM]
    (record,) = [m for m in again["after_zero"]["massive"] if m["dim"] == DIM]
    assert record["first_layer"] == WRITER + 1
    assert record["written_by"]["layer"] == WRITER + 1
    # Set to zero wherever it is massive, it cannot come back.
    everywhere, _ = intervene(folders["rewritten"], layers="all")
    assert everywhere["after_zero"]["dims"] == []


def test_none_found_is_a_result(folders):
    result, prepared = intervene(folders["quiet"])
    assert result["targets"] == [] and result["massive"] == []
    assert result["after_zero"] is None and result["perplexity"].keys() == {"original"}
    model = prepared.checkpoint.load_model()
    rows = [oracle.losses(oracle.run(model, row)["logits"], row)
            for row in prepared.inputs.tokens[4:9]]
    assert result["loss"]["original"]["mean"] == pytest.approx(np.mean(rows), abs=2e-4)


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"layers": "6"}, ConfigError, "at most 5"),
        ({"layers": "0"}, ConfigError, f"dim {DIM}: {WRITER} to {REMOVER - 1}"),
        ({"text": "text:abcdefghi"}, DataError, "fills 1 sequence of 10 tokens"),
        ({"text": "text:abc"}, DataError, "one held out"),
    ],
)
def test_what_cannot_be_done_is_said(folders, changes, error, says):
    with pytest.raises(error, match=says):
        intervene(folders["needed"], **changes)


@pytest.mark.parametrize("layers", ["last", "1,", "-1", "1.5", ""])
def test_layers_must_be_numbers(layers):
    with pytest.raises(ConfigError, match="expected: first, all, or numbers"):
        settings(layers=layers)


def test_a_short_text_is_split_in_proportion():
    class Few:
        inputs = Inputs(np.zeros((6, T), np.int32), str)

    config = settings(calibration_sequences=10, sequences=20)
    calibration, held_out = split(Few, config, config.calibration_sequences)
    assert (len(calibration), len(held_out)) == (2, 4)
    Few.inputs = Few.inputs[:2]
    assert [len(x) for x in split(Few, config, config.calibration_sequences)] == [1, 1]


def record(dim, strict, first, last):
    return dict(dim=dim, strict=strict, first_layer=first, last_layer=last)


def test_targets_are_strict_where_there_are_any():
    records = [record(3, True, 1, 3), record(7, True, 2, 2), record(9, False, 0, 5)]
    choose = lambda layers, r=records: [(t.layer, t.dim) for t in choose_targets(r, layers, 6)]
    assert choose("first") == [(1, 3), (2, 7)]
    assert choose("all") == [(1, 3), (2, 3), (2, 7), (3, 3)]
    assert choose("2") == [(2, 3), (2, 7)]
    assert choose("first", records[2:]) == [(0, 9)]
    assert choose("all", []) == []
    assert choose_targets(records[2:], "first", 6) == [TargetPlace(0, 9, False)]


def test_controls_are_ordinary_and_reproducible():
    dims = choose_control_dims(4, 16, [3, 14], seed=1)
    assert not {3, 14} & set(dims.tolist())
    assert (dims == choose_control_dims(4, 16, [3, 14], seed=1)).all()
    rng = np.random.default_rng(0)
    magnitude = rng.uniform(0, 2, (2, 3, 40)).astype(np.float32)
    tokens = np.zeros((2, 3, 40), bool)
    tokens[0, 0, :3] = tokens[1, 2, 5:7] = True
    low, high = np.full((2, 3), 0.5), np.full((2, 3), 1.0)
    chosen = control_places(tokens, magnitude, low, high, 7, seed=0)
    assert (chosen.sum(-1) == tokens.sum(-1)).all()
    assert ((magnitude[chosen] >= 0.5) & (magnitude[chosen] <= 1.0)).all()
    # Where the control dimension has none of them, what comes nearest is taken.
    few = control_places(tokens, magnitude, low + 1.95, high + 1.0, 7, seed=0)
    assert (few.sum(-1) == tokens.sum(-1)).all()
    assert magnitude[0, 0][few[0, 0]].min() >= np.sort(magnitude[0, 0])[-3]
    # The choice is the sequence's own, whatever batch it comes in.
    alone = control_places(tokens[:, 2:], magnitude[:, 2:], low[:, 2:], high[:, 2:], 9, seed=0)
    np.testing.assert_array_equal(alone, chosen[:, 2:])
    assert BOS == 1
