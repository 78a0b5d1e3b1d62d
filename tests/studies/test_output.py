"""The end of a run: files first, each by itself; whose results a folder holds; what is kept."""

import errno
import io
import json
import math
import os
import sys
import types

import pytest
from planted import LLAMA_CONFIG

from jax_massact.cli import main
from jax_massact.errors import ConfigError, UserError
from jax_massact.report.console import make_console
from jax_massact.studies.compare import run as compare
from jax_massact.studies.fold.settings import FoldConfig
from jax_massact.studies.output import Outcome, finish, folder_for, keep_former, made
from jax_massact.studies.records import remarks
from jax_massact.studies.settings import InterveneConfig

RESULT = {"model": {"name": "m"}, "data": {"sequences": 100}, "config": {"sequences": 100},
          "warnings": [], "notices": [], "number": 1.5}


@pytest.fixture
def study(monkeypatch):
    """A study that prints one number: `show` is all that its report has."""
    report = types.ModuleType("report")
    report.show = lambda result, console: console.print(f"[red]number {result['number']}")
    monkeypatch.setitem(sys.modules, "jax_massact.studies.single.report", report)
    return report


def end(folder, result=RESULT, **more):
    return finish("single", Outcome(result, **more), folder, make_console(stderr=True))


def test_a_study_of_one_number_needs_no_page_and_no_figures(study, tmp_path, capsys):
    assert end(tmp_path) == 0
    out, err = capsys.readouterr()
    # What comes from elsewhere is never markup.
    # Long paths are broken where a line ends.
    assert out == "[red]number 1.5\n" and "single.json" in err.replace("\n", "")
    assert json.loads((tmp_path / "single.json").read_text()) == RESULT
    assert [p.name for p in tmp_path.iterdir()] == ["single.json"]


def test_the_last_lines_say_what_was_written_and_what_follows(study, tmp_path, capsys):
    study.page = lambda result: "<p>"
    then = ["explain", "my model", "--step=3"]
    wrote = f"wrote {tmp_path}: single.json"
    page = f"page: {tmp_path / 'single.html'}"
    ends = lambda result, then=(): finish(
        "single", Outcome(result), tmp_path, make_console(stderr=True), then
    )
    assert ends(RESULT, then) == 0
    assert capsys.readouterr().err.splitlines() == [
        wrote, page, "next: massact explain 'my model' --step=3"
    ]
    ends(RESULT | {"saved_to": "model"})
    assert capsys.readouterr().err.splitlines() == [f"{wrote}, model", page]
    # Where something went wrong nothing follows.
    assert ends(RESULT | {"saved_to": "model", "warnings": ["NaN"]}, then) == 3
    assert capsys.readouterr().err.splitlines()[-2:] == [f"{wrote}, model", page]
    study.show = fails
    ends(RESULT | {"saved_to": "model"}, then)
    assert "next:" not in capsys.readouterr().err


def fails(*args, **kwargs):
    raise ZeroDivisionError("no such thing")


def test_nothing_is_lost_where_something_fails(study, tmp_path, capsys):
    study.page, study.charts = fails, fails
    study.show = fails
    saved = []
    assert end(tmp_path, save=lambda folder: saved.append(folder)) == 2
    err = " ".join(capsys.readouterr().err.split())
    assert json.loads((tmp_path / "single.json").read_text()) == RESULT and saved == [tmp_path]
    for part in ("single.html", "figures", "couldnotbeprinted"):
        assert part in err.replace(" ", "")
    assert err.count("ZeroDivisionError: no such thing") == 3 and "Traceback" not in err
    study.page = lambda result: "<p>"
    assert end(tmp_path, save=fails) == 2
    assert (tmp_path / "single.html").read_text() == "<p>"


class Broken(io.StringIO):
    """A stream of which the reader has gone, or whose disk is full."""

    def __init__(self, number):
        super().__init__()
        self.error = OSError(number, os.strerror(number))

    def write(self, text):
        raise self.error


@pytest.mark.parametrize(("number", "code"), [(errno.EPIPE, 0), (errno.ENOSPC, 2)])
def test_a_stream_that_ends_ends_no_run(study, tmp_path, capsys, monkeypatch, number, code):
    monkeypatch.setattr(sys, "stdout", Broken(number))
    assert end(tmp_path) == code
    assert (tmp_path / "single.json").exists()
    assert ("No space left" in capsys.readouterr().err) is (code == 2)
    monkeypatch.setattr(sys, "stderr", Broken(number))
    assert end(tmp_path) == code


