"""The model of a training run is studied on what the run held out."""

import dataclasses
import json
import re

import numpy as np
import pytest
from planted import CONFIG as PLANTED
from planted import DIM, written_and_removed
from tiny_models import varied

import jax_massact as ma
from jax_massact.cli import main
from jax_massact.saving import save
from jax_massact.studies.compare.interventions import intervene_run
from jax_massact.studies.compare.rounding import round_run
from jax_massact.studies.frame import prepare
from jax_massact.studies.held_out import held_out, run_config
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.medium import MediumConfig, measure_medium
from jax_massact.studies.passes import InMemory
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.train.config import DataConfig, TrainConfig, to_json
from jax_massact.train.data import open_batches

pytestmark = pytest.mark.usefixtures("undrawn")
T = 16
WORDS = "A quick brown fox jumps over the lazy dog, and then it sleeps for {} hours.\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run on a text, each row of which begins with the same token."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    (folder / "checkpoints").mkdir(parents=True)
    text = folder.parent / "text.txt"
    text.write_text("".join(WORDS.format(n) for n in range(200)))
    config = TrainConfig(
        model=varied(PLANTED, vocab_size=64, context_length=32), batch_size=8, sequence_length=T,
        data=DataConfig(source=str(text), tokenizer="chars", same_first_token=True),
    )
    data = open_batches(config)
    model = written_and_removed(config=config.model).louder().build()
    save(model, folder / "model", tokenizer=data.tokenizer)
    (folder / "config.json").write_text(to_json(config))
    (folder / "summary.json").write_text(json.dumps({"digests": dict(data.digests)}))
    return folder, config


def study(command, folder, out, *arguments):
    code = main([command, str(folder), f"--workdir={out}", *(f"--config.{a}" for a in arguments)])
    return code, (json.loads((out / f"{command}.json").read_text()) if code == 0 else None)


def test_rows_are_those_of_the_runs_own_validation(run, tmp_path, capsys):
    folder, config = run
    code, found = study("probe", folder, tmp_path, "sequences=5")
    assert code == 0
    data = found["data"]
    assert (data["sequences"], data["sequence_length"], data["bos"]) == (5, T, True)
    assert data["source"].startswith("validation rows of ") and "text.txt" in data["source"]
    said = capsys.readouterr().err
    assert f"5 x {T} tokens of validation rows of" in said
    assert re.search(r"each beginning with '\S+', as in training", said)
    rows = open_batches(config).validation(0, 5)[:, :-1]
    assert len(np.unique(rows, axis=0)) == 5
    (place,) = {(t["kind"], t["token"]) for m in found["massive"] if m["dim"] == DIM
                for t in m["tokens"]}
    assert place[0] == "first"


def test_every_study_takes_them(run, tmp_path, capsys):
    folder, _ = run
    code, found = study("explain", folder, tmp_path / "e", "sequences=3", "location_length=8")
    assert code == 0 and [(x["bos"], x["sequences"], x["sequence_length"])
                          for x in found["locations"]] == [(True, 3, 8)]
    # Of rows that begin with the same token, folding takes it off, and puts it into k', v'.
    (tmp_path / "f" / "model").mkdir(parents=True)
    scored = changed(run, tmp_path / "run", loss_from=2)
    code, found = study("fold", scored, tmp_path / "f", "sequences=3", "first_token=1",
                        "save=false")
    assert code == 0 and found["unchanged"] and found["data"]["sequence_length"] == T - 1
    assert found["saved_to"] is None
    rows = open_batches(run[1]).validation(0, 3)[:, :-1]
    model, _ = ma.load(str(run[0] / "model"), dtype="float32")
    whole = np.concatenate([np.ones((3, 1), rows.dtype), rows[:, 1:]], 1)
    loss = ma.token_losses(model, whole)[:, 2:].mean()
    np.testing.assert_allclose(found["perplexity_original"], np.exp(loss), rtol=1e-4)
    assert f"the model in {tmp_path / 'f' / 'model'} is of an earlier fold" in (
        capsys.readouterr().err)


def test_another_text_is_taken_where_one_is_named(run):
    folder, _ = run
    prepared = prepare(str(folder), ProbeConfig(text="text:a quick fox", sequence_length=8))
    assert "validation" not in prepared.text.description


def test_rows_longer_than_the_default_are_cut_to_it(run, monkeypatch):
    monkeypatch.setattr("jax_massact.studies.frame.DEFAULT_LENGTH", 8)
    prepared = prepare(str(run[0]), ProbeConfig(sequences=2, sequence_length=8))
    assert prepared.inputs.tokens.shape == (2, 8)


def test_held_out_data_that_ends_is_not_shown_twice(run, tmp_path, capsys):
    folder, _ = run
    code, found = study("probe", folder, tmp_path, "sequences=200", "batch_size=8")
    assert code == 0 and 0 < found["data"]["sequences"] < 100
    held = found["data"]["sequences"]
    assert f"the text holds {held} of the 200 sequences" in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "said"), [
    (["sequence_length=17"], "sequence_length is 17; expected: at most 16"),
    (["sequence_length=16", "bos=false"], "expected: at most 15"),
])
def test_what_the_rows_cannot_give(run, tmp_path, capsys, arguments, said):
    assert study("probe", run[0], tmp_path, *arguments)[0] == 2
    found = capsys.readouterr().err
    assert said in found and "--config.text=help-3.11" in found


