"""What a run survives, and how it ends where it does not: real processes and real signals."""

import os
import signal
import time

import pytest
from process_runs import Place, assert_close, child_of, finish, kill, may_mount

LONG = "--config.steps=20000"
MESH = ("--config.mesh.data=4",)
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
    """The rows of the run that nothing happened to, one process and four devices."""
    code, said = place.run("whole", *MESH, devices=4)
    assert code == 0, said
    return place.rows("whole")


def test_sigterm_to_one_stops_all_at_one_step_and_more_processes_go_on(place, whole):
    two = place.start_all(2, "sigterm", *MESH, LONG, devices=2)
    place.wait_for("sigterm", 6, two[0])
    two[1].send_signal(signal.SIGTERM)
    ends = [finish(process) for process in two]
    assert [code for code, _ in ends] == [75, 75], ends
    assert "the same command resumes it" in ends[0][1] and ends[1][1] == ""
    stopped = place.checkpoints("sigterm")[-1]
    assert place.rows("sigterm")[-1]["step"] == stopped
    last = max(20, stopped + 3)
    more = ("--config.mesh=data=-1,fsdp=2", f"--config.steps={last}")
    four = place.start_all(4, "sigterm", *more, devices=2)
    ends = [finish(process) for process in four]
    assert [code for code, _ in ends] == [0] * 4, ends
    assert f"resumed from step {stopped}" in ends[0][1]
    trained = [row["step"] for row in place.rows("sigterm") if row["kind"] == "train"]
    assert trained == list(range(1, last + 1))
    early = [row for row in place.rows("sigterm") if row["step"] <= 20]
    assert_close([r for r in early if r["kind"] == "train"],
                 [r for r in whole if r["kind"] == "train"])
    assert_close(early[:2], whole[:2])  # watched by two processes
    assert (place.folder / "sigterm" / "model" / "config.json").exists()


def test_sigterm_to_a_single_process(place, whole):
    process = place.start("alone", *MESH, LONG, devices=4)
    place.wait_for("alone", 3, process)
    process.send_signal(signal.SIGTERM)
    code, said = finish(process)
    assert code == 75 and "stopped at step" in said
    stopped = place.checkpoints("alone")[-1]
    last = max(20, stopped + 1)
    assert place.run("alone", *MESH, f"--config.steps={last}", devices=4)[0] == 0
    kept = [r for r in place.rows("alone") if r["step"] <= 20 and r["kind"] == "train"]
    assert kept == [r for r in whole if r["kind"] == "train"]


@pytest.mark.parametrize(("victim", "how"), [
    (1, signal.SIGKILL), (1, signal.SIGSTOP), (0, signal.SIGKILL),
])
def test_the_others_of_a_dead_host_end_in_time_and_the_run_goes_on(place, whole, victim, how):
    name = f"dead-{victim}-{how}"
    two = place.start_all(2, name, *PAIR, f"--heartbeat={HEARTBEAT}", devices=1)
    place.wait_for(name, 7, two[0])
    place.wait_for_checkpoint(name, two[0])
    child = child_of(two[victim])
    os.kill(child, how)
    began = time.monotonic()
    code, said = finish(two[1 - victim], within=60)
    seconds = time.monotonic() - began
    two[victim].kill()
    two[victim].communicate()
    assert code == 75, said
    assert seconds < STOPS_WITHIN
    assert "another process of this run has died" in said
    assert "resumes from its last checkpoint" in said
    if victim and how == signal.SIGKILL:
        saved = place.checkpoints(name)[-1]
        last = saved + 2
        code, said = place.run(name, *PAIR, f"--config.steps={last}", devices=2)
        assert code == 0 and f"resumed from step {saved}" in said
        trained = [row for row in place.rows(name) if row["kind"] == "train"]
        assert [row["step"] for row in trained] == list(range(1, last + 1))
        assert_close(trained[:20], [r for r in whole if r["kind"] == "train"][: len(trained)])


