"""The checkpoints of a training run, read as models by `load` and by the commands."""

import dataclasses
import itertools
import json
import shutil

import jax
import numpy as np
import pytest
from train_runs import MICRO

from jax_massact.cli import main
from jax_massact.data.stream import open_stream
from jax_massact.errors import WeightsError
from jax_massact.loading import load
from jax_massact.nn.transformer import parameters
from jax_massact.train.config import CheckpointConfig, MeshConfig
from jax_massact.train.loop import train
from jax_massact.train.step import make_mesh

RUN = dataclasses.replace(MICRO, checkpoint=CheckpointConfig(every=5, keep=5))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 20 steps, and the parameters that it had at step 5."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    text = folder.parent / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog, and sleeps.\n" * 40)
    data = open_stream(str(text), tokenizer="chars", seed=0, batch_size=RUN.batch_size,
                       sequence_length=RUN.sequence_length)
    calls = itertools.count(1)
    early = train(RUN, data, folder, stop=lambda: next(calls) == 5)
    early = jax.device_get(early.state.params)
    assert (folder / "model" / "config.json").exists()
    # While it trains on, the model that it left when it was stopped is not taken for its state.
    left = set()
    train(RUN, data, folder, on_row=lambda row: left.add((folder / "model").exists()))
    assert left == {False}
    return folder, early, text


def values(source, **options):
    return parameters(load(source, **options)[0])


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in expected.items():
        np.testing.assert_array_equal(found[name], x, err_msg=name)


def test_a_step_is_the_model_of_that_step(run):
    folder, early, _ = run
    same(values(folder, step=5), early)
    assert (values(folder, step=10)["embed"] != early["embed"]).any()
    same(values(folder, step=20), values(folder))
    same(values(folder), values(folder / "model"))


def test_the_dtype_and_the_mesh_are_those_asked_for(run):
    folder, early, _ = run
    half = values(folder, step=5, dtype="bfloat16")
    same(half, {name: x.astype("bfloat16") for name, x in early.items()})
    mesh = make_mesh(MeshConfig(fsdp=2))
    spread = values(folder, step=5, mesh=mesh)
    same(spread, early)
    assert spread["embed"].addressable_shards[0].data.size * 2 == early["embed"].size


def test_the_tokenizer_is_that_of_the_data(run):
    folder, _, text = run
    _, tokenizer = load(folder, step=5)
    ids = tokenizer.encode("lazy dog", bos=False)
    assert [*map(str, tokenizer.token_strings(ids))] == [*"lazy dog"]


def test_a_run_that_was_killed_is_read_at_its_newest_checkpoint(run, tmp_path):
    folder, _, _ = run
    killed = tmp_path / "killed"
    shutil.copytree(folder, killed)
    shutil.rmtree(killed / "model")
    shutil.rmtree(killed / "checkpoints" / "20")
    same(values(killed), values(folder, step=15))


def test_what_is_not_there_is_refused(run, tmp_path):
    folder, _, _ = run
    with pytest.raises(WeightsError, match="no checkpoint of step 7; expected: one of 5, 10, 15"):
        load(folder, step=7)
    with pytest.raises(WeightsError, match="has no step 5; expected: the folder of a training run"):
        load(folder / "model", step=5)
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(WeightsError, match="a run that has neither ended nor made a checkpoint"):
        load(tmp_path)


def test_a_damaged_checkpoint_is_not_read(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    files = (tmp_path / "run" / "checkpoints" / "5" / "state" / "d").iterdir()
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match=f"5 is damaged: .*{path.name}"):
        load(tmp_path / "run", step=5)


def test_the_command(run, tmp_path):
    folder, _, text = run
    settings = ["--config.sequence_length=16", "--config.sequences=2", f"--config.text={text}"]
    arguments = ["probe", str(folder), "--step=5", f"--workdir={tmp_path}", *settings]
    assert main(arguments) == 0
    assert json.loads((tmp_path / "probe.json").read_text())["model"]["name"] == "run, step 5"
