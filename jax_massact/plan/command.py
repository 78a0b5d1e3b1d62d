"""`massact plan`: memory, traffic and time of a training run on devices that are not present."""

import dataclasses
import json
from pathlib import Path

from jax_massact.errors import ConfigError
from jax_massact.plan.compiled import Compiled
from jax_massact.plan.estimate import MAX_DEVICES, Plan, on_devices
from jax_massact.plan.process import in_process
from jax_massact.plan.remedies import Remedy, remedies
from jax_massact.plan.report import print_plan
from jax_massact.plan.topology import has_compiler, parse_device
from jax_massact.report.console import make_console
from jax_massact.report.ending import check_place, show_ending
from jax_massact.settings import check_int
from jax_massact.train.config import TrainConfig, to_json
from jax_massact.train.metrics import write_text


def run_plan(
    settings: TrainConfig,
    *,
    devices: int | None,
    device: str,
    keep_mesh: bool,
    json_file: str | None,
) -> int:
    """Makes a plan, prints its tables, and writes it as JSON to `json_file`.

    Args:
      settings: the run's.
      devices: number of devices; None: those of the topology that `device` names.
      device: a row of `accelerators.ACCELERATORS`, or the topology of a TPU slice such as
        `v5e:4x4`: the update is then compiled by the compiler of TPUs, too, if libtpu is here.
      keep_mesh: whether the mesh must be used as it is; otherwise a mesh of another size gets all
        devices that its other axes leave along `data`.
      json_file: None: the plan is only printed.

    Returns:
      The process's exit code: 0, or 1 where the run does not fit in the devices' memory.

    Raises:
      ConfigError: a setting is wrong, the mesh does not suit that many devices, or the update does
        not compile.
    """
    check_place(json_file)
    accelerator, topology = parse_device(device)
    if topology is not None:
        if devices not in (None, topology.devices):
            raise ConfigError(
                f"--devices is {devices}; expected: {topology.devices}, which {topology.name} has, "
                "or nothing"
            )
        devices = topology.devices
    if devices is None:
        raise ConfigError(
            f"--devices is missing; expected: how many {device}, or the topology of a TPU slice "
            "as --device"
        )
    check_int("--devices", devices, 1, MAX_DEVICES)
    if settings.mesh.open_axis is None and settings.mesh.devices != devices and not keep_mesh:
        settings = dataclasses.replace(settings, mesh=dataclasses.replace(settings.mesh, data=-1))
    on_devices(settings, devices)  # refused before a process starts
    plan = plan_in_process(settings, devices, accelerator)
    compiled = None
    if topology is not None and has_compiler():
        compiled = compile_in_process(settings, device)
    elif topology is not None:
        plan["notes"].append(
            "an estimate only: the compiler of TPUs is not installed (pip install "
            "'jax_massact[tpu-aot]')"
        )
    remedy = None
    if plan["fits"] == "no":
        remedy = _remedy(settings, plan, devices, accelerator)
    file = Path(json_file).expanduser() if json_file else None
    if file is not None:
        write_text(file, json.dumps(plan | {"compiled": compiled}, indent=2) + "\n")
    print_plan(plan, compiled, remedy, make_console())
    if file is not None:
        show_ending(make_console(stderr=True), file)
    memory = plan["memory"] if compiled is None else compiled["memory"]
    return 1 if memory["total"] > memory["available"] else 0


def plan_in_process(settings: TrainConfig, devices: int, accelerator: str) -> Plan:
    """Runs `plan.estimate.make_plan` in a process with as many simulated devices.

    Raises:
      ConfigError: the mesh does not suit that many devices.
      UserError: the process failed.
    """
    return in_process("estimate", to_json(settings), str(devices), accelerator)


def compile_in_process(settings: TrainConfig, topology: str) -> Compiled:
    """Runs `plan.compiled.compile_for` in a process that takes no chips of this machine.

    Raises:
      ConfigError: libtpu does not know the topology, or the update does not compile for it.
      UserError: the process failed.
    """
    return in_process("compiled", to_json(settings), topology)


def _remedy(
    settings: TrainConfig, plan: Plan, devices: int, accelerator: str
) -> tuple[Remedy, Plan] | None:
    """The first change of the settings with which the run fits, and its plan."""
    for remedy in remedies(settings, plan):
        changed = plan_in_process(remedy.settings, devices, accelerator)
        if changed["fits"] != "no":
            return remedy, changed
    return None
