"""Whole runs: what they write, stopping and going on, and what they refuse."""

import dataclasses
import io
import itertools
import json
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import rich.console
from kill_train import CONFIG, STEPS, kill
from train_runs import MICRO, Counting

from jax_massact.data.stream import open_stream
from jax_massact.errors import ConfigError, UserError
from jax_massact.train import loop, stall, step
from jax_massact.train.command import run_train
from jax_massact.train.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    OptimizerConfig,
)
from jax_massact.train.data import open_batches
from jax_massact.train.loop import train
from jax_massact.train.metrics import MetricsFile, of_kind, read_rows
from jax_massact.train.prefetch import prefetch


def numbers(folder: Path):
    """Every row without what depends on the clock."""
    timed = ("seconds", "tokens_per_second", "mfu", "host_wait")
    rows = read_rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, train(MICRO, Counting(), folder)


def test_what_a_run_writes(whole):
    folder, trained = whole
    rows = read_rows(folder / "metrics.jsonl")
    assert [row["step"] for row in of_kind(rows, "train")] == list(range(1, 21))
    assert [row["step"] for row in of_kind(rows, "watch")] == [0, 10, 20]
    validation = of_kind(rows, "validation")
    assert [row["step"] for row in validation] == [10, 20]
    np.testing.assert_allclose(validation[-1]["loss"], np.mean(validation[-1]["losses"]))
    np.testing.assert_allclose(validation[-1]["std"], np.std(validation[-1]["losses"], ddof=1))
    first, last = of_kind(rows, "train")[0], of_kind(rows, "train")[-1]
    assert first["lr"] == 0 and abs(first["loss"] - np.log(64)) < 0.2 and last["loss"] < 3
    assert all(row["tokens_per_second"] > 0 and row["mfu"] is None for row in [first, last])
    summary = json.loads((folder / "summary.json").read_text())
    assert summary == json.loads(json.dumps(trained.summary))
    assert summary["validation"] == validation[-1] and summary["tokens"] == 20 * 8 * 16
    assert summary["parameters"] == sum(x.size for x in trained.state.params.values())
    model = json.loads((folder / "config.json").read_text())["model"]
    assert model["block"]["attention"]["variant"] == "kv_bias"
    assert trained.resumed == 0 and int(trained.state.step) == 20


def test_a_finished_run_is_not_run_again(whole):
    folder, trained = whole
    before = (folder / "metrics.jsonl").read_bytes()
    again = train(MICRO, Counting(), folder)
    assert again.resumed == 20 and again.summary == trained.summary
    assert (folder / "metrics.jsonl").read_bytes() == before


def test_stopping_and_going_on_gives_the_unbroken_run(whole, tmp_path):
    calls = itertools.count(1)
    stopped = train(MICRO, Counting(), tmp_path, stop=lambda: next(calls) == 7)
    assert stopped.summary is None and int(stopped.state.step) == 7
    assert not (tmp_path / "summary.json").exists()
    resumed = train(MICRO, Counting(), tmp_path)
    assert resumed.resumed == 7
    assert numbers(tmp_path) == numbers(whole[0])
    for name, x in whole[1].state.params.items():
        np.testing.assert_array_equal(resumed.state.params[name], x, err_msg=name)


def test_two_runs_are_equal_bit_for_bit(whole, tmp_path):
    again = train(MICRO, Counting(), tmp_path)
    assert numbers(tmp_path) == numbers(whole[0])
    for name, x in whole[1].state.params.items():
        np.testing.assert_array_equal(again.state.params[name], x, err_msg=name)


def test_a_run_killed_ten_times_goes_on_bit_for_bit(tmp_path):
    broken, unbroken = tmp_path / "broken", tmp_path / "unbroken"
    assert kill(broken, seed=0) >= 6
    assert not (broken / "summary.json").exists()
    resumed = train(CONFIG, Counting(), broken)
    assert 0 < resumed.resumed < STEPS
    seldom = dataclasses.replace(CONFIG, checkpoint=CheckpointConfig(every=0))
    expected = train(seldom, Counting(), unbroken)
    assert expected.resumed == 0 and numbers(broken) == numbers(unbroken)
    for name, x in expected.state.params.items():
        np.testing.assert_array_equal(resumed.state.params[name], x, err_msg=name)
    # What was not finished is not left behind.
    assert not list((broken / "checkpoints").glob("*tmp*"))


