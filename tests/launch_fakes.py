"""Runs launchers with stand-ins for the commands that they start."""

import os
import subprocess
import textwrap
from collections.abc import Mapping
from pathlib import Path

LAUNCH = Path(__file__).parents[1] / "launch"
SCRIPTS = ("local.sh", "slurm.sbatch", "tpu_vm.sh", "gke.sh")


class Place:
    """A folder with fake commands, which stand first on PATH, and whatever they write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.env: dict[str, str] = {}

    def command(self, name: str, body: str) -> None:
        """Makes a fake command, written in bash; `$PLACE` is this folder."""
        path = self.bin / name
        path.write_text("#!/usr/bin/env bash\n" + textwrap.dedent(body))
        path.chmod(0o755)

    def read(self, name: str) -> str:
        path = self.folder / name
        return path.read_text() if path.exists() else ""

    def lines(self, name: str) -> list[str]:
        return self.read(name).splitlines()

    def environment(self) -> dict[str, str]:
        """Ours, less what would set a launcher, a job or a compiler."""
        kept = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("MASSACT_", "SLURM_", "XLA_", "LIBTPU_", "CUDA_", "JAX_"))
        }
        path = f"{self.bin}{os.pathsep}{kept['PATH']}"
        return kept | {"PATH": path, "PLACE": str(self.folder)} | self.env

    def start(self, script: str | Path, *arguments: str) -> subprocess.Popen[str]:
        """Starts a launcher of launch/, or a file, with its output in pipes."""
        return subprocess.Popen(
            ["bash", str(LAUNCH / script), *arguments], cwd=self.folder, text=True,
            env=self.environment(), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )

    def run(self, script: str | Path, *arguments: str) -> "Ended":
        return self.end(self.start(script, *arguments))

    def end(self, process: subprocess.Popen[str]) -> "Ended":
        out, err = process.communicate(timeout=30)
        return Ended(process.returncode, out, err)


class Ended:
    """What a launcher left."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def refused(self) -> str:
        """The one line of a launcher that did not start."""
        assert (self.code, self.out) == (2, ""), self.err
        (line,) = self.err.splitlines()
        return line


def flags(settings: Mapping[str, str]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]
