"""Time of one training step, in a process of its own.

    python -m jax_massact.bench.train_step SETTINGS STEPS WINDOWS [PROFILE]

SETTINGS is a `TrainConfig` as JSON. Tokens are random: the arithmetic does not depend on them. With
PROFILE, that many kernels that took most time are listed. Prints one line of JSON.
"""

import json
import statistics
import sys
import time
from typing import Any

import jax
import numpy as np

from jax_massact.bench.kernels import communication, longest, run_kernels
from jax_massact.settings import from_mapping
from jax_massact.train.config import TrainConfig
from jax_massact.train.rows import random_rows, split_rows
from jax_massact.train.step import (
    State,
    compile_update,
    make_mesh,
    new_state,
    place,
)
from jax_massact.train.watch import watch

_PROFILED = 5  # steps


def measure(config: TrainConfig, *, steps: int, windows: int, profile: int = 0) -> dict[str, Any]:
    """Compiles the step and runs it `windows` times `steps` times.

    Returns:
      `compile` and `watch` (one measurement of the activations, median) in seconds, `step` in
      seconds, median over windows, `windows` of them; `tokens_per_second`; bytes of device memory
      that the compiled step needs beside the state (`temporary`) and the largest ever in use
      (`peak`, null where the device does not say), on one device; `loss` of the last step; with
      `profile`, `kernels`: name, calls and milliseconds in one step; on several accelerators,
      what `kernels.communication` returns.
    """
    mesh = make_mesh(config.mesh)
    rng = np.random.default_rng(0)
    tokens = random_rows(config, rng)
    begin = time.perf_counter()
    update = compile_update(config, mesh)
    compiled = time.perf_counter() - begin
    state, batch = new_state(config, mesh), place(tokens, config.accumulate, mesh)
    for _ in range(3):
        state, metrics = update(state, batch)
    jax.block_until_ready(metrics)
    seconds = []
    for _ in range(windows):
        begin = time.perf_counter()
        for _ in range(steps):
            state, metrics = update(state, batch)
        jax.block_until_ready(metrics)
        seconds.append((time.perf_counter() - begin) / steps)
    step = statistics.median(seconds)
    found = {
        "compile": compiled,
        "step": step,
        "windows": seconds,
        "tokens_per_second": config.batch_size * config.sequence_length / step,
        "temporary": update.memory_analysis().temp_size_in_bytes,
        "peak": (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use"),
        "loss": float(metrics.loss),
        "device": jax.devices()[0].device_kind,
    }
    if config.watch.every:
        found["watch"] = _time_watch(config, state, tokens, mesh)
    if profile or mesh.size > 1:

        def run():
            nonlocal state
            for _ in range(_PROFILED):
                state, metrics = update(state, batch)
            return metrics

        kernels = run_kernels(run)
        if profile:
            found["kernels"] = longest(kernels, profile, steps=_PROFILED)
        if kernels and mesh.size > 1:
            found |= communication(kernels, steps=_PROFILED)
    return found


def _time_watch(config: TrainConfig, state: State, tokens: np.ndarray, mesh: Any) -> float:
    run = jax.jit(lambda model, rows: watch(model, split_rows(config.model, rows)[0], config.watch))
    some = tokens[: config.watch.sequences]
    seconds = []
    with jax.set_mesh(mesh):
        for _ in range(4):
            begin = time.perf_counter()
            jax.device_get(run(state.model, some))
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[1:])


def main(settings: str, steps: str, windows: str, profile: str = "0") -> None:
    config = from_mapping(TrainConfig, json.loads(settings))
    result = measure(config, steps=int(steps), windows=int(windows), profile=int(profile))
    print(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
