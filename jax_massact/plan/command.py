"""`massact plan`: memory, traffic and time of a training run on devices that are not present."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

from jax_massact.accelerators import find_accelerator
from jax_massact.errors import ConfigError, UserError
from jax_massact.plan.estimate import MAX_DEVICES, Plan, on_devices
from jax_massact.plan.report import print_plan
from jax_massact.report.console import make_console
from jax_massact.settings import check_int
from jax_massact.train.config import TrainConfig, to_json
from jax_massact.train.metrics import write_text


def run_plan(
    settings: TrainConfig, *, devices: int, device: str, keep_mesh: bool, json_file: str | None
) -> int:
    """Makes a plan, prints its tables, and writes it as JSON to `json_file`.

    Args:
      settings: the run's.
      devices: number of devices.
      device: a row of `accelerators.ACCELERATORS`.
      keep_mesh: whether the mesh must be used as it is; otherwise a mesh of another size gets all
        devices that its other axes leave along `data`.
      json_file: None: the plan is only printed.

    Returns:
      The process's exit code: 0, or 1 where the run does not fit in the devices' memory.

    Raises:
      ConfigError: a setting is wrong, or the mesh does not suit that many devices.
    """
    check_int("--devices", devices, 1, MAX_DEVICES)
    find_accelerator(device)
    if settings.mesh.open_axis is None and settings.mesh.devices != devices and not keep_mesh:
        settings = dataclasses.replace(settings, mesh=dataclasses.replace(settings.mesh, data=-1))
    on_devices(settings, devices)  # refused before a process starts
    plan = plan_in_process(settings, devices, device)
    if json_file:
        write_text(Path(json_file), json.dumps(plan, indent=2) + "\n")
    print_plan(plan, make_console())
    return 1 if plan["fits"] == "no" else 0


def plan_in_process(settings: TrainConfig, devices: int, device: str) -> Plan:
    """Runs `plan.estimate.make_plan` in a process with as many simulated devices.

    Raises:
      ConfigError: the mesh does not suit that many devices.
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
