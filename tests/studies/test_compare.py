"""`massact train` and `massact compare`, from the command line to the files."""

import dataclasses
import json
import math
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import in_numpy
import jax
import numpy as np
import pytest
from json_schema import violations
from page_reader import read_page
from planted import CONFIG as CONFIG_OF_PLANTED
from planted import DIM, WRITER, written_and_removed
from reports import drawn, written
from scipy import stats
from tiny_models import varied

import jax_massact as ma
from jax_massact.cli import main
from jax_massact.errors import UserError
from jax_massact.loading import open_checkpoint
from jax_massact.report.encode import to_json
from jax_massact.saving import save
from jax_massact.settings import from_mapping
from jax_massact.studies.changes import CHANGES
from jax_massact.studies.compare import figures, kept
from jax_massact.studies.compare.figures import intervention_chart
from jax_massact.studies.compare.interventions import intervene_run
from jax_massact.studies.compare.report import show
from jax_massact.studies.compare.rounding import KINDS
from jax_massact.studies.compare.run import (
    PER_LAYER,
    Comparison,
    _thinned,
    compare_runs,
)
from jax_massact.train.config import DataConfig, TrainConfig
from jax_massact.train.data import open_batches
from jax_massact.train.metrics import FILE, of_kind, read_rows

pytestmark = pytest.mark.usefixtures("undrawn")
CONFIG = '''
import ml_collections

def get_config(attention):
    if attention not in ("standard", "sink", "kv_bias"):
        raise ValueError(f"no attention {attention!r}")
    return ml_collections.ConfigDict({
        "model": {"depth": 1, "width": 8, "context_length": 16, "dtype": "float32",
                  "embed": {"vocab_size": 257},
                  "block": {"attention": {"variant": attention, "heads": 2, "kv_heads": 2,
                                          "head_dim": 4}, "mlp": {"hidden": 16}}},
        "optimizer": {"warmup": 1, "decay_end": 0, "lr": 1e-2},
        "data": {"source": "bigram-backcopy"},
        "watch": {"every": 2, "sequences": 2}, "checkpoint": {"every": 0},
        "steps": 4, "batch_size": 4, "sequence_length": 16, "unroll": False, "log_every": 1,
        "validation_batches": 3,
    })
'''


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    (folder / "micro.py").write_text(CONFIG)
    out = folder / "out"
    code = main(["compare", f"--config={folder / 'micro.py'}", f"--workdir={out}",
                 "--variants=standard,kv_bias", "--seeds=2", "--config.seed=5",
                 "--no-interventions"])
    assert code == 0
    return out, json.loads((out / "compare.json").read_text())


def test_the_runs_are_trained_and_grouped_by_variant(compared):
    out, result = compared
    assert [group["name"] for group in result["groups"]] == ["standard", "kv_bias"]
    for group in result["groups"]:
        assert [run["seed"] for run in group["runs"]] == [5, 6]
        folders = [str(out / group["name"] / f"seed-{seed}") for seed in (5, 6)]
        assert [run["folder"] for run in group["runs"]] == folders
        losses = [run["validation_loss"] for run in group["runs"]]
        np.testing.assert_allclose(group["mean"]["validation_loss"], np.mean(losses))
        np.testing.assert_allclose(group["std"]["validation_loss"], np.std(losses, ddof=1))
        for run in group["runs"]:
            assert run["curves"]["step"] == [0, 2, 4]
            for name in PER_LAYER:
                best = min if name == "value_drain" else max
                assert run["curves"][name][-1] == best(run["layers"][name])
    standard, kv_bias = (
        np.array([run["validation_losses"] for run in group["runs"]]) for group in result["groups"]
    )
    by_batch = kv_bias.mean(0) - standard.mean(0)
    assert result["groups"][0]["difference"] is None
    found = result["groups"][1]["difference"]
    test = stats.ttest_1samp(by_batch, 0)
    interval = test.confidence_interval(0.95)
    expected = (by_batch.mean(), by_batch.std(ddof=1) / 3**0.5, interval.low, interval.high)
    np.testing.assert_allclose([found[k] for k in ("mean", "error", "low", "high")], expected)
    by_seed = kv_bias.mean(1) - standard.mean(1)
    np.testing.assert_allclose([found["by_seed"][seed] for seed in ("5", "6")], by_seed)
    run = result["groups"][0]["runs"][0]
    rows = of_kind(read_rows(Path(run["folder"]) / FILE), "train")
    assert run["training"] == {
        key: [row[key] for row in rows] for key in ("step", "loss", "lr", "grad_norm")
    }
    assert run["versions"]["jax"] == jax.__version__ and run["device"]


