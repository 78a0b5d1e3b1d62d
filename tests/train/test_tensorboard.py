"""Event files, read back record by record, against `metrics.jsonl`."""

import collections
import dataclasses
import itertools
import struct
import sys

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from train_runs import MICRO, Counting

from jax_massact.cli import main
from jax_massact.errors import ConfigError, UserError
from jax_massact.train.config import CheckpointConfig
from jax_massact.train.loop import train
from jax_massact.train.metrics import of_kind, read_rows
from jax_massact.train.tensorboard import check_installed, open_tensorboard, scalars

SHOWN = dataclasses.replace(MICRO, tensorboard=True)


def events(folder):
    """Of every file: a length, its checksum, an event, its checksum (the TFRecord format)."""
    for path in sorted((folder / "tensorboard").iterdir()):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack_from("<Q", data, at)
            yield Event.FromString(data[at + 12 : at + 12 + length])
            at += 12 + length + 4


def read_scalars(folder):
    """{tag: [(step, value), ...]}, as often as it is in the files."""
    found = collections.defaultdict(list)
    for event in events(folder):
        for value in event.summary.value:
            found[value.tag].append((event.step, value.simple_value))
    return dict(found)


def check_against_rows(folder):
    """Every number of the rows is there once, under its name, and nothing else."""
    expected = collections.defaultdict(list)
    rows = read_rows(folder / "metrics.jsonl")
    for row in rows:
        step = row["step"]
        if row["kind"] == "watch":
            for key in row.keys() - {"kind", "step", "seconds"}:
                most = min if key == "value_drain" else max
                expected[f"watch/{key}"].append((step, most(row[key])))
                for layer, value in enumerate(row[key]):
                    expected[f"{key}/layer_{layer:02}"].append((step, value))
        else:
            keys = ("loss", "lr", "grad_norm", "tokens_per_second", "host_wait")
            for key in keys if row["kind"] == "train" else ("loss",):
                expected[f"{row['kind']}/{key}"].append((step, row[key]))
    found = read_scalars(folder)
    assert found.keys() == expected.keys()
    for name, points in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in points], name
        np.testing.assert_allclose(
            [v for _, v in found[name]], [v for _, v in points], rtol=1e-6, err_msg=name
        )
    return found, rows


def test_every_number_is_written_once(tmp_path):
    train(SHOWN, Counting(), tmp_path)
    found, _ = check_against_rows(tmp_path)
    assert [step for step, _ in found["train/loss"]] == list(range(1, 21))
    assert [step for step, _ in found["watch/top1"]] == [0, 10, 20]
    assert {"sink_rate/layer_00", "sink_rate/layer_01", "validation/loss"} <= found.keys()


def test_a_run_that_is_taken_up_again_shows_no_step_twice(tmp_path):
    """It ended past its checkpoint, and was first run without these files."""
    config = dataclasses.replace(SHOWN, checkpoint=CheckpointConfig(every=4))

    def die_at(step):
        def stop():
            if next(calls) == step:
                raise KeyboardInterrupt
            return False

        calls = itertools.count(1)
        return stop

    plain = dataclasses.replace(config, tensorboard=False)
    with pytest.raises(KeyboardInterrupt):
        train(plain, Counting(), tmp_path, stop=die_at(6))
    assert not (tmp_path / "tensorboard").exists()
    with pytest.raises(KeyboardInterrupt):
        train(config, Counting(), tmp_path, stop=die_at(7))  # from 4 to 11
    assert max(step for step, _ in read_scalars(tmp_path)["train/loss"]) > 8
    assert train(config, Counting(), tmp_path).resumed == 8
    _, rows = check_against_rows(tmp_path)
    assert [row["step"] for row in of_kind(rows, "train")] == list(range(1, 21))
    # A TensorBoard that has the earlier file in its memory forgets it.
    logs = [e for e in events(tmp_path) if e.HasField("session_log")]
    assert [(e.session_log.status, e.step) for e in logs] == [(SessionLog.START, 0)]


def test_a_run_that_begins_anew_measures_step_0_once(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(SHOWN, Counting(), tmp_path, on_row=raise_at_first_update)
    assert train(SHOWN, Counting(), tmp_path).resumed == 0
    _, rows = check_against_rows(tmp_path)
    assert [row["step"] for row in of_kind(rows, "watch")] == [0, 10, 20]


def raise_at_first_update(row):
    if row["kind"] == "train":
        raise KeyboardInterrupt


def test_what_is_not_known_is_left_out():
    row = {"kind": "train", "step": 3, "loss": float("nan"), "lr": 0.1, "grad_norm": 2.0,
           "tokens_per_second": 5.0, "mfu": None, "host_wait": 0.0, "seconds": 1.0}
    assert dict(scalars(row)) == {"train/lr": 0.1, "train/grad_norm": 2.0,
                                  "train/tokens_per_second": 5.0, "train/host_wait": 0.0}
    row = {"kind": "watch", "step": 3, "value_drain": [0.5, None], "top1": [1.0, float("nan")],
           "ratio": [None, None], "seconds": 1.0}
    assert dict(scalars(row)) == {
        "watch/value_drain": 0.5, "value_drain/layer_00": 0.5,
        "watch/top1": 1.0, "top1/layer_00": 1.0,
    }


def test_without_the_package_nothing_is_trained(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    says = r"pip install 'jax_massact\[tensorboard\]'"
    with pytest.raises(ConfigError, match=says):
        check_installed()
    with pytest.raises(ConfigError, match=says):
        train(SHOWN, Counting(), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # The settings are looked at before the data, which is not there.
    assert main(["train", "--config=configs/gpt2_tiny.py:sink", f"--workdir={tmp_path / 'run'}",
                 "--config.tensorboard=True", "--config.data.source=no/such.txt"]) == 2
    assert "pip install 'jax_massact[tensorboard]'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(UserError, match="cannot write to .*tensorboard"):
        with open_tensorboard(tmp_path / "tensorboard", []):
            pass