def test_figures_do_not_depend_on_a_notebook_s_backend(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "MPLBACKEND" not in os.environ


def test_numbers_that_are_not_finite_have_a_code_of_their_own(study, tmp_path, capsys):
    assert end(tmp_path, RESULT | {"warnings": ["NaN after block 3"], "notices": ["large"]}) == 3
    err = capsys.readouterr().err
    assert "warning: NaN after block 3\n" in err and "note: large\n" in err
    assert (tmp_path / "single.json").exists()


def test_a_result_of_other_settings_is_kept(study, tmp_path, capsys):
    trial = RESULT | {"config": {"sequences": 2}, "number": 9.0}
    for result in (RESULT, RESULT | {"number": 2.0}, trial, RESULT):
        assert end(tmp_path, result) == 0
    numbers = {p.name: json.loads(p.read_text())["number"] for p in tmp_path.glob("*.json")}
    assert numbers == {"single-1.json": 2.0, "single-2.json": 9.0, "single.json": 1.5}
    err = " ".join(capsys.readouterr().err.split())
    assert "the former single.json, of other settings, is kept as single-1.json" in err
    assert keep_former(tmp_path / "none.json", RESULT) is None


def test_two_models_of_one_name_have_two_folders(study, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for parent in ("a", "b"):
        (tmp_path / parent / "tiny").mkdir(parents=True)

    def folder(model, workdir=None):
        with folder_for(workdir, model, make_console(stderr=True)) as found:
            return found

    assert str(folder("a/tiny")) == "massact_out/tiny"
    assert str(folder("b/tiny")) == "massact_out/tiny"  # nothing is in it yet
    end(folder("a/tiny"))
    capsys.readouterr()
    assert str(folder("b/tiny/")) == "massact_out/tiny-2"
    assert "massact_out/tiny holds results of another model" in capsys.readouterr().err
    assert str(folder(f"{tmp_path}/a/tiny")) == "massact_out/tiny"
    assert capsys.readouterr().err == ""
    with pytest.raises(UserError, match="massact_out/tiny holds results of .*a/tiny; expected"):
        folder("b/tiny", "massact_out/tiny")


def test_a_run_that_fails_leaves_no_empty_folder(tmp_path):
    console = make_console(stderr=True)
    held = tmp_path / "held"

    def fail(folder, kind, *files):
        with pytest.raises(kind), folder_for(str(folder), "model", console) as found:
            assert found == folder and (found / ".model").read_text() == "model"
            for name in files:
                (found / name).write_text("")
            raise kind()

    fail(tmp_path / "new" / "deeper", UserError)
    fail(tmp_path / "new", KeyboardInterrupt)
    assert [*tmp_path.iterdir()] == []
    held.mkdir()
    fail(held, UserError)  # was there, and stays
    assert held.is_dir() and [*held.iterdir()] == []
    fail(held / "a", UserError, "half.json")  # nothing is thrown away
    assert [path.name for path in (held / "a").iterdir()] == ["half.json"]
    with folder_for(str(held), "model", console):
        pass
    fail(held, UserError)  # the results of an earlier run keep their owner
    assert (held / ".model").read_text() == "model"
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file/a"), made(tmp_path / "file/a"):
        pass


def layer(number, largest, nonfinite=0):
    return {"layer": number, "max": largest, "nonfinite": nonfinite}


def test_what_stands_before_the_findings():
    assert remarks([layer(0, 65_504.0)], {"loss": 2.0}) == {"warnings": [], "notices": []}
    sizes = [3.0, 65_505.0, 1e5, 1.0]
    (notice,) = remarks([layer(i, size) for i, size in enumerate(sizes)])["notices"]
    assert "magnitude 100,000 after block 2" in notice and "float16" in notice
    found = remarks([layer(0, 1e5), layer(1, math.nan, 3)], {"loss": math.inf, "gap": math.nan})
    assert found["notices"] == []
    assert found["warnings"][0].startswith("3 activations NaN or infinite, first at layer 1:")
    assert "the loss and the gap" in found["warnings"][1]


def test_settings_that_a_model_cannot_have_are_refused_before_any_work():
    for config, said in (
        (InterveneConfig(layers="2,99"), "layers is 99; expected: .* at most 5"),
        (FoldConfig(first_token="64000"), "first_token is 64000; expected: .* at most 63"),
    ):
        with pytest.raises(ConfigError, match=said):
            config.check(LLAMA_CONFIG)
    InterveneConfig(layers="0,5").check(LLAMA_CONFIG)
    FoldConfig(first_token="63").check(LLAMA_CONFIG)
    with pytest.raises(ConfigError, match="attention is 'kv_bias'; expected: 'standard'"):
        FoldConfig().check(LLAMA_CONFIG.with_attention(variant="kv_bias"))


def run_record(folder, seed=0, losses=(3.0, 4.0), **validated_on):
    same = {"text": "a", "tokenizer": "b", "shape of the batches": "2 x 4 x 8"}
    return {"folder": folder, "seed": seed, "validation_losses": [*losses],
            "validated_on": same | validated_on}


def test_losses_of_other_rows_are_not_compared():
    first, same = [run_record("a")], [run_record("b", losses=(3.5, 4.0))]
    found = compare._difference(first, same)
    assert found is not None and (found["mean"], found["error"]) == pytest.approx((0.25, 0.25))
    for name in ("text", "tokenizer", "shape of the batches"):
        others = [run_record("b", **{name: "x"})]
        assert compare._difference(first, others) is None
        (said,) = compare._other_rows({"standard": first, "sink": others})
        assert said.startswith("b was not validated on the rows of a") and f"another {name}" in said
    assert compare._difference(first, [run_record("b", losses=(math.nan, 4.0))]) is None
    assert [*compare._other_rows({"standard": first, "sink": same})] == []


def test_one_folder_is_not_two_runs(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UserError, match="link is the folder .*; expected: a folder for each run"):
        compare.compare_runs([tmp_path, tmp_path / "link"])
    with pytest.raises(UserError, match="is given twice"):
        compare.compare_runs([tmp_path, tmp_path])
    pair = {"standard": [run_record("a", 1), run_record("b", 1)], "sink": [run_record("c", 1)]}
    assert [*compare._one_seed(pair)] == ["standard: several runs have one seed (1, 1)"]
