"""`massact bench stream`: the probe of a streamed model, against what it could take at best.

Beside the streamed probe: reading the file once with `cat`, the blocks' matmuls alone, the probe of
the loaded model where it fits, and the authors' way, transformers with blocks that are offloaded to
the disk.
"""

import collections
import contextlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.bench import measure, reference_probe
from jax_massact.bench.probe import cpus
from jax_massact.bench.random_folder import write_random_folder
from jax_massact.errors import UserError
from jax_massact.families.checkpoint import Checkpoint
from jax_massact.families.open_model import OpenModel
from jax_massact.nn.config import DType, ModelConfig
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.stream import Done
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.studies.collector import kept, probe_reading
from jax_massact.studies.fitting import why_streamed
from jax_massact.studies.frame import Prepared, prepare
from jax_massact.studies.passes import Streaming
from jax_massact.studies.probe.settings import ProbeConfig

Say = Callable[[str], None]


class HostBlocks(OpenModel):
    """As an open model, but a few of its blocks lie in the host's memory and are used in turn.

    Args:
      kept: how many blocks.
    """

    def __init__(self, checkpoint: Checkpoint, dtype: DType, kept: int):
        super().__init__(checkpoint, dtype)
        self._kept, self._arrays = kept, {}
        for layer in range(kept):
            super().read(layer)

    def read(self, layer: int) -> list[jax.Array] | dict[str, jax.Array]:
        """See `OpenModel.read`."""
        return super().read(layer % self._kept)

    def _read(self, name: str) -> np.ndarray:
        if name not in self._arrays:
            self._arrays[name] = super()._read(name)
        return self._arrays[name]


def bench_stream(
    model: str, config: ProbeConfig, *, loaded: bool, reference: str | None, reference_dtype: str,
    say: Say,
) -> dict[str, Any]:
    """Measures each way once, every one in a process of its own.

    Args:
      model: the folder of a checkpoint.
      config: of the probe.
      loaded: whether to measure the loaded model, too, where it fits into memory.
      reference: a Python with torch, transformers and accelerate; None: leave it out.
      reference_dtype: in which it computes; its sequences run one at a time, and only one is run.

    Returns:
      `{"runs": {name: {"wall", "cpu", "anonymous"}}, "best": {"cat", "matmuls", "matmuls_cpu"},
      "ratios": {...}, ...}`; seconds, and bytes of memory at its peak that no file backs.

    Raises:
      UserError: a process fails, or the model is not a folder.
    """
    prepared = prepare(model, config)
    folder, tokens = prepared.checkpoint.path, prepared.inputs.tokens
    if not folder.is_dir():
        raise UserError(f"{model} is a file; expected: a folder of safetensors, or random:SHAPE")
    files = sorted({t.file for t in prepared.checkpoint.tensors.values()})
    say("reading with cat ...")
    best = {"cat": cat(files)}
    say(f"{best['cat']:.1f} s")
    runs: dict[str, dict[str, float]] = {}
    # Of the same minutes as the streamed probe: a shared machine is not always equally fast.
    matmuls = Matmuls(prepared.checkpoint.config, tokens.size)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        np.save(scratch / "tokens.npy", tokens[:1])
        commands = _commands(prepared, config, scratch, loaded, reference, reference_dtype)
        matmuls.measure(5)
        for label, command in commands:
            say(f"{label} ...")
            forget(files)
            runs[label] = run = _run(command)
            say(f"{run['wall']:.1f} s, {run['cpu']:.1f} s of CPU time, "
                f"{run['anonymous'] / 1e6:,.0f} MB that no file backs")
            if label == "streamed probe":
                matmuls.measure(5)
        found = json.loads((scratch / "streamed" / "probe.json").read_text())
    streamed = runs["streamed probe"]
    best["matmuls"], best["matmuls_cpu"] = matmuls.seconds()
    ratios = {
        "time of the streamed probe, against the larger of cat and matmuls":
            streamed["wall"] / max(best["cat"], best["matmuls"]),
        "CPU time of the streamed probe, against that of the matmuls":
            streamed["cpu"] / best["matmuls_cpu"],
        "share of its time in which it waits for a block":
            found["seconds"]["waited"] / streamed["wall"],
    }
    if (whole := runs.get("loaded probe")) is not None:
        ratios["time of the streamed probe, against the loaded one"] = (
            streamed["wall"] / whole["wall"]
        )
    if (authors := runs.get("authors' way, one sequence")) is not None:
        ratios["time of the authors' way for as many sequences, against the streamed probe"] = (
            authors["wall"] * len(tokens) / streamed["wall"]
        )
    return {
        "model": Path(model).name, "sequences": len(tokens),
        "sequence_length": int(tokens.shape[1]), "dtype": config.dtype, "cpus": cpus(),
        "bytes": sum(path.stat().st_size for path in files), "best": best, "runs": runs,
        "seconds": found["seconds"], "ratios": ratios,
    }


