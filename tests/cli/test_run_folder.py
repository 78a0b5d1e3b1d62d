"""The folder of a training run is a model like any other to the commands that read one."""

import contextlib
import io
import json
import re

import numpy as np
import pytest
from json_schema import read

import jax_massact as ma
from jax_massact.cli import main

pytestmark = pytest.mark.usefixtures("undrawn")
CONFIG = '''
import ml_collections

def get_config():
    return ml_collections.ConfigDict({
        "model": {"depth": 2, "width": 16, "context_length": 24, "dtype": "float32",
                  "embed": {"vocab_size": 300},
                  "block": {"attention": {"variant": "kv_bias", "heads": 2, "kv_heads": 2,
                                          "head_dim": 8}, "mlp": {"hidden": 32}}},
        "optimizer": {"warmup": 1, "decay_end": 0, "lr": 1e-2},
        "watch": {"every": 0}, "checkpoint": {"every": 0},
        "steps": 3, "batch_size": 4, "sequence_length": 24, "unroll": False,
        "validation_batches": 1,
    })
'''
SIZE = ["--config.sequences=3", "--config.sequence_length=16"]
COMMANDS = {
    "probe": [],
    "intervene": ["--config.calibration_sequences=2"],
    "explain": ["--config.location_sequences=4"],
}


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    (root / "micro.py").write_text(CONFIG)
    words = np.random.default_rng(0).choice(["the", "river", "goes", "on", "slowly."], 4000)
    (root / "text.txt").write_text(" ".join(words))
    np.random.default_rng(0).integers(0, 300, 4000).astype(np.uint16).tofile(root / "ids.bin")

    def train(name, source, tokenizer):
        run = root / name
        source = str(root / source) if "." in source else source
        settings = {"source": source, "tokenizer": tokenizer}
        with contextlib.redirect_stderr(io.StringIO()) as err:
            assert main(["train", f"--config={root / 'micro.py'}", f"--workdir={run}",
                         *(f"--config.data.{key}={value}" for key, value in settings.items())]) == 0
        *_, wrote, following = err.getvalue().splitlines()
        assert following == f"next: massact probe {run}"
        place, _, names = wrote.removeprefix("wrote ").partition(": ")
        assert place == str(run) and {*names.split(", ")} == {
            path.name for path in run.iterdir() if path.name != "lock"
        }
        return run

    return train


@pytest.mark.parametrize(("name", "source", "tokenizer", "bos"), [
    ("text", "text.txt", "bpe:300", False),
    # Every row that it was trained on begins with the same token.
    ("task", "bigram-backcopy", "bytes", True),
])
def test_a_run_is_read_like_any_model(train, tmp_path, capsys, name, source, tokenizer, bos):
    run = train(name, source, tokenizer)
    summary = json.loads((run / "summary.json").read_text())
    # The rows and their first token are chosen in one place for all commands.
    commands = ("probe",) if bos else tuple(COMMANDS)
    for command in commands:
        capsys.readouterr()
        more = COMMANDS[command]
        assert main([command, str(run), *SIZE, *more, f"--workdir={tmp_path}"]) == 0
        captured = capsys.readouterr()
        assert name in captured.out and "Traceback" not in captured.err
        assert "No massive activations" in " ".join(captured.out.split())
        result = read(tmp_path / f"{command}.json")
        assert result["model"]["name"] == name
        assert result["model"]["parameters"] == summary["parameters"]
        assert result["data"]["bos"] is bos and result["data"]["sequences"] == 3
        assert result["massive"] == []
    model, tokenizer = ma.load(run)
    assert model.config.block.attention.variant == "kv_bias" and tokenizer.adds_bos is bos


def test_a_run_on_ids_needs_no_tokenizer_but_for_another_text(train, tmp_path, capsys):
    run = train("ids", "ids.bin", "ids:300")
    assert main(["probe", str(run), "--config.sequences=2", f"--workdir={tmp_path}"]) == 0
    tops = [top["token"] for layer in read(tmp_path / "probe.json")["layers"]
            for top in layer["top"]]
    assert all(re.fullmatch(r"<id \d+>", token) for token in tops)
    for command in COMMANDS:
        capsys.readouterr()
        arguments = [*SIZE, "--config.text=help-3.11", f"--workdir={tmp_path}"]
        assert main([command, str(run), *arguments]) == 2
        said = capsys.readouterr().err
        assert "tokenizer.json" in said and str(run) in said and "Traceback" not in said


def test_sequences_longer_than_the_run_s(train, tmp_path, capsys):
    run = train("text", "text.txt", "bpe:300")
    command = ["probe", str(run), f"--workdir={tmp_path}"]
    assert main([*command, "--config.sequence_length=25"]) == 2
    assert "sequence_length is 25; expected for this model: at most 24" in capsys.readouterr().err
    assert main(command) == 0  # the default is as long as the run's context
    assert read(tmp_path / "probe.json")["data"]["sequence_length"] == 24


def test_a_folder_without_a_run(tmp_path, capsys):
    assert main(["probe", str(tmp_path), f"--workdir={tmp_path}"]) == 2
    assert "has no config.json" in capsys.readouterr().err
