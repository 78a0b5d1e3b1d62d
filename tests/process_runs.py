"""Runs of `massact train` as real processes, small enough to start many of them."""

import contextlib
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from forked import Forked, massact

from jax_massact.cli import main
from jax_massact.train.metrics import read_rows

CONFIG = '''
import ml_collections

def get_config():
    return ml_collections.ConfigDict({
        "model": {"depth": 2, "width": 16, "context_length": 16, "dtype": "float32",
                  "embed": {"vocab_size": 64},
                  "block": {"attention": {"variant": "kv_bias", "heads": 2, "kv_heads": 2,
                                          "head_dim": 8}, "mlp": {"hidden": 32}}},
        "optimizer": {"warmup": 1, "decay_end": 1000, "lr": 1e-2, "final_lr": 1e-3},
        "data": {"source": "ids.npy", "tokenizer": "ids:64"},
        "watch": {"every": 10, "sequences": 4, "sink_tokens": 8}, "checkpoint": {"every": 5},
        "steps": 20, "batch_size": 8, "sequence_length": 16, "unroll": False, "log_every": 1,
        "validate_every": 10, "validation_batches": 2,
    })
'''
# Mounts of its own, which Linux lets any user make where it is not told otherwise.
PRIVATE = ("unshare", "--map-root-user", "--mount")
Process = Forked | subprocess.Popen
TIMED = ("seconds", "tokens_per_second", "mfu", "host_wait")


class Place:
    """A folder with a configuration and its data."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "config.py").write_text(CONFIG)
        # A walk: there is something to learn.
        steps = np.random.default_rng(0).integers(0, 3, 20_000)
        np.save(folder / "ids.npy", (steps.cumsum() % 64).astype(np.uint16))

    def start(
        self, workdir: str, *arguments: str, devices: int = 8, limit: int | None = None
    ) -> Forked:
        """One process; `devices`, `limit`: as `Forked`."""
        words = self._words(workdir, arguments)
        return Forked(massact, *words, devices=devices, limit=limit)

    def start_on_disk(self, options: str, workdir: str, *arguments: str) -> subprocess.Popen:
        """`python -m jax_massact` with one device, on a disk of its own.

        Args:
          options: of the mount of a file system in the place of `workdir` that nobody else sees;
            in the end it is copied to `workdir`.
        """
        # What is mounted hides the folder, but not what was opened before.
        script = (
            f'mkdir -p "$0" && exec 3<"$0" && mount -t tmpfs -o {options} none "$0" && '
            '{ "$@"; code=$?; cp -a "$0"/. /proc/self/fd/3/; exit $code; }'
        )
        return subprocess.Popen(
            [*PRIVATE, "sh", "-c", script, str(self.folder / workdir), sys.executable, "-m",
             "jax_massact", *self._words(workdir, arguments)],
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )

    def start_all(
        self, count: int, workdir: str, *arguments: str, devices: int = 4,
        last: tuple[str, ...] = (), last_limit: int | None = None,
    ) -> list[Forked]:
        """`count` processes that make one run; `last`, `last_limit`: of the last of them alone."""
        address = f"127.0.0.1:{free_port()}"
        several = (f"--coordinator={address}", f"--processes={count}", *arguments)
        more = [()] * (count - 1) + [last]
        return [
            self.start(
                workdir, *several, f"--process={i}", *more[i], devices=devices,
                limit=last_limit if i == count - 1 else None,
            )
            for i in range(count)
        ]

    def run(self, workdir: str, *arguments: str) -> tuple[int, str]:
        """Exit code and what it said, of the command in this process."""
        with contextlib.redirect_stderr(io.StringIO()) as said:
            return main(self._words(workdir, arguments)), said.getvalue()

    def _words(self, workdir: str, arguments: Sequence[str]) -> list[str]:
        return [
            "train", f"--config={self.folder / 'config.py'}",
            f"--config.data.source={self.folder / 'ids.npy'}",
            f"--workdir={self.folder / workdir}", *arguments,
        ]

    def rows(self, workdir: str) -> list[dict]:
        """What was measured, without what depends on the clock."""
        rows = read_rows(self.folder / workdir / "metrics.jsonl")
        return [{k: v for k, v in row.items() if k not in TIMED} for row in rows]

    def wait_for(self, workdir: str, step: int, process: Forked):
        """Until the run has made `step` updates."""
        path = self.folder / workdir / "metrics.jsonl"

        def reached() -> bool:
            lines = path.read_text().split("\n")[:-1] if path.exists() else []
            steps = range(step, step + 400)
            return any(f'"step": {n},' in line for line in lines[-8:] for n in steps)

        _wait(reached, process, f"{workdir} did not reach step {step}")

    def wait_for_checkpoint(self, workdir: str, process: Forked):
        """Until one is whole on disk: it is written while the run goes on."""
        _wait(lambda: bool(self.checkpoints(workdir)), process, f"{workdir} has no checkpoint")

    def checkpoints(self, workdir: str) -> list[int]:
        folder = self.folder / workdir / "checkpoints"
        return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())


def _wait(
    reached: Callable[[], bool], process: Forked, failed: str, within: float = 300
) -> None:
    until = time.monotonic() + within
    while time.monotonic() < until and process.poll() is None:
        if reached():
            return
        time.sleep(0.01)
    said = finish(process) if process.poll() is not None else "it runs"
    raise AssertionError(f"{failed}: {said}")


def finish(process: Process, within: float = 300) -> tuple[int, str]:
    """Exit code and what it said; never a hang."""
    try:
        _, said = process.communicate(timeout=within)
    except subprocess.TimeoutExpired:
        process.kill()
        _, said = process.communicate()
        raise AssertionError(f"no end within {within} s; it said {said}") from None
    return process.returncode, said


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def may_mount() -> bool:
    """Whether a file system can be mounted that this process alone sees."""
    try:
        command = [*PRIVATE, "mount", "-t", "tmpfs", "none", "/tmp"]
        return subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def child_of(process: Forked) -> int:
    """The one child of a supervising process."""
    text = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    (child,) = text.split()
    return int(child)


def kill(process: Forked) -> None:
    """SIGKILL, and with it its child."""
    process.kill()
    process.communicate(timeout=30)  # until nobody has its pipe any more


def assert_close(found: list[dict], expected: list[dict]) -> None:
    """The same rows, to rounding."""
    assert [(r["kind"], r["step"]) for r in found] == [(r["kind"], r["step"]) for r in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.keys() == b.keys()
        for key in a.keys() - {"kind", "std"}:
            np.testing.assert_allclose(
                np.array(a[key], float), np.array(b[key], float), rtol=2e-4, atol=1e-5,
                err_msg=f"{key} at {a['step']}",
            )