def test_the_page_shows_every_run_and_the_paired_difference(compared):
    out, result = compared
    page = read_page((out / "compare.html").read_text())
    group = result["groups"][1]
    low, high = (group["difference"][key] for key in ("low", "high"))
    for text in (f"{low:+.4f} to {high:+.4f}", *(run["folder"] for run in group["runs"])):
        assert text in page.text
    steps = json.loads(page.blocks["chart-training-lr-data"])["data"][1]["x"]
    assert steps == [1, 2, 3, 4]


def test_long_runs_are_thinned_evenly():
    rows = [{"step": 10 * i, "loss": 1.0, "lr": 0.1} for i in range(1000)]
    thin = _thinned(rows)
    assert len(thin["step"]) == 334 and thin["step"][:3] == [0, 30, 60]
    assert thin["grad_norm"] == [None] * 334


def test_figures_and_table(compared):
    out, result = compared
    names = {f"{name}.{kind}" for name in ("validation_loss", "training", "layers", "emergence",
             "order") for kind in ("png", "pdf")}
    assert {path.name for path in (out / "figures").iterdir()} == names
    text = written(show, result, encoding="ascii")
    assert text.isascii() and "standard" in text and "kv_bias" in text
    mean = result["groups"][1]["mean"]["validation_loss"]
    assert f"{mean:.4f} +- " in text and "sink rate" in text
    assert "intervene" not in text


def test_finished_runs_are_read_and_intervened_on_and_not_trained_again(
    compared, tmp_path, capsys
):
    out, result = compared
    runs = [out / "kv_bias" / "seed-6", out / "standard" / "seed-5"]
    assert main(["compare", *map(str, runs), f"--workdir={tmp_path}"]) == 0
    again = json.loads((tmp_path / "compare.json").read_text())
    assert [group["name"] for group in again["groups"]] == ["kv_bias", "standard"]
    before = result["groups"][1]["runs"][1]
    assert before["interventions"] is None
    (run,) = again["groups"][0]["runs"]
    assert run | {"interventions": None, "rounded": None} == before
    assert run["interventions"]["targets"] == [] and run["rounded"]
    assert (tmp_path / "figures" / "interventions.png").exists()
    assert again["groups"][0]["std"]["top1"] is None
    # Rounded, too, on the same rows: in float their loss stays, and 8 bits add a little to it.
    for group in again["groups"]:
        (run,), change = group["runs"], group["rounding_change"]
        unchanged = run["interventions"]["loss"]["original"]["mean"]
        np.testing.assert_allclose(run["rounded"]["float"], unchanged, rtol=1e-5)
        for kind in KINDS:
            difference = run["rounded"][kind] - run["rounded"]["float"]
            assert change[kind] == [pytest.approx(difference, abs=1e-9)]
            assert 0 < abs(difference) < 0.1
    text = written(show, again)
    assert "W8A8, linear inputs" in text and "fp8, linear inputs" in text
    said = capsys.readouterr().out
    assert re.search(r"\nmassive +none +none", said) and "nothing to intervene on" in said
    assert "kv_bias" in said and "set to zero" not in said


@pytest.fixture(scope="module")
def planted(compared, tmp_path_factory):
    """A finished run in whose model somebody has put a massive activation."""
    run = tmp_path_factory.mktemp("planted") / "run"
    shutil.copytree(compared[0] / "standard" / "seed-5", run)
    shutil.rmtree(run / "model")
    config = varied(CONFIG_OF_PLANTED, vocab_size=257)
    model = written_and_removed(config=config).louder().build()
    save(model, run / "model")
    return run, model