def test_a_run_on_a_mesh_that_goes_on_without_one(whole, tmp_path):
    """Watching and validating, too, give the numbers of one device."""
    calls = itertools.count(1)
    config = dataclasses.replace(MICRO, mesh=MeshConfig(data=2, fsdp=2, model=2))
    train(config, Counting(), tmp_path, stop=lambda: next(calls) == 12)
    assert train(MICRO, Counting(), tmp_path).resumed == 12
    for found, expected in zip(numbers(tmp_path), numbers(whole[0]), strict=True):
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            if key in ("kind", "step"):
                assert found[key] == value
            elif key != "std":
                np.testing.assert_allclose(found[key], value, rtol=1e-4, atol=1e-5, err_msg=key)


def test_what_may_not_change(whole):
    folder, _ = whole
    for change, said in (
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"batch_size": 16}, "batch_size was 8 and is 16"),
        ({"optimizer": dataclasses.replace(MICRO.optimizer, lr=2e-2)},
         "optimizer.lr was 0.01 and is 0.02"),
        ({"model": MICRO.model.with_attention(variant="standard")},
         "model.block.attention.variant was 'kv_bias' and is 'standard'"),
    ):
        with pytest.raises(ConfigError, match=said):
            train(dataclasses.replace(MICRO, **change), Counting(), folder)


def test_fewer_steps_than_there_are(whole):
    with pytest.raises(ConfigError, match="steps is 19; the run in .* is already at 20"):
        train(dataclasses.replace(MICRO, steps=19), Counting(), whole[0])


def test_data_with_a_larger_vocabulary(tmp_path):
    with pytest.raises(ConfigError, match="vocab_size is 64; expected with this data: at least 65"):
        train(MICRO, Counting(vocab_size=65), tmp_path)


@pytest.mark.parametrize(("tokenizer", "least"), [
    ("bpe:400", 400), ("bytes", 257), ("gpt2", 50257), ("ids:65", 65),
])
def test_a_tokenizer_with_more_ids_than_the_model_is_refused_before_anything_is_read(
    tokenizer, least
):
    data = DataConfig(source="no/such/file.txt", tokenizer=tokenizer)
    said = f"vocab_size is 64; expected with data.tokenizer={tokenizer}: at least {least}$"
    with pytest.raises(ConfigError, match=said):
        open_batches(dataclasses.replace(MICRO, data=data))


def test_a_workdir_that_is_a_file_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "file").write_text("")
    data = DataConfig(source="no/such/file.txt")
    with pytest.raises(UserError, match="--workdir .*file is a file; expected: a folder"):
        run_train(dataclasses.replace(MICRO, data=data), tmp_path / "file")


def test_a_short_run_says_that_its_warm_up_is_short(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog.\n" * 40)
    config = dataclasses.replace(
        MICRO, data=DataConfig(source=str(text), tokenizer="chars"), stall_seconds=900,
        optimizer=dataclasses.replace(MICRO.optimizer, warmup=50, decay_end=0),
    )
    console = rich.console.Console(file=io.StringIO(), width=200)
    run_train(config, tmp_path / "run", console)
    said = console.file.getvalue()
    assert "warm-up shortened to 2 steps: optimizer.warmup is 50, and steps is 20\n" in said
    assert "exit code 75 if one step makes no progress for 900 s (stall_seconds)\n" in said
    lrs = [row["lr"] for row in of_kind(read_rows(tmp_path / "run" / "metrics.jsonl"), "train")]
    np.testing.assert_allclose(lrs[:3], [0, 0.5 * config.optimizer.lr, config.optimizer.lr])


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    settings = OptimizerConfig(lr=1e38, final_lr=0.0, warmup=0, clip=0.0)
    config = dataclasses.replace(
        MICRO, optimizer=settings, checkpoint=CheckpointConfig(every=0),
        watch=dataclasses.replace(MICRO.watch, every=0),
    )
    with pytest.raises(UserError, match=r"the loss is .* at step \d+: .* A lower optimizer.lr"):
        train(config, Counting(), tmp_path)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write to .*file"):
        train(MICRO, Counting(), tmp_path / "file")


def test_metrics_past_the_restored_step_are_cut_off(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"kind": "train", "step": s, "loss": float(s)} for s in range(1, 6)]
    with MetricsFile(path, 0) as metrics:
        for row in rows:
            metrics.write(row)
    with path.open("a") as file:
        file.write('{"kind": "train", "st')
    with MetricsFile(path, 3) as metrics:
        metrics.write({"kind": "train", "step": 4, "loss": float("nan")})
    assert read_rows(path) == [*rows[:3], {"kind": "train", "step": 4, "loss": None}]
    path.write_text("no row\n" + path.read_text())
    with pytest.raises(UserError, match="metrics.jsonl, line 1 is not a row"):
        read_rows(path)


