"""What a run survives, and how it ends where it does not: real processes and real signals.

Nothing is shown by a process where a call of the command in this one (`Place.run`) shows the same.
"""

import os
import signal
import time

import pytest
from process_runs import Place, assert_close, child_of, finish, kill, may_mount

LONG = "--config.steps=20000"
# One device each, and nothing measured: quick to compile.
PAIR = (LONG, "--config.mesh.data=2", "--config.watch.every=0", "--config.validate_every=0")
HEARTBEAT = 6
# A dead process is missed after the heartbeat; the rest is for noticing it and for ending.
STOPS_WITHIN = HEARTBEAT + 8


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def whole(place):
    """The rows of the run that nothing happened to, one process and one device."""
    code, said = place.run("whole")
    assert code == 0, said
    return place.rows("whole")


def test_sigterm_stops_one_process_and_then_both_of_two_and_the_run_goes_on(place, whole):
    trained = [row for row in whole if row["kind"] == "train"]
    # One process, in whose folder no second one may run.
    process = place.start("sigterm", LONG)
    place.wait_for("sigterm", 1, process)
    before = (place.folder / "sigterm" / "config.json").read_bytes()
    code, said = place.run("sigterm", "--config.steps=30")
    assert code == 2 and f"is in use by process {process.pid} on " in said
    assert (place.folder / "sigterm" / "config.json").read_bytes() == before
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 75 and "stopped at step" in said
    first = place.checkpoints("sigterm")[-1]
    rows = place.rows("sigterm")
    assert [row for row in rows if row["kind"] == "train"][:20] == trained[:first]
    # More processes take it up on another mesh; SIGTERM to one of them stops all at one step.
    two = place.start_all(2, "sigterm", "--config.mesh.data=2", LONG, devices=1)
    place.wait_for("sigterm", first // 10 * 10 + 11, two[0])  # watched by both
    two[1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in two]
    assert [code for code, _ in ends] == [75, 75], ends
    assert f"resumed from step {first}" in ends[0][1]
    assert "the same command resumes it" in ends[0][1] and ends[1][1] == ""
    stopped = place.checkpoints("sigterm")[-1]
    assert place.rows("sigterm")[-1]["step"] == stopped
    # Fewer, to the end.
    last = max(20, stopped + 1)
    code, said = place.run("sigterm", f"--config.steps={last}")
    assert code == 0 and f"resumed from step {stopped:,}" in said
    steps = [row["step"] for row in place.rows("sigterm") if row["kind"] == "train"]
    assert steps == list(range(1, last + 1))
    assert_close([row for row in place.rows("sigterm") if row["step"] <= 20][: len(whole)], whole)
    assert (place.folder / "sigterm" / "model" / "config.json").exists()


@pytest.mark.parametrize(("victim", "how"), [
    ("child of 1", signal.SIGSTOP), ("child of 0", signal.SIGKILL), ("parent of 1", signal.SIGKILL),
])
def test_the_others_of_a_dead_host_end_in_time_and_the_run_goes_on(place, whole, victim, how):
    name, number = f"dead-{victim}-{how}".replace(" ", "-"), int(victim[-1])
    two = place.start_all(2, name, *PAIR, f"--heartbeat={HEARTBEAT}", devices=1)
    place.wait_for(name, 7, two[0])
    place.wait_for_checkpoint(name, two[0])
    # The child of a parent that was killed ends, too.
    os.kill(child_of(two[number]) if victim.startswith("child") else two[number].pid, how)
    began = time.monotonic()
    code, said = finish(two[1 - number], within=60)
    seconds = time.monotonic() - began
    kill(two[number])
    assert code == 75, said
    assert seconds < STOPS_WITHIN
    assert "another process of this run has died" in said
    assert "resumes from its last checkpoint" in said
    if how == signal.SIGSTOP:
        saved = place.checkpoints(name)[-1]
        last = saved + 2
        code, said = place.run(name, *PAIR[2:], f"--config.steps={last}")
        assert code == 0 and f"resumed from step {saved}" in said
        trained = [row for row in place.rows(name) if row["kind"] == "train"]
        assert [row["step"] for row in trained] == list(range(1, last + 1))
        assert_close(trained[:20], [r for r in whole if r["kind"] == "train"][: len(trained)])


def test_different_numbers_of_processes(place):
    """The coordinator misses one of two; the second of three was told another number."""
    began = time.monotonic()
    last = ("--processes=3", "--process=2")
    for process in place.start_all(2, "count", *PAIR, "--timeout=3", devices=1, last=last):
        code, said = finish(process, within=60)
        assert code == 2 and "massact: 2 processes did not come together" in said.replace(
            "3 processes", "2 processes"), said
    assert time.monotonic() - began < 45
    assert not (place.folder / "count").exists()


def test_a_number_that_another_process_was_not_told(place):
    two = place.start_all(2, "told", *PAIR, "--timeout=20", devices=1, last=("--processes=3",))
    for process in two:
        code, said = finish(process, within=60)
        assert code == 2 and "massact: " in said and "--processes" in said, said
    assert not (place.folder / "told").exists()


def test_a_folder_that_only_one_host_sees(place):
    there = (f"--workdir={place.folder / 'there'}",)
    for process in place.start_all(2, "here", *PAIR, devices=1, last=there):
        code, said = finish(process, within=90)
        assert code == 2 and "is not the same folder on all hosts: process 1 does not" in said, said


SHORT = ("--config.watch.every=0", "--config.validate_every=0", "--config.steps=12")


def test_files_that_may_not_grow(place):
    assert place.run("limit", *SHORT, "--config.steps=5")[0] == 0
    code, said = finish(place.start("limit", *SHORT, limit=8192))
    said = " ".join(said.split())
    assert code == 2, said
    assert "massact: cannot write the checkpoint of step" in said and "File too large" in said
    assert "the last good one is of step 5" in said and "Traceback" not in said
    assert place.checkpoints("limit") == [5]
    goes_on(place, "limit")


MOUNTS = pytest.mark.skipif(not may_mount(), reason="this machine lets nobody mount a small disk")


@MOUNTS
def test_a_full_disk(place):
    """Room for one checkpoint, which stays as it is."""
    code, said = finish(place.start_on_disk("size=320k", "full", *SHORT))
    said = " ".join(said.split())
    assert code == 2, said
    assert "cannot write the checkpoint of step 10" in said and "No space left on device" in said
    assert "the last good one is of step 5" in said and "Traceback" not in said
    assert place.checkpoints("full") == [5]
    goes_on(place, "full")


def goes_on(place, name):
    code, said = place.run(name, *SHORT)
    # Said before it trains, not hours later.
    assert code == 0 and "resumed from step 5\n" in said.partition("parameter ")[0]
    trained = [row for row in place.rows(name) if row["kind"] == "train"]
    assert [row["step"] for row in trained] == list(range(1, 13))


def test_what_stops_one_of_two_stops_both_with_its_exit_code(place):
    """It cannot write a checkpoint."""
    two = place.start_all(2, "half", *PAIR, devices=1, last_limit=8192)
    began = time.monotonic()
    (code, said), (code_of_last, said_of_last) = map(finish, two)
    assert (code, code_of_last) == (2, 2), (said, said_of_last)
    why = "cannot write the checkpoint of step 5"
    assert f"process 1 ended: {why}" in said and f"massact: {why}" in said_of_last
    assert time.monotonic() - began < 60
    assert place.checkpoints("half") == []


@MOUNTS
def test_a_folder_that_is_read_only(place):
    code, said = finish(place.start_on_disk("ro", "fixed"))
    assert code == 2 and "Read-only file system" in said and "Traceback" not in said
    assert "massact: cannot write to " in said