def test_interventions_change_what_is_massive_in_the_rows_held_out(planted, compared):
    run, model = planted
    quiet = compared[0] / "kv_bias" / "seed-5"
    result = json.loads(to_json(compare_runs([quiet, run])))
    assert violations(result, Comparison) == []
    nothing, group = result["groups"]
    assert nothing["loss_change"] == dict.fromkeys(CHANGES, [None])
    assert nothing["runs"][0]["interventions"]["targets"] == []

    found = group["runs"][0]["interventions"]
    assert [(t["layer"], t["dim"]) for t in found["targets"]] == [(WRITER, DIM)]
    config = from_mapping(TrainConfig, json.loads((run / "config.json").read_text()))
    shown = open_batches(config).validation(0, 128)[:, :-1]
    rows = np.array(list(dict.fromkeys(map(tuple, shown))), np.int32)  # some of 16 tokens are alike
    calibration, held_out = np.split(rows, [found["data"]["calibration_sequences"]])
    assert len(held_out) == found["data"]["sequences"] >= 60
    first = np.arange(rows.shape[1]) == 0
    loss = lambda edits: float(np.log(ma.perplexity(model, held_out, edits=edits)))
    (mean,) = (m["mean"] for m in found["targets"][0]["means"])
    values = ma.residual_streams(model, calibration)[WRITER, :, 0, DIM]
    np.testing.assert_allclose(mean, np.mean(values), rtol=1e-5)
    for kind, value in (("zero", 0.0), ("mean", mean)):
        edits = ma.Edits.set_to(layer=WRITER, tokens=first, dim=DIM, value=value)
        expected = loss(edits) - loss(None)
        np.testing.assert_allclose(group["loss_change"][kind], [expected], rtol=1e-3, atol=2e-6)
    zero, to_mean, control = (group["loss_change"][kind][0] for kind in CHANGES)
    assert abs(zero) > 50 * max(abs(to_mean), abs(control))

    text = written(show, result, encoding="ascii", width=100)
    assert re.search(r"\nmassive +none +strict 1/1", text)
    assert re.search(rf"set to zero +- +{re.escape(f'{zero:+.4f}')}", text)
    (axes,) = drawn(intervention_chart(result)).axes
    heights = sorted(float(y) for line in axes.lines for y in line.get_ydata())
    original = nothing["runs"][0]["interventions"]["loss"]["original"]["mean"]
    losses = [found["loss"][kind]["mean"] for kind in ("original", *CHANGES)]
    np.testing.assert_allclose(heights, sorted([original, *losses]))
    assert [text.get_text() for text in axes.texts] == ["nothing\nmassive"]

    # In float the loss is that of the same rows unchanged; 8 bits add a little to a small model's.
    small = nothing["runs"][0]
    np.testing.assert_allclose(small["rounded"]["float"], original, rtol=1e-5)
    for kind in KINDS:
        (change,) = nothing["rounding_change"][kind]
        assert change == pytest.approx(small["rounded"][kind] - original, abs=1e-6)
        assert 0 < abs(change) < 0.1
    assert "W8A8, linear inputs" in text and "fp8, linear inputs" in text


def test_what_was_measured_is_read_again_until_the_run_or_its_model_is_another(
    planted, compared, tmp_path, monkeypatch
):
    times = []
    measure = lambda folder, config: times.append(folder) or intervene_run(folder, config)
    monkeypatch.setattr(kept, "intervene_run", measure)
    rounded = dict.fromkeys(("float", *KINDS), 2.5)
    monkeypatch.setattr(kept, "round_run", lambda folder, config: rounded)
    run = tmp_path / "run"
    shutil.copytree(planted[0], run)
    (run / kept.FILE).unlink(missing_ok=True)
    said = []
    first, again = (json.loads(to_json(compare_runs([run], report=said.append))) for _ in range(2))
    assert first == again and times == [run]
    assert said == [
        f"intervening on {run}", f"what was measured of {run} is read from its measured.json"
    ]
    for number, bad in enumerate(("{", _without(run / kept.FILE, "fp8")), start=2):
        (run / kept.FILE).write_text(bad)
        compare_runs([run])
        assert len(times) == number
    times.pop()
    (weights,) = (run / "model").glob("*.safetensors")
    os.utime(weights, (1, 1))  # written again, as the end of `massact train` does, it is the same
    compare_runs([run])
    weights.rename(tmp_path / "weights")
    weights.symlink_to(tmp_path / "nowhere")
    compare_runs([run])
    assert len(times) == 2
    shutil.rmtree(run / "model")
    shutil.copytree(compared[0] / "standard" / "seed-5" / "model", run / "model")
    other = to_json(compare_runs([run]))
    assert len(times) == 3 and other != to_json(first)
    shutil.rmtree(run / "model")
    (run / "model").mkdir()
    assert to_json(compare_runs([run])) == other
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"steps": 5}))
    found = compare_runs([run])
    assert found["notices"] == [f"{run} has no model: nothing is changed in it"]
    assert found["groups"][0]["runs"][0]["interventions"] is None and len(times) == 3


