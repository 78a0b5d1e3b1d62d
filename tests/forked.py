"""Processes forked from one that has imported everything, which takes as long as a tiny run.

That one has started nothing, no thread and no backend of JAX. What is forked is a process as any
other: it can be killed, stopped and joined to others, and has a child of its own.
"""

import fcntl
import functools
import gc
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from typing import Any

import jax
import pytest

from jax_massact.cli import main, run  # noqa: F401
from jax_massact.cluster import supervise
from jax_massact.train import command  # noqa: F401

_CONTEXT = multiprocessing.get_context("forkserver")
_IMPORTED_BY = os.getpid()


@functools.cache
def _server() -> BaseContext:
    """Starts the process that is forked, once."""
    _CONTEXT.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        patch.setenv("TF_CPP_MIN_LOG_LEVEL", "3")
        forkserver.ensure_running()
    return _CONTEXT


class Forked:
    """A process that calls `target(*args)`; with what tests use of `subprocess.Popen`.

    Args:
      devices: of JAX.
      limit: of the size of its files, in bytes.
    """

    def __init__(self, target: Callable, *args: Any, devices: int = 8, limit: int | None = None):
        self._said, says = _CONTEXT.Pipe(duplex=False)
        life = (says, devices, limit, target, args)
        self._process = _server().Process(target=_live, args=life, daemon=True)
        self._process.start()
        says.close()
        self.pid, self.kill = self._process.pid, self._process.kill
        self.wait = self._process.join

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float = 300) -> tuple[None, str]:
        """What was written to its standard error until nobody has that any more."""
        until, said = time.monotonic() + timeout, b""
        while self._said.poll(max(0, until - time.monotonic())):
            if not (piece := os.read(self._said.fileno(), 1 << 16)):
                self.wait()
                return None, said.decode()
            said += piece
        raise subprocess.TimeoutExpired("massact", timeout)

    @property
    def returncode(self) -> int | None:
        return self.poll()


def _live(
    says: Connection, devices: int, limit: int | None, target: Callable, args: tuple
) -> None:
    gc.freeze()  # Nobody collects what was imported
    os.dup2(says.fileno(), sys.stderr.fileno())
    says.close()
    jax.config.update("jax_num_cpu_devices", devices)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.exit(target(*args))


def massact(*words: str) -> int:
    """The command, whose supervised child is forked, too."""
    supervise.subprocess.Popen = _Child
    return main(words)


class _Child:
    """In the place of `subprocess.Popen` of the command by Python."""

    def __init__(self, words: list[str], env: dict[str, str], pass_fds: tuple, process_group: int):
        self.pid = os.fork()
        if self.pid == 0:
            os.setpgid(0, process_group)
            for fd in map(int, os.listdir("/proc/self/fd")):
                if fd not in pass_fds:
                    _close_as_exec(fd)
            os.environ.update(env)
            sys.exit(main(words[3:]))

    def wait(self) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _close_as_exec(fd: int) -> None:
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC:
            os.close(fd)
    except OSError:
        pass  # the one by which the folder was listed
