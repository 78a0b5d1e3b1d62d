"""The parent of one of several processes, which turns any end of it into the right exit code.

When another process of a run is gone, JAX aborts this one from a thread of C++ (SIGABRT), whatever
Python is doing, so that nothing inside could choose the exit code. The parent does nothing but
wait and pass on signals; it never imports JAX.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jax_massact.cluster.processes import TEMPFAIL, USER_ERROR, Cluster

_VARIABLE = "MASSACT_SUPERVISED"
_PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Parent:
    """The child's side of the pipes to its parent."""

    def __init__(self, says: int, lives: int):
        self._says = says
        # Nothing is ever written to it: reading ends when the parent does.
        threading.Thread(target=self._leave_with, args=(lives,), daemon=True).start()

    @staticmethod
    def _leave_with(lives: int) -> None:
        os.read(lives, 1)
        os._exit(TEMPFAIL)

    def say_joined(self) -> None:
        """Reports that every process has joined."""
        self._write({"joined": True})

    def say_failed(self, code: int, line: str) -> None:
        """Reports that another process ended by itself, with this exit code."""
        self._write({"code": code, "line": line})

    def _write(self, said: dict[str, object]) -> None:
        os.write(self._says, (json.dumps(said) + "\n").encode())


def find_parent() -> Parent | None:
    """The parent of this process if it is a child of `supervise`."""
    found = os.environ.pop(_VARIABLE, None)
    return None if found is None else Parent(*map(int, found.split(",")))


def supervise(argv: Sequence[str], cluster: Cluster, timeout: int, heartbeat: int) -> int:
    """Runs `massact` with these arguments as a child process; returns the exit code for both.

    It is the child's, unless a signal ended the child: then 75 if another process of the run is
    gone, that process's own code if it reported why it ended, and 2 if they never came together.
    """
    says, ours = os.pipe()
    theirs, lives = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-m", "jax_massact", *argv],
        env=os.environ | {_VARIABLE: f"{ours},{theirs}"},
        pass_fds=(ours, theirs),
        process_group=0,  # a terminal's Ctrl-C comes once, from here
    )
    os.close(ours)
    os.close(theirs)
    with _passing_on_signals(child) as passed:
        ended = child.wait()
    os.close(lives)
    with os.fdopen(says) as file:
        heard = [json.loads(line) for line in file]
    if ended >= 0:
        return ended
    number = -ended
    if number in passed:
        return TEMPFAIL if number == signal.SIGTERM else 128 + number
    if number != signal.SIGABRT:
        return 128 + number
    verdict = _verdict(heard, cluster, timeout, heartbeat)
    print(f"massact: {verdict.line}", file=sys.stderr)
    return verdict.code


class _Verdict(NamedTuple):
    code: int
    line: str


def _verdict(heard: list[dict], cluster: Cluster, timeout: int, heartbeat: int) -> _Verdict:
    """Why JAX has aborted the child."""
    for said in heard:
        if "code" in said:
            return _Verdict(said["code"], said["line"])
    if not heard:
        where = f" at {cluster.coordinator}" if cluster.coordinator else ""
        which = "" if cluster.index is None else f" This one is --process={cluster.index}."
        return _Verdict(
            USER_ERROR,
            f"{cluster.processes} processes did not come together{where} within {timeout} s: fewer "
            "were started, one was told another --processes, or two the same --process."
            f"{which}",
        )
    return _Verdict(
        TEMPFAIL,
        "another process of this run has died, or could not be reached for "
        f"{heartbeat} s. Started again, the run resumes from its last checkpoint",
    )


@contextlib.contextmanager
def _passing_on_signals(child: subprocess.Popen) -> Iterator[set[int]]:
    """Yields the signals that were passed on to the child."""
    passed: set[int] = set()

    def pass_on(number: int, frame: object) -> None:
        del frame
        passed.add(number)
        child.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        yield passed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
