"""`massact bench train`: the training step of several variants, and of a reference, one by one.

Where the time of GPT-2 124M's step goes, and what each part was worth, is in the README ("Training
step").
"""

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jax_massact.bench import reference_train
from jax_massact.errors import ConfigError, UserError
from jax_massact.nn.variants import VARIANTS
from jax_massact.settings import check_in
from jax_massact.train.config import MeshConfig, TrainConfig, to_json

# Our variant -> the authors' file.
REFERENCES = {
    "standard": "model_default.py",
    "kv_bias": "model_attn_bias.py",
    "sink": "model_sink.py",
}
WATCH_EVERY = 100


def bench_train(
    config: TrainConfig,
    variants: Sequence[str],
    *,
    steps: int,
    windows: int,
    meshes: Sequence[MeshConfig] = (),
    profile: int = 0,
    reference: Path | None = None,
    python: str = sys.executable,
    on_row: Callable[[str], None] = lambda name: None,
) -> dict[str, Any]:
    """Times one training step of every variant, each in a process of its own.

    Args:
      config: of the run; the variant of attention is replaced.
      variants: of attention; the others are compared with the first.
      steps, windows: medians over `windows` times `steps` steps.
      meshes: times every variant on each of them, in place of the mesh of `config`, with
        `config.batch_size` sequences for each device.
      profile: how many kernels to list of each.
      reference: a folder with the authors' `model_*.py`; GPT-2 only.
      python: has torch, for the reference.
      on_row: called with each row's name before it is measured.

    Returns:
      `{"rows": {name: what train_step.measure or reference_train.measure returns}, "ratios":
      {name: {...}}}`. A row is named after its variant and, with several meshes, its mesh. Ratios
      are tokens/s `against_first` variant (on the same mesh) and, with a reference,
      `against_reference`; `watching`: tokens/s with a measurement of the activations every 100
      steps, against none; with meshes, `efficiency`: tokens/s and device, against the first mesh.

    Raises:
      ConfigError: there is no such variant, or the reference has none for it or for this model; a
        mesh has an open axis, or does not divide what it splits.
      UserError: a process fails.
    """
    for name in variants:
        check_in("variants", name, tuple(VARIANTS))
    files = _reference_files(config, variants, reference) if reference else {}
    runs = _runs(config, variants, meshes)
    rows: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        on_row(name)
        rows[name] = _run([
            *(sys.executable, "-m", "jax_massact.bench.train_step"),
            *(to_json(run), str(steps), str(windows), str(profile)),
        ]) | {"devices": run.mesh.devices}
    for name, file in files.items():
        on_row(f"reference {name}")
        settings = json.dumps(_reference_settings(config, steps, windows))
        script = str(reference_train.__file__)
        rows[f"reference {name}"] = _run([python, script, str(file), settings])
    return {"rows": rows, "ratios": _ratios(rows, runs)}


def _runs(
    config: TrainConfig, variants: Sequence[str], meshes: Sequence[MeshConfig]
) -> dict[str, TrainConfig]:
    """By the names of their rows."""
    runs = {}
    for name in variants:
        model = config.model.with_attention(variant=name)
        if not meshes:
            runs[name] = dataclasses.replace(config, model=model)
        for mesh in meshes:
            if mesh.open_axis:
                raise ConfigError(f"mesh is {mesh}; expected here: no axis of -1")
            runs[f"{name} {mesh}"] = dataclasses.replace(
                config, model=model, mesh=mesh, batch_size=config.batch_size * mesh.devices
            )
    return runs


def _ratios(
    rows: dict[str, Any], runs: dict[str, TrainConfig]
) -> dict[str, dict[str, float]]:
    speed = lambda row: rows[row]["tokens_per_second"]
    found: dict[str, dict[str, float]] = {}
    of_mesh: dict[str, str] = {}  # the first row of each mesh, and of each variant
    of_variant: dict[str, str] = {}
    for name, run in runs.items():
        variant = run.model.block.attention.variant
        first = of_mesh.setdefault(str(run.mesh), name)
        alone = of_variant.setdefault(variant, name)
        ratios = found[name] = {"against_first": speed(name) / speed(first)}
        if f"reference {variant}" in rows:
            ratios["against_reference"] = speed(name) / speed(f"reference {variant}")
        if "watch" in rows[name]:
            steps = WATCH_EVERY * rows[name]["step"]
            ratios["watching"] = steps / (steps + rows[name]["watch"])
        per_device = lambda row: speed(row) / rows[row]["devices"]
        ratios["efficiency"] = per_device(name) / per_device(alone)
    return found


def _reference_files(
    config: TrainConfig, variants: Sequence[str], folder: Path
) -> dict[str, Path]:
    if config.model.embed.positions != "learned" or config.accumulate != 1:
        raise ConfigError("--reference: the authors' code is GPT-2, without accumulation")
    folder = folder / "gpt-2" if (folder / "gpt-2").is_dir() else folder
    files = {name: folder / REFERENCES[name] for name in variants if name in REFERENCES}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise ConfigError(
            f"--reference: no file {missing[0]}; expected a checkout of "
            "https://github.com/locuslab/massive-activations"
        )
    return files


def _reference_settings(config: TrainConfig, steps: int, windows: int) -> dict[str, Any]:
    model, optimizer = config.model, config.optimizer
    return {
        "vocab_size": model.embed.vocab_size, "depth": model.depth, "width": model.width,
        "num_heads": model.block.attention.heads, "batch_size": config.batch_size,
        "sequence_length": config.sequence_length, "lr": optimizer.lr,
        "weight_decay": optimizer.weight_decay, "beta1": optimizer.beta1,
        "beta2": optimizer.beta2, "clip": optimizer.clip, "steps": steps, "windows": windows,
        "compile": True,
    }


def _run(command: list[str]) -> dict[str, Any]:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"cannot run {command[0]}: {error.strerror}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{' '.join(command[:3])} failed (exit code {done.returncode}): {last}")
    return json.loads(done.stdout.strip().splitlines()[-1])
