"""`massact plan`: memory, traffic and time of a training run on devices that are not here."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import rich.console

from jax_massact.accelerators import find_accelerator
from jax_massact.cli.settings import resolve
from jax_massact.errors import ConfigError, UserError
from jax_massact.plan.estimate import MAX_DEVICES, Plan
from jax_massact.plan.report import plan_table
from jax_massact.settings import check_int
from jax_massact.train.config import TrainConfig, to_json
from jax_massact.train.metrics import write_text


def run_plan(
    config: str, overrides: Sequence[str], *, devices: int, device: str, json_file: str | None
) -> int:
    """Plans, prints tables, and writes the plan as JSON where asked to.

    The configuration's mesh is used as it is if it has so many devices; else, unless an override
    says otherwise, with all devices that its other axes leave along `data`.

    Returns:
      The process's exit code: 0, or 1 where the run does not fit in the devices' memory.

    Raises:
      ConfigError: a setting is wrong, or the mesh does not suit so many devices.
    """
    check_int("--devices", devices, 1, MAX_DEVICES)
    find_accelerator(device)
    settings = resolve(TrainConfig, config, overrides)
    is_named = any(o.lstrip("-").startswith("config.mesh") for o in overrides)
    if settings.mesh.open_axis is None and settings.mesh.devices != devices and not is_named:
        settings = dataclasses.replace(settings, mesh=dataclasses.replace(settings.mesh, data=-1))
    plan = plan_in_process(settings, devices, device)
    if json_file:
        write_text(Path(json_file), json.dumps(plan, indent=2) + "\n")
    rich.console.Console(highlight=False).print(plan_table(plan))
    return 1 if plan["fits"] == "no" else 0


def plan_in_process(settings: TrainConfig, devices: int, device: str) -> Plan:
    """`plan.estimate.make_plan`, in a process with so many simulated devices.

    Raises:
      ConfigError: the mesh does not suit so many devices.
      UserError: the process failed.
    """
    command = [sys.executable, "-m", "jax_massact.plan.estimate"]
    # Flags of this process, say for its own accelerator, are not for that one.
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [*command, to_json(settings), str(devices), device],
        capture_output=True, text=True, env=environment | {"JAX_PLATFORMS": "cpu"},
    )
    last = (done.stderr.strip().splitlines() or ["it says nothing"])[-1]
    if done.returncode == 2:
        raise ConfigError(last)
    if done.returncode:
        raise UserError(f"the plan could not be made (exit code {done.returncode}): {last}")
    return json.loads(done.stdout)