def test_a_run_is_not_resumed_on_other_data_or_another_vocabulary(tmp_path):
    """Two characters in front of the text: with `chars`, every id stands for another one."""
    text, folder = tmp_path / "text.txt", tmp_path / "run"
    config = dataclasses.replace(MICRO, steps=2)

    def opened(front):
        text.write_text(front + "A quick brown fox jumps over the lazy dog.\n" * 40)
        return open_stream(str(text), tokenizer="chars", seed=0, batch_size=config.batch_size,
                           sequence_length=config.sequence_length)

    train(config, opened(""), folder, stop=lambda: True)
    said = "run holds a run on other data: .*: training data, validation data, tokenizer. Expected"
    with pytest.raises(ConfigError, match=said):
        train(config, opened("\x01\x02"), folder)
    assert train(config, opened(""), folder).resumed == 1
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["digests"] == dict(opened("").digests)


class Blocked(Counting):
    """Data that stops coming at one step, until the run is told to end."""

    def __init__(self, step, ended):
        super().__init__()
        object.__setattr__(self, "blocks", (step, ended))

    def batch(self, step):
        at, ended = self.blocks
        assert step != at or ended.wait(60)
        return super().batch(step)


@pytest.mark.parametrize("what", ["data", "the devices"])
def test_a_run_that_stands_still_says_where_and_ends_with_75(tmp_path, monkeypatch, capsys, what):
    """The process does not really end here: what blocks is let go instead."""
    ended, codes = threading.Event(), []

    def leave(code):
        codes.append(code)
        ended.set()

    def compile_blocking(config, mesh):
        update = step.compile_update(config, mesh)
        calls = itertools.count()

        def run(state, tokens):
            assert next(calls) != 6 or ended.wait(60)
            return update(state, tokens)

        return run

    monkeypatch.setattr(stall.os, "_exit", leave)
    data = Counting()
    if what == "data":
        data = Blocked(6, ended)
    else:
        monkeypatch.setattr(loop, "compile_update", compile_blocking)
    train(dataclasses.replace(MICRO, steps=10, stall_seconds=2), data, tmp_path)
    assert codes == [75]
    assert capsys.readouterr().err == (
        f"massact: no progress for 2 s (stall_seconds) at step 7: waiting for {what}. Started "
        "again, the run resumes from its last checkpoint\n"
    )


def test_what_may_take_any_time_does_not_stall(monkeypatch):
    codes = []
    monkeypatch.setattr(stall, "_leave", codes.append)
    for seconds, what in ((0.05, None), (0, "data")):
        with stall.StallGuard(seconds) as guard:
            guard.waits_for(what, 3)
            time.sleep(0.2)
    assert codes == []
    with stall.StallGuard(0.05) as guard:
        guard.waits_for("a checkpoint to be written", 1200)
        time.sleep(0.3)
    assert len(codes) == 1 and "at step 1,200: waiting for a checkpoint" in codes[0]


def test_batches_are_fetched_ahead_only_after_the_first_update(tmp_path, monkeypatch):
    seen = []

    class Seen(Counting):
        def rows(self, step, lo, hi):
            seen.append(f"rows {step}")
            return super().rows(step, lo, hi)

    def compile_seen(config, mesh):
        update = step.compile_update(config, mesh)

        def run(state, tokens):
            time.sleep(0.1)  # a thread that fetches would not wait for it
            state, measured = jax.block_until_ready(update(state, tokens))
            seen.append("update")
            return state, measured

        return run

    monkeypatch.setattr(loop, "compile_update", compile_seen)
    train(dataclasses.replace(MICRO, steps=3), Seen(), tmp_path)
    assert seen[:3] == ["rows 0", "update", "rows 1"]
    assert sorted(seen) == ["rows 0", "rows 1", "rows 2"] + 3 * ["update"]


def test_prefetch_runs_ahead_and_no_further():
    made = []

    class Slow(Counting):
        def batch(self, step):
            made.append(step)
            return super().batch(step)

    fetched = prefetch(3, 30, Slow().batch, ahead=2)
    first = next(fetched)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert first.step == 3 and made == [3, 4, 5, 6]  # one taken, two waiting, one in hand
    np.testing.assert_array_equal(next(fetched).tokens, Counting().batch(4))
    fetched.close()
    assert len(made) < 10


def test_prefetch_hands_on_what_went_wrong_and_counts_the_wait():
    class Broken(Counting):
        def batch(self, step):
            time.sleep(0.05)
            if step == 1:
                raise UserError("no such shard")
            return super().batch(step)

    fetched = prefetch(0, 5, Broken().batch)
    assert 0.03 < next(fetched).waited < 2
    with pytest.raises(UserError, match="no such shard"):
        next(fetched)