def changed(folder, out, loss_from=0, **data):
    """A copy of a run's settings and model, with other data."""
    (out / "checkpoints").mkdir(parents=True)
    (out / "model").symlink_to(folder[0] / "model")
    data = dataclasses.replace(folder[1].data, **data)
    config = dataclasses.replace(folder[1], data=data, loss_from=loss_from)
    (out / "config.json").write_text(to_json(config))
    (out / "summary.json").write_text((folder[0] / "summary.json").read_text())
    return out


def test_data_that_is_gone_or_has_changed(run, tmp_path, capsys):
    other = tmp_path / "other.txt"
    gone = changed(run, tmp_path / "gone", source=str(other))
    assert study("probe", gone, tmp_path / "a")[0] == 2
    assert "other.txt" in capsys.readouterr().err
    other.write_text("".join(WORDS.format(n) for n in range(1, 201)))
    assert study("probe", gone, tmp_path / "b")[0] == 2
    assert "has changed since the run: training data, validation data" in capsys.readouterr().err


def test_true_bos_of_a_run_without_a_first_token(run, tmp_path, capsys):
    without = changed(run, tmp_path / "run", same_first_token=False)
    assert study("probe", without, tmp_path / "a", "bos=true")[0] == 2
    assert "trained without a first token" in capsys.readouterr().err


def test_what_was_not_trained_on_is_not_scored(run, tmp_path):
    """Of rows whose loss counts from position 2 on, whatever measures them."""
    folder = changed(run, tmp_path / "run", loss_from=2)
    model, _ = ma.load(str(run[0] / "model"), dtype="float32")
    rows = open_batches(run[1]).validation(0, 6)[:, :-1]
    expected = lambda rows, start: float(np.exp(ma.token_losses(model, rows)[:, start:].mean()))

    config = run_config(folder)
    found = intervene_run(folder, config)
    held = found["data"]["sequences"]
    assert found["data"]["scored_tokens"] == held * (T - 1 - 2)
    assert "predictions scored from position 2 on" in found["data"]["source"]
    all_rows = held_out(folder, config, 128).tokens
    loss = found["loss"]["original"]["mean"]
    np.testing.assert_allclose(np.exp(loss), expected(all_rows[-held:], 2), rtol=1e-4)
    assert abs(np.exp(loss) / expected(all_rows[-held:], 0) - 1) > 1e-3
    np.testing.assert_allclose(round_run(folder, config)["float"], loss, rtol=1e-5)

    code, found = study(
        "quantize", folder, tmp_path / "q", "sequences=3", "calibration_sequences=3",
        "static_sequences=3", "first_token=1", "variants=original,folded",
        "rows=linear:int8:tensor", "sensitivity=",
    )
    assert code == 0 and found["data"]["scored_tokens"] == 3 * (T - 1 - 2)
    exact = {row["variant"]: row["perplexity"] for row in found["rows"] if row["format"] == "float"}
    np.testing.assert_allclose(exact["original"], expected(rows[3:], 2), rtol=1e-4)
    # The token that is taken off, and the one after it, predict nothing that is scored.
    np.testing.assert_allclose(exact["folded"], exact["original"], rtol=1e-3)

    inputs = prepare(str(folder), ProbeConfig(sequences=3)).inputs
    found = measure_medium(InMemory(model), inputs, MediumConfig(sequences=2), batch_size=3)
    np.testing.assert_allclose(
        found["perplexity"]["original"], expected(rows[1:3], 2), rtol=1e-4
    )


@pytest.mark.parametrize(("start", "before", "after"), [(0, 1, 0), (1, 2, 0), (3, 4, 2)])
def test_the_same_tokens_are_scored_with_a_token_in_front_and_without_the_first(
    start, before, after
):
    inputs = Inputs(np.arange(12).reshape(2, 6), lambda ids: list(map(str, ids)), scored_from=start)
    # In the place of losses the tokens that are predicted.
    shown = lambda inputs: inputs.scored(inputs.tokens[:, 1:]).tolist()
    behind, rest = inputs.behind(99), inputs.without_first()
    assert (behind.scored_from, rest.scored_from) == (before, after)
    assert shown(behind) == shown(inputs) and behind.tokens[:, 0].tolist() == [99, 99]
    # The second token is predicted by the first, which is gone.
    assert shown(rest) == ([row[1:] for row in shown(inputs)] if start == 0 else shown(inputs))


@pytest.mark.parametrize(("loss_from", "said"), [(0, None), (1, None), (2, 1), (3, 2)])
def test_rows_without_the_first_token_say_from_where_they_are_scored(
    run, tmp_path, loss_from, said
):
    folder = changed(run, tmp_path / "run", loss_from=loss_from)
    prepared = prepare(str(folder), ProbeConfig(sequences=2, bos="false"))
    assert prepared.inputs.scored_from == (said or 0)
    _, scored, found = prepared.text.description.partition(", predictions scored from position ")
    assert (found if said else scored) == (f"{said} on" if said else "")


@pytest.mark.parametrize(("command", "length", "arguments"), [
    ("intervene", 4, ()),
    ("quantize", 4, ()),
    ("probe", 4, ("medium.sequences=1", "sequences=3")),
    ("fold", 3, ("first_token=1", "save=false")),  # a token is taken off, and one position with it
])
def test_sequences_of_which_nothing_is_scored(run, tmp_path, capsys, command, length, arguments):
    folder = changed(run, tmp_path / "run", loss_from=3)
    given = (f"sequence_length={length}", *arguments)
    assert study(command, folder, tmp_path / "out", *given) == (2, None)
    assert (
        f"no prediction is scored in a sequence of {length} tokens: the loss counts from position "
        f"{length - 1} on (loss_from); expected: at least {length + 1} tokens"
    ) in capsys.readouterr().err
