"""`massact bench probe`: time and memory of the probe, whole processes, against two references.

The references are a run that computes logits only, and the authors' way (`reference_probe`), the
latter in a Python that has torch. All get the same checkpoint, sequences and number of threads.
"""

import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_massact.bench import measure, reference_probe
from jax_massact.errors import UserError
from jax_massact.studies.frame import prepare
from jax_massact.studies.probe.settings import ProbeConfig


@dataclasses.dataclass(frozen=True)
class Run:
    """One finished process.

    Attributes:
      wall: seconds from its start to its end.
      peak: largest resident memory, in bytes.
    """

    wall: float
    peak: int


def run_process(command: Sequence[str]) -> Run:
    """Runs a command to its end, its output thrown away.

    Raises:
      UserError: it cannot be started, or fails.
    """
    if shutil.which(command[0]) is None:
        raise UserError(f"cannot run {command[0]}: no such program")
    done = subprocess.run(
        [sys.executable, "-I", str(measure.__file__), *command],
        stdout=subprocess.PIPE,
        check=True,
    )
    result = json.loads(done.stdout)
    if result["code"]:
        last = " / ".join(result["last"])
        raise UserError(f"{' '.join(command[:4])} failed (exit code {result['code']}): {last}")
    return Run(result["wall"], result["peak"])


def bench_probe(
    model: str, config: ProbeConfig, *, reference: str | None, repeat: int
) -> dict[str, Any]:
    """Measures the probe and its references in turn, `repeat` times.

    Args:
      model: a checkpoint; for the reference it must be a GGUF file.
      config: of the probe; float32.
      reference: the Python that has torch, transformers, accelerate and gguf; None: leave it out.
      repeat: how often; medians are reported.

    Returns:
      `{"runs": {name: {"wall", "peak", "walls"}}, "ratios": {...}, "differences": {...}, ...}`,
      seconds and bytes; differences are the largest relative ones over layers, of the first
      sequence, between the probe and the reference.

    Raises:
      UserError: a process fails, or the reference cannot read the checkpoint.
    """
    prepared = prepare(model, config)
    path, tokens = prepared.checkpoint.path, prepared.inputs.tokens
    if reference and path.suffix != ".gguf":
        raise UserError(f"{path.name}: the reference reads GGUF files only")
    if reference and shutil.which(reference) is None:
        raise UserError(f"cannot run {reference}; expected: a Python that has torch")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "tokens.npy", tokens)
        commands = _commands(model, path, config, folder, len(tokens), reference)
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(repeat):
            for name, command in commands.items():
                runs[name].append(run_process(command))
        summary = {
            name: {
                "wall": statistics.median(r.wall for r in done),
                "walls": [r.wall for r in done],
                "peak": int(statistics.median(r.peak for r in done)),
            }
            for name, done in runs.items()
        }
        differences = _differences(folder) if reference else {}
    probe = summary["probe"]
    ratios = {
        "peak memory, 3 x the sequences": summary["probe, 3 x the sequences"]["peak"]
        / probe["peak"],
        "peak memory, against logits only": probe["peak"] / summary["logits only"]["peak"],
        "time, against logits only": probe["wall"] / summary["logits only"]["wall"],
    }
    if reference:
        ratios["time of the authors' way, against the probe"] = (
            summary["authors' way"]["wall"] / probe["wall"]
        )
    return {
        "model": model,
        "sequences": len(tokens),
        "sequence_length": int(tokens.shape[1]),
        "repeat": repeat,
        "cpus": cpus(),
        "runs": summary,
        "ratios": ratios,
        "differences": differences,
    }


def _commands(
    model: str, path: Path, config: ProbeConfig, folder: Path, sequences: int, reference: str | None
) -> dict[str, list[str]]:
    def flags(sequences: int) -> list[str]:
        values = {
            "text": config.text,
            "bos": config.bos,
            "sequences": sequences,
            "sequence_length": config.sequence_length,
            "batch_size": config.batch_size,
        }
        return [f"--config.{name}={value}" for name, value in values.items()]

    def probe(workdir: str, sequences: int) -> list[str]:
        command = [sys.executable, "-m", "jax_massact", "probe", model]
        return [*command, f"--workdir={folder / workdir}", *flags(sequences)]

    commands = {
        "probe": probe("probe", sequences),
        "probe, 3 x the sequences": probe("probe3", 3 * sequences),
        "logits only": [
            *(sys.executable, "-m", "jax_massact.bench.forward", model),
            json.dumps(dataclasses.asdict(config)),
        ],
    }
    if reference:
        # One sequence as well, so that the probe's per-layer means are of that sequence.
        commands["probe, 1 sequence"] = probe("first", 1)
        script = str(reference_probe.__file__)
        threads = str(cpus())
        commands["authors' way"] = [
            *(reference, script, "--gguf", str(path), "--tokens", str(folder / "tokens.npy")),
            *("--out", str(folder / "reference.json"), "--threads", threads),
        ]
    return commands


def _differences(folder: Path) -> dict[str, float]:
    ours = json.loads((folder / "first" / "probe.json").read_text())["layers"]
    theirs = json.loads((folder / "reference.json").read_text())["layers"]
    worst: dict[str, float] = {}

    def note(name: str, a: float, b: float) -> None:
        worst[name] = max(worst.get(name, 0.0), abs(a - b) / max(abs(b), 1e-30))

    for a, b in zip(ours, theirs, strict=True):
        note("median", a["median"], b["median"])
        note("kurtosis", a["kurtosis"], b["kurtosis"])
        for x, y in zip(a["top"], b["top"], strict=True):
            note("top magnitudes", x["magnitude"], y["magnitude"])
        for q in b["quantile"]:
            note("quantiles", a["quantile"][q], b["quantile"][q])
    return worst


def cpus() -> int:
    """Number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
