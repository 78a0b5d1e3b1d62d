"""The update of a run, compiled for TPUs that are not there by their own compiler.

    python -m jax_massact.plan.compiled SETTINGS DEVICE

SETTINGS is a `TrainConfig` as JSON and DEVICE a topology such as `v5e:4x4`; prints one line of
JSON. Needs libtpu, and `topology.ENVIRONMENT`. What it finds is what will run: the same program
with the same kernels, the memory that the compiler allocates, and the collectives that it emits.
"""

import dataclasses
import importlib.metadata
import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any, TypedDict

import jax

from jax_massact.accelerators import ACCELERATORS
from jax_massact.errors import ConfigError
from jax_massact.mesh import make_mesh
from jax_massact.plan.collectives import Collective, find_collectives, mesh_axes
from jax_massact.plan.estimate import on_devices
from jax_massact.plan.process import answer
from jax_massact.plan.topology import Topology, parse_device, topology_devices
from jax_massact.settings import from_mapping
from jax_massact.train.config import TrainConfig
from jax_massact.train.step import lower_update


class CompiledMemory(TypedDict):
    """Bytes of each device: what goes in (the state and a batch), what comes out in other places,
    what is temporary, and the program itself; `total` is all of these, of `available`."""

    arguments: int
    outputs: int
    temporary: int
    program: int
    total: int
    available: int


class Emitted(TypedDict):
    """Collectives of one kind along the same mesh axes: how many instructions of the program, and
    how many of them run while others compute."""

    kind: str
    axes: list[str]
    count: int
    asynchronous: int


class Compiled(TypedDict):
    """What the compiler made of one program.

    Attributes:
      seconds: it took to lower and to compile.
      cpu_seconds: of processors that this took, on all cores together.
      kernels: calls of Pallas kernels in the program (splash attention: forward, and two backward).
      flops, bytes: of one device, by the compiler's cost analysis, which counts the body of a
        loop once; None: it does not say.
    """

    topology: str
    seconds: float
    cpu_seconds: float
    memory: CompiledMemory
    collectives: list[Emitted]
    kernels: int
    flops: float | None
    bytes: float | None
    versions: dict[str, str]


def compile_for(config: TrainConfig, topology: Topology) -> Compiled:
    """Compiles the update of a run; nothing is computed.

    Raises:
      ConfigError: the mesh does not fit the topology, libtpu does not know it, or the update does
        not compile for it.
    """
    # As it will run: blocks in a loop, as the estimate takes them, are another program.
    config = dataclasses.replace(on_devices(config, topology.devices), unroll=config.unroll)
    mesh = make_mesh(**config.mesh.sizes, devices=topology_devices(topology))
    return compile_lowered("the update", lambda: lower_update(config, mesh), topology, mesh)


def compile_lowered(
    what: str, lower: Callable[[], jax.stages.Lowered], topology: Topology, mesh: jax.sharding.Mesh
) -> Compiled:
    """Compiles a program for a topology, and reads what the compiler says of it.

    Args:
      what: the program's name in errors.
      lower: gives the program, lowered for the devices of `mesh`.

    Raises:
      ConfigError: it does not compile.
    """
    start, cpu_start = time.perf_counter(), time.process_time()
    lowered = lower()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise ConfigError(
            f"{what} does not compile for {topology.name}: {_reason(str(error))}"
        ) from None
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    text = compiled.as_text() or ""
    found = compiled.memory_analysis()
    assert found is not None  # libtpu always says
    memory = {
        "arguments": found.argument_size_in_bytes,
        "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }
    available = int(ACCELERATORS[topology.accelerator].memory)
    costs = compiled.cost_analysis() or {}
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    return Compiled(
        topology=topology.name,
        seconds=seconds,
        cpu_seconds=cpu_seconds,
        memory=CompiledMemory(**memory, total=sum(memory.values()), available=available),
        collectives=_emitted(find_collectives(text, topology.devices), sizes),
        kernels=text.count('custom_call_target="tpu_custom_call"'),
        flops=costs.get("flops"),
        bytes=costs.get("bytes accessed"),
        versions={name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    )


def _reason(message: str) -> str:
    """The lines of an error of XLA that say what is wrong: memory is explained at length."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return " ".join(lines[:2])[:400]


def _emitted(collectives: list[Collective], sizes: dict[str, int]) -> list[Emitted]:
    rows: dict[tuple[str, tuple[str, ...]], Counter] = defaultdict(Counter)
    for c in collectives:
        rows[c.kind, mesh_axes(c.groups, sizes)][c.asynchronous] += 1
    return [
        Emitted(kind=kind, axes=list(axes), count=count.total(), asynchronous=count[True])
        for (kind, axes), count in sorted(rows.items())
    ]


def main(settings: str, device: str) -> int:
    """See `process.answer`."""

    def make() -> Any:
        _, topology = parse_device(device)
        assert topology is not None
        return compile_for(from_mapping(TrainConfig, json.loads(settings)), topology)

    return answer(make)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