def _without(path, kind):
    """What was kept, but for one number, which JSON has none for."""
    found = json.loads(path.read_text())
    return json.dumps(found | {"rounded": found["rounded"] | {kind: None}})


def test_what_is_not_finite_is_not_kept(planted, tmp_path, monkeypatch):
    nothing = {"warnings": [], "targets": [], "massive": []}
    rounded = dict.fromkeys(("float", *KINDS), 2.5) | {"fp8": math.nan}
    monkeypatch.setattr(kept, "intervene_run", lambda *_: nothing)
    monkeypatch.setattr(kept, "round_run", lambda *_: rounded)
    run = tmp_path / "run"
    shutil.copytree(planted[0], run)
    (run / kept.FILE).unlink(missing_ok=True)
    compare_runs([run])
    assert not (run / kept.FILE).exists()


def test_losses_of_other_positions_do_not_compare(compared, tmp_path):
    plain, later = compared[0] / "standard" / "seed-5", tmp_path / "seed-5"
    shutil.copytree(plain, later)
    config = json.loads((later / "config.json").read_text())
    (later / "config.json").write_text(json.dumps(config | {"loss_from": 1}))
    result = compare_runs([plain, later], interventions=False)
    assert result["groups"][1]["difference"] is None
    assert result["notices"] == [
        f"{later} was not validated on the rows of {plain} (another choice of positions): their "
        "losses do not compare"
    ]


def test_groups_that_share_a_variant_are_called_by_their_folders(compared, tmp_path):
    out, _ = compared
    plain = [out / "standard" / f"seed-{seed}" for seed in (5, 6)]
    others = [tmp_path / "muon" / "seed-5", tmp_path / "long" / "seed-5"]
    for folder in others:
        shutil.copytree(plain[0], folder)
        config = json.loads((folder / "config.json").read_text())
        config["optimizer"]["name"] = "muon"
        config["steps"] += folder.parent.name == "long"
        (folder / "config.json").write_text(json.dumps(config))
    names = lambda folders: [
        group["name"] for group in compare_runs(folders, interventions=False)["groups"]
    ]
    assert names([*plain, *others]) == ["standard", "muon", "long"]
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "seed-5").symlink_to(others[0])
    linked = tmp_path / "linked" / "seed-5"
    assert names([*plain, linked, others[1]]) == ["standard", "linked", "long"]
    shutil.copytree(others[1], tmp_path / "muon" / "long")  # two groups in one folder
    both = [plain[0], others[0], tmp_path / "muon" / "long"]
    assert names(both) == list(map(str, both))
    shown = figures.names(compare_runs(both, interventions=False))
    assert shown == ["standard/seed-5", "muon/seed-5", "muon/long"]