def _commands(
    prepared: Prepared, config: ProbeConfig, scratch: Path, loaded: bool, reference: str | None,
    dtype: str,
) -> list[tuple[str, list[str]]]:
    values = {
        "text": config.text, "bos": config.bos, "sequences": config.sequences,
        "sequence_length": config.sequence_length, "batch_size": config.batch_size,
        "dtype": config.dtype,
    }
    folder = str(prepared.checkpoint.path)

    def probe(workdir: str, stream: str) -> list[str]:
        settings = values | {"stream": stream}
        flags = [f"--config.{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "jax_massact", "probe", folder]
        return [*command, f"--workdir={scratch / workdir}", *flags]

    commands = [("streamed probe", probe("streamed", "true"))]
    if loaded and why_streamed(prepared.checkpoint, config.dtype) is None:
        commands.append(("loaded probe", probe("loaded", "false")))
    if reference is not None:
        script = str(reference_probe.__file__)
        commands.append(("authors' way, one sequence", [
            *(reference, script, "--folder", folder, "--tokens", str(scratch / "tokens.npy")),
            *("--dtype", dtype, "--threads", str(cpus()), "--out", str(scratch / "theirs.json")),
        ]))
    return commands


def _run(command: Sequence[str]) -> dict[str, float]:
    if shutil.which(command[0]) is None:
        raise UserError(f"cannot run {command[0]}: no such program")
    done = subprocess.run(
        [sys.executable, "-I", str(measure.__file__), *command], stdout=subprocess.PIPE, check=True
    )
    result = json.loads(done.stdout)
    if result["code"]:
        last = " / ".join(result["last"])
        raise UserError(f"{' '.join(command[:4])} failed (exit code {result['code']}): {last}")
    return {name: result[name] for name in ("wall", "cpu", "anonymous")}


def cat(files: Sequence[Path]) -> float:
    """Seconds to read files once, not from the system's memory."""
    forget(files)
    start = time.perf_counter()
    with open(os.devnull, "wb") as nothing:
        subprocess.run(["cat", *map(str, files)], stdout=nothing, check=True)
    return time.perf_counter() - start


def forget(files: Sequence[Path]) -> None:
    """Has the system forget what it holds of files."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Matmuls:
    """The float32 matmuls of all blocks, each of a matrix's own size and laid out as in a file.

    Args:
      config: of the model.
      tokens: how many pass the blocks.
    """

    def __init__(self, config: ModelConfig, tokens: int):
        rows = min(tokens, 2048)
        self._passes = tokens / rows
        self._matmuls = collections.Counter[tuple[int, int, int]]()
        for name, leaf in parameters(abstract(config)).items():
            if is_stacked(name) and leaf.ndim > 2:
                inputs = parameter(name).inputs
                inner = math.prod(leaf.shape[1 : 1 + inputs] if inputs else leaf.shape[1:-1])
                self._matmuls[rows, inner, leaf.size // leaf.shape[0] // inner] += leaf.shape[0]
        self._run = jax.jit(lambda x, w: jnp.einsum("ri,oi->ro", x, w))
        self._found: list[Any] = []

    def measure(self, times: int) -> None:
        """Measures each so many times."""
        for _ in range(times):
            seconds = np.zeros(2)
            for (rows, inner, outer), number in self._matmuls.items():
                operands = jnp.ones((rows, inner)), jnp.ones((outer, inner))
                run = self._run.lower(*operands).compile()
                start, cpu = time.perf_counter(), time.process_time()
                run(*operands).block_until_ready()
                once = time.perf_counter() - start, time.process_time() - cpu
                seconds += number * self._passes * np.array(once)
            self._found.append(seconds)

    def seconds(self) -> tuple[float, float]:
        """Seconds, and of CPU time, by the medians of what was measured."""
        wall, cpu = np.median(self._found, axis=0)
        return float(wall), float(cpu)


def bench_host_blocks(folder: Path, config: ProbeConfig, kept_blocks: int) -> dict[str, Any]:
    """The streamed probe of blocks in the host's memory, in this process: the device's part.

    Args:
      folder: of a checkpoint.
      kept_blocks: how many of its blocks are read, and used in turn.

    Returns:
      Seconds, the share of them in which the device waits for the host, and its memory at the peak.
    """
    prepared = prepare(str(folder), config)
    inputs = prepared.inputs
    model = HostBlocks(prepared.checkpoint, config.dtype, kept_blocks)
    reading = probe_reading(top_k=config.top_k, definition=config.definition)
    size = min(config.batch_size, len(inputs))
    found: list[Done] = []
    for _ in range(2):  # the first compiles
        runner = Streaming(model)
        for _ in runner.run(reading, kept(inputs, size)):
            pass
        found.append(runner.done[-1])
    done, device = found[-1], jax.devices()[0]
    memory = (device.memory_stats() or {}).get("peak_bytes_in_use")
    return {
        "model": folder.name, "sequences": len(inputs), "sequence_length": inputs.tokens.shape[1],
        "dtype": config.dtype, "device": device.device_kind, "blocks": done.depth,
        "kept_blocks": kept_blocks, "bytes": done.total, "seconds": done.seconds,
        "waited": done.waited, "waits": done.waited / done.seconds, "peak": memory,
    }


@contextlib.contextmanager
def random_folder(
    config: ModelConfig, name: str, folder: Path | None, filled: int, say: Say
) -> Iterator[Path]:
    """A folder of random weights, which is gone afterwards.

    Args:
      name: of the folder.
      folder: where it is made; None: where temporary files are.
      filled: how many of the first blocks have numbers; 0: all.

    Raises:
      UserError: it cannot be written.
    """
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary, name)
        say("writing random weights ...")
        try:
            write_random_folder(path, config, filled=range(filled) if filled else None)
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
        yield path
