"""`massact probe --plan`: the probe of a model that is not loaded, on TPUs that are not here."""

import dataclasses
import json
from pathlib import Path

from jax_massact.bench.device_probe import PREFIX
from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import ConfigError
from jax_massact.loading import open_checkpoint
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.shapes import SHAPES
from jax_massact.plan.probe import ProbePlan, ProbeShape
from jax_massact.plan.process import in_process
from jax_massact.plan.report import print_probe_plan
from jax_massact.plan.topology import has_compiler, parse_device
from jax_massact.report.console import make_console
from jax_massact.report.ending import check_place, show_ending
from jax_massact.settings import check_in
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.train.config import MeshConfig
from jax_massact.train.metrics import write_text


def run_probe_plan(
    name: str,
    config: ProbeConfig,
    step: int | None,
    *,
    device: str,
    mesh: str | None,
    json_file: str | None,
) -> int:
    """Compiles the probe of one batch, prints what the compiler says, and writes it as JSON.

    Args:
      name: a model, as for `load`, of which only the configuration is read, or `random:SHAPE`.
      config: `dtype`, `batch_size`, `sequence_length` (or `image_size`), `top_k` and `definition`
        are used.
      step: the checkpoint of a training run.
      device: the topology of a TPU slice.
      mesh: None: every parameter is split over all chips.
      json_file: None: the plan is only printed.

    Returns:
      The process's exit code: 0, or 1 where the probe does not fit in the chips' memory.

    Raises:
      ConfigError: libtpu is not here or does not know the topology, the mesh does not fit it, or
        the probe does not compile.
      WeightsError: there is no such model.
      UserError: the file cannot be written.
    """
    check_place(json_file)
    if parse_device(device)[1] is None:
        raise ConfigError(f"--plan is {device!r}; expected: a slice of TPUs, such as v5e:4x4")
    if not has_compiler():
        raise ConfigError(
            "--plan needs the compiler of TPUs; expected: libtpu is installed (pip install "
            "'jax_massact[tpu-aot]')"
        )
    model, rule = _model(name, step)
    shape = ProbeShape(
        model=dataclasses.replace(model, dtype=config.dtype),
        inputs=_inputs(model, rule, config),
        top_k=config.top_k,
        definition=config.definition,
        mesh=MeshConfig.from_text(mesh or "fsdp=-1"),
    )
    plan: ProbePlan = in_process("probe", json.dumps(dataclasses.asdict(shape)), device)
    file = Path(json_file).expanduser() if json_file else None
    if file is not None:
        write_text(file, json.dumps({"model": name, **plan}, indent=2) + "\n")
    print_probe_plan(name, plan, make_console())
    if file is not None:
        show_ending(make_console(stderr=True), file)
    memory = plan["compiled"]["memory"]
    return 1 if memory["total"] > memory["available"] else 0


def _model(name: str, step: int | None) -> tuple[ModelConfig, Preprocessing | None]:
    """The configuration, and how an encoder of images wants its pictures."""
    if not name.startswith(PREFIX):
        checkpoint = open_checkpoint(name, step)
        return checkpoint.config, checkpoint.pictures
    shape = name.removeprefix(PREFIX)
    check_in("random", shape, tuple(SHAPES))
    patches = SHAPES[shape].embed.patches
    if patches is None:
        return SHAPES[shape], None
    native = patches.size * patches.grid[0]
    return SHAPES[shape], Preprocessing(edge=native, crop=native)


def _inputs(
    model: ModelConfig, rule: Preprocessing | None, config: ProbeConfig
) -> tuple[int, ...]:
    """The shape of a batch."""
    if (patches := model.embed.patches) is not None:
        assert rule is not None
        side = rule.resized(config.image_size or rule.crop, patches.size).crop
        return config.batch_size, side, side, 3
    limit = model.context_length - model.first_position
    return config.batch_size, min(config.sequence_length, limit)