def test_the_child_of_a_killed_parent_ends_too(place):
    (one, two) = place.start_all(2, "orphan", *PAIR, "--heartbeat=6", devices=1)
    place.wait_for("orphan", 2, one)
    kill(two)
    assert finish(one, within=60)[0] == 75


def test_what_stops_one_process_stops_all_with_its_exit_code(place):
    two = place.start_all(
        2, "gone", *PAIR, devices=1, last=("--config.data.source=no/such.npy",)
    )
    began = time.monotonic()
    (code, said), (code_of_last, said_of_last) = map(finish, two)
    assert (code, code_of_last) == (2, 2), (said, said_of_last)
    assert "no/such.npy" in said_of_last and "process 1 ended: " in said
    assert time.monotonic() - began < 45


@pytest.mark.parametrize("told", [1, 3])
def test_different_numbers_of_processes(place, told):
    # The last is either one too many or, of three, the second.
    began = time.monotonic()
    last = (f"--processes={told}", f"--process={told - 1}")
    two = place.start_all(2, "count", *PAIR, "--timeout=8", devices=1, last=last)
    if told == 1:
        kill(two[1])  # a run of one process, which needs nobody
        two = two[:1]
    for process in two:
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


def test_a_second_run_in_the_same_folder(place):
    first = place.start("taken", LONG, devices=1)
    place.wait_for("taken", 1, first)
    before = (place.folder / "taken" / "config.json").read_bytes()
    code, said = place.run("taken", "--config.steps=30", devices=1)
    assert code == 2 and f"is in use by process {first.pid} on " in said
    assert (place.folder / "taken" / "config.json").read_bytes() == before
    assert first.poll() is None
    place.wait_for_checkpoint("taken", first)
    kill(first)
    saved = place.checkpoints("taken")[-1]
    code, said = place.run("taken", f"--config.steps={saved + 1}", devices=1)
    assert code == 0 and f"resumed from step {saved:,}" in said


SHORT = ("--config.watch.every=0", "--config.validate_every=0", "--config.steps=12")


def test_files_that_may_not_grow(place):
    assert place.run("limit", *SHORT[:2], "--config.steps=5", devices=1)[0] == 0
    code, said = place.run("limit", *SHORT, devices=1, limit=10)
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
    code, said = place.run("full", *SHORT, devices=1, disk="size=320k")
    said = " ".join(said.split())
    assert code == 2, said
    assert "cannot write the checkpoint of step 10" in said and "No space left on device" in said
    assert "the last good one is of step 5" in said and "Traceback" not in said
    assert place.checkpoints("full") == [5]
    goes_on(place, "full")


def goes_on(place, name):
    code, said = place.run(name, *SHORT, devices=1)
    # Said before it trains, not hours later.
    assert code == 0 and "resumed from step 5\n" in said.partition("parameter ")[0]
    trained = [row for row in place.rows(name) if row["kind"] == "train"]
    assert [row["step"] for row in trained] == list(range(1, 13))


def test_one_of_two_that_cannot_write_stops_both(place):
    two = place.start_all(2, "half", *PAIR, devices=1, last_limit=10)
    began = time.monotonic()
    (code, said), (code_of_last, said_of_last) = map(finish, two)
    assert (code, code_of_last) == (2, 2), (said, said_of_last)
    why = "cannot write the checkpoint of step 5"
    assert f"process 1 ended: {why}" in said and f"massact: {why}" in said_of_last
    assert time.monotonic() - began < 60
    assert place.checkpoints("half") == []


def test_a_folder_that_cannot_be_made(place):
    code, said = place.run("config.py/run", devices=1)
    assert code == 2 and "cannot write to" in said and "Traceback" not in said


@MOUNTS
def test_a_folder_that_is_read_only(place):
    code, said = place.run("fixed", devices=1, disk="ro")
    assert code == 2 and "Read-only file system" in said and "Traceback" not in said
    assert "massact: cannot write to " in said
