"""The rows of a run: what their speeds are of."""

import dataclasses
import types

import pytest
from train_runs import MICRO

from jax_massact.train import record
from jax_massact.train.record import Recorder
from jax_massact.train.step import make_mesh


def test_measurements_between_two_rows_are_no_training(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(record, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))
    rows = []
    config = dataclasses.replace(MICRO, log_every=4)
    recorder = Recorder(config, make_mesh(config.mesh), [], rows.append)
    for done in range(1, 9):
        now[0] += 0.5
        recorder.push(done, (1.0, 1.0, 1.0), waited=0.0)
        recorder.flush()
        if done in (2, 4):  # between two rows, and at one
            now[0] += 7
            recorder.validated(done, [{"loss": 3.0}, {"loss": 4.0}], 7.0)
    first, second = (row for row in rows if row["kind"] == "train")
    watched = {"kind": "watch", "step": 4, "seconds": 1.0, "ratio": [0.0]}
    monkeypatch.setattr(record, "emergence", lambda *_: {})
    summary = record.summarize(config, {}, [*rows, watched])
    assert summary["seconds"] == pytest.approx(4)
    assert summary["watching"] == pytest.approx(1 / 5)
    tokens = config.batch_size * config.sequence_length
    for row in (first, second):
        assert row["seconds"] == pytest.approx(2)
        assert row["tokens_per_second"] == pytest.approx(2 * tokens)