def test_ids_without_a_tokenizer_are_intervened_on(planted, tmp_path):
    ids = np.random.default_rng(0).integers(0, 257, 10_000).astype(np.uint16)
    ids.tofile(tmp_path / "ids.bin")
    run = tmp_path / "run"
    shutil.copytree(planted[0], run)
    config = from_mapping(TrainConfig, json.loads((run / "config.json").read_text()))
    data = DataConfig(source=str(tmp_path / "ids.bin"), tokenizer="ids:257")
    with pytest.raises(UserError, match="it has changed since the run: training data"):
        intervene_run(run, dataclasses.replace(config, data=data))
    (run / "summary.json").unlink()  # as of a run that has not ended
    result = intervene_run(run, dataclasses.replace(config, data=data))
    assert [t["dim"] for t in result["targets"]] == [DIM]
    assert result["massive"][0]["tokens"][0]["token"].startswith("<id ")
    # A tenth is held out, 62 windows of 17 ids: fewer than asked for, and none is in both halves.
    assert result["data"]["sequences"] + result["data"]["calibration_sequences"] == 62


def test_data_that_is_gone(planted, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(planted[0], run)
    config = json.loads((run / "config.json").read_text())
    config["data"]["source"] = str(tmp_path / "gone.txt")
    (run / "config.json").write_text(json.dumps(config))
    assert main(["compare", str(run), f"--workdir={tmp_path / 'out'}"]) == 2
    assert not (tmp_path / 'out').exists()
    said = capsys.readouterr().err
    assert "its data is needed" in said and "gone.txt" in said and "--no-interventions" in said


def test_the_trained_model_is_one_that_the_other_commands_read(compared):
    out, _ = compared
    checkpoint = open_checkpoint(out / "kv_bias" / "seed-5" / "model")
    assert checkpoint.config.block.attention.variant == "kv_bias" and checkpoint.config.width == 8
    model = checkpoint.load_model("float32", None)
    logits = in_numpy.jit(lambda model: model(np.arange(10)[None])[0])(model)
    assert logits.shape == (1, 10, 257) and np.ptp(logits) > 1e-3


@pytest.mark.parametrize(("arguments", "said"), [
    (["compare", "--workdir=x"], "nothing to compare"),
    (["compare", "nowhere", "--workdir=x"], "nowhere has no config.json; expected: the --workdir"),
    (["compare", "a", "--workdir=x", "--config=micro.py"], "a is a run; expected together"),
    (["compare", "a", "--workdir=x", "--config.steps=3"], "--config.steps=3 needs --config=FILE"),
    (["compare", "--workdir=x", "--config=micro.py:sink"], "expected: FILE alone"),
    (["compare", "--workdir=x", "--config=micro.py", "--variants=sink,sink"], "different names"),
    (["compare", "--workdir=x", "--config=micro.py", "--variants=sonk"], "no attention 'sonk'"),
    (["compare", "--workdir=x", "--config=micro.py", "--seeds=0"], "--seeds is 0"),
    (["train", "--workdir=x", "--config=micro.py"], "get_config needs an argument"),
    (["train", "--workdir=x", "--config=micro.py:sink", "--config.step=3"], "mean --config.steps?"),
])
def test_what_is_refused(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "micro.py").write_text(CONFIG)
    assert main(arguments) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_run_that_is_not_finished(compared, tmp_path):
    out, _ = compared
    (tmp_path / "config.json").write_bytes(
        (out / "standard" / "seed-5" / "config.json").read_bytes()
    )
    with pytest.raises(UserError, match="has no summary.json"):
        compare_runs([tmp_path])


def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(tmp_path, capsys):
    (tmp_path / "micro.py").write_text(CONFIG)
    steps = 20_000
    command = ["train", f"--config={tmp_path / 'micro.py'}:kv_bias",
               f"--workdir={tmp_path / 'run'}", "--config.watch.every=0", f"--config.steps={steps}"]

    def stop():
        metrics = tmp_path / "run" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (metrics.exists() and metrics.stat().st_size):
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert main(command) == 75
    thread.join()
    assert "stopped at step" in capsys.readouterr().err
    (saved,) = (p for p in (tmp_path / "run" / "checkpoints").iterdir() if p.name.isdigit())
    stopped = int(saved.name)
    assert 0 < stopped < steps
    # The rates of the steps already made stay as they were.
    shorter = [f"--config.steps={stopped}", f"--config.optimizer.decay_end={steps}"]
    assert main([*command[:-1], *shorter]) == 0
    said = capsys.readouterr().err
    assert f"resumed from step {stopped:,}" in said and "validation loss" in said
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
