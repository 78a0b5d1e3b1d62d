"""`massact intervene`, `explain` and `fold` as a person runs them, on a planted model."""

import json

import in_numpy
import numpy as np
import pytest
from headless_page import check_page
from json_schema import read, violations
from model_folders import folder_of
from planted import BOS, DIM, Plant, llama_written_and_removed
from planted import LLAMA_CONFIG as CONFIG

import jax_massact as ma
from jax_massact.cli import main
from jax_massact.studies.explain.result import ExplainResult
from jax_massact.studies.fold.result import FoldResult
from jax_massact.studies.interventions_result import InterveneResult

pytestmark = pytest.mark.usefixtures("undrawn")
TEXT = "--config.text=text:" + "abcdefgh ijklmnop qrstuvwx yz.,;:! " * 20
SIZE = [TEXT, "--config.sequence_length=12", "--config.sequences=3"]
PLACE = ["--config.location_sequences=4", "--config.location_length=10"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    plants = {"loud": llama_written_and_removed().louder(), "quiet": Plant(CONFIG)}
    return {name: folder_of(plant.build(), root / name) for name, plant in plants.items()}


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run(*argv):
        code = main([*map(str, argv)])
        out, err = capsys.readouterr()
        return code, " ".join(out.split()), " ".join(err.split())

    return run


def test_intervene(run, folders, tmp_path, chromium):
    code, out, err = run("intervene", folders["loud"], *SIZE, "--workdir=out",
                         "--config.bos=true", "--config.calibration_sequences=2")
    assert code == 0
    result = read(tmp_path / "out" / "intervene.json")
    assert violations(result, InterveneResult) == []
    assert [t["dim"] for t in result["targets"]] == [DIM]
    assert "ran 5 of 5 sequences" in err and "with BOS" in err
    assert err.endswith(f"wrote out: intervene.json, 4 figures page: out/intervene.html next: "
                        f"massact explain {folders['loud']} --workdir=out")
    assert f"dim {DIM}" in out and "set to the mean" in out
    check_page(chromium, tmp_path / "out" / "intervene.html", charts=2)


def test_explain(run, folders, tmp_path, chromium):
    code, out, err = run("explain", folders["loud"], *SIZE, *PLACE, "--workdir=out",
                         "--config.bos=true", "--config.sink_length=8")
    assert code == 0
    result = read(tmp_path / "out" / "explain.json")
    assert violations(result, ExplainResult) == []
    assert result["massive_tokens"] == 1 and len(result["layers"]) == CONFIG.depth
    assert result["sink_length"] == 8
    assert [p["bos"] for p in result["locations"]] == [False, True]
    # The planted token is BOS: without it there is nothing.
    assert [[m["dim"] for m in p["massive"] if m["strict"]] for p in result["locations"]] == [
        [], [DIM]
    ]
    assert "ran 14 of 14 sequences" in err and "8 figures" in err and "sink rate" in out.lower()
    check_page(chromium, tmp_path / "out" / "explain.html", charts=9)


def test_fold_saves_a_model_that_other_commands_read(run, folders, tmp_path, chromium):
    code, out, err = run("fold", folders["loud"], *SIZE, "--workdir=out",
                         "--config.medium.sequences=1", "--config.medium.low=3")
    assert code == 0
    result = read(tmp_path / "out" / "fold.json")
    assert violations(result, FoldResult) == []
    assert result["massive_sequences_after"] == result["massive_first_after"] == 0
    assert result["loads_in"]["programs"] == ["jax_massact"] and "read by jax_massact alone" in out
    assert "attention=kv_bias" in result["loads_in"]["lost"]
    assert result["outliers"]["stream_difference"] < 1e-5 and result["medium"]["held_out"] == 1
    assert result["unchanged"] and result["logit_difference"] < 1e-5 and "unchanged" in out
    assert [m["dim"] for m in result["massive_before"]] == [DIM] and result["massive_after"] == []
    assert result["largest_after"] < 0.1 * result["largest_before"]
    check_page(chromium, tmp_path / "out" / "fold.html", charts=0)

    folded = tmp_path / "out" / result["saved_to"]
    original, _ = ma.load(folders["loud"])
    again, tokenizer = ma.load(folded)
    tokens = tokenizer.encode("abc def", bos=False)[None]
    logits = in_numpy.jit(lambda model, tokens: model(tokens)[0])
    whole = logits(original, np.concatenate([[[BOS]], tokens], axis=1))[:, 1:]
    limit = 1e-5 * np.abs(whole).max()
    np.testing.assert_allclose(logits(again, tokens), whole, rtol=0, atol=limit)

    code, out, err = run("explain", folded, *SIZE, *PLACE, "--workdir=explain")
    assert code == 0 and "without BOS" in err
    explained = read(tmp_path / "explain" / "explain.json")
    assert explained["massive"] == [] and explained["data"]["bos"] is False
    assert explained["layers"][3]["attention"]["extra"][0] > 0
    code, _, err = run("fold", folded, *SIZE)
    assert code == 2 and "attention is 'kv_bias'; expected: 'standard'" in err


def test_none_found_is_a_result(run, folders, tmp_path):
    """Of the other commands `test_run_folder.py` shows it."""
    code, out, _ = run("fold", folders["quiet"], *SIZE, "--workdir=out")
    assert code == 0 and "No massive activations" in out
    result = json.loads((tmp_path / "out" / "fold.json").read_text())
    assert result["massive_before"] == [] and result["massive_after"] == []


@pytest.mark.parametrize(("arguments", "says"), [
    (["intervene", "--config.layers=99"], "layers is 99; expected: a whole number of at least 0"),
    (["intervene", "--config.layers=x"], "expected: first, all, or numbers"),
    (["intervene", "--config.text=text:too short"], "expected: one for calibration and one held"),
    (["intervene", "--config.fractions=half"], "fractions"),
    (["explain", "--config.sink_epsilon=2"], "expected: a number of at least 0 and at most 1"),
    (["explain", "--config.sequence_length=1000"], "at most 64"),
    (["explain", "--config.location_length=999999999"], "location_length"),
    (["fold", "--config.bos=true"], "bos is 'true'; expected for folding: auto or false"),
    (["fold", "--config.first_token=abc"], "is 3 tokens; expected: a text that is one"),
    (["fold", "--config.first_token=64000"], "first_token is 64000; expected"),
    (["fold", "--config.sequence_length=64"], "at most 63"),
])
def test_what_cannot_be_done_is_said_in_one_line(run, folders, arguments, says):
    command, *rest = arguments
    code, out, err = run(command, folders["loud"], *SIZE, *rest)
    assert code == 2 and out == "" and "Traceback" not in err
    assert says in err, err


def test_help_lists_the_settings_of_each_command(capsys):
    for command, name in (("intervene", "fractions"), ("explain", "sink_epsilon"),
                          ("fold", "first_token"), ("probe", "top_k")):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        out = capsys.readouterr().out
        assert f"  {name} " in out and "sequence_length" in out and f"{name}:" in out
