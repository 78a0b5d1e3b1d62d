"""An estimate of a training run: memory, traffic and time of one update on absent devices.

    python -m jax_massact.plan.estimate SETTINGS DEVICES DEVICE

SETTINGS is a `TrainConfig` as JSON; prints one line of JSON. The update is compiled for as many
simulated CPU devices, and never run. Only what does not depend on the device is read from it:
the layout of the state, the buffers that must live at once, and what the partitioner sends where.

Four things differ between XLA for CPU and XLA for accelerators, and are corrected here:

- It computes bfloat16 in float32, and would send and keep twice the bytes. The plan is compiled in
  float16, which it keeps, and which is as large.
- It has no flash attention. `Standin` takes its place: an operation of no meaning with the same
  operands, results and residuals, so that no [T, T] array is ever counted that a device would not
  have.
- It never makes a reduce-scatter of an all-reduce of which each device keeps a part. The gradients
  of `fsdp` parameters are such: the lower bound takes them as reduce-scatter, the upper as they
  are.
- It copies what an update in place reads twice: the optimizer's state. The plan is compiled with a
  new state beside the old one, where gradients take no memory of their own; that of one set of
  gradients is counted in the place of the new state's.

What remains uncertain: fusion, and with it the memory of activations, is XLA for CPU's; an
accelerator's compiler joins some collectives, makes others twice, or hides them behind arithmetic;
latencies are not counted. docs/results/plan-tpu.json holds it against XLA for TPU, which compiles
for chips that are not there. Where it is above, XLA for CPU makes of each product of matrices an
array of float32: of GPT-2 1.3B, 786 MiB for the logits and as much for their gradient; of LLaMA 7B,
in a block that is computed again, 344 MiB for each [8192, 11008]. It is below, by 6 to 21%, for
some batches in parts; the program itself, 0.02 to 0.16 GiB, is not counted.
"""

import copy
import dataclasses
import json
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.accelerators import Accelerator, find_accelerator
from jax_massact.errors import ConfigError
from jax_massact.nn import attention
from jax_massact.nn.acts import Mask
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.plan.collectives import (
    Collective,
    find_collectives,
    mesh_axes,
    sent,
)
from jax_massact.plan.process import answer
from jax_massact.settings import check_int, from_mapping
from jax_massact.train.config import TrainConfig
from jax_massact.train.layout import describe_layout, step_memory
from jax_massact.train.metrics import flops_per_token, idle_parameters
from jax_massact.train.step import lower_update, make_mesh, parameter_count

# The least of its peak that a device is expected to reach between collectives, for the upper bound.
# One H200 was measured at 0.46 with GPT-2 124M, the smallest and least favourable of our shapes.
LEAST_EFFICIENCY = 1 / 3
# Beyond this share of the memory a run is likely to fail all the same: the runtime takes its part.
TIGHT = 0.9
MAX_DEVICES = 4096

# Half the time of a compilation is machine code that nobody runs; none of it needs to be in parts.
_OPTIONS: dict[str, str | bool] = {
    "xla_backend_optimization_level": "0", "xla_cpu_parallel_codegen_split_count": "1",
}


class Memory(TypedDict):
    """Bytes on each device.

    `activations` is all that the compiled update needs beside its arguments and the gradients;
    `total` is all of these together, of `available`.
    """

    parameters: int
    optimizer: int
    gradients: int
    activations: int
    total: int
    available: int


class Traffic(TypedDict):
    """All collectives of one kind along the same mesh axes, in one update.

    `bytes` are those of the whole results, `sent` what each device sends for them at least, and
    `seconds` between a lower and an upper bound.
    """

    kind: str
    axes: list[str]
    devices: int
    count: int
    bytes: int
    sent: int
    seconds: tuple[float, float]


class Plan(TypedDict):
    """One update on paper.

    Attributes:
      mesh: its axes and their sizes.
      flops: that the update needs; for MFU.
      executed_flops: with what rematerialization computes again.
      seconds: `arithmetic` at the device's peak; `memory`: the state read and written once;
        `communication`, lower and upper; `overlapped`: the largest of these, if all else hides
        behind it; `added`: their sum; `slow`: their sum, with arithmetic at LEAST_EFFICIENCY of the
        peak.
      tokens_per_second, mfu: for `slow` and `overlapped`: what is expected lies between.
      fits: `yes`, `tight` or `no`.
      notes: what to know about these numbers.
    """

    device: str
    devices: int
    mesh: dict[str, int]
    parameters: int
    tokens: int
    flops: float
    executed_flops: float
    memory: Memory
    traffic: list[Traffic]
    seconds: dict[str, Any]
    tokens_per_second: tuple[float, float]
    mfu: tuple[float, float]
    fits: str
    notes: list[str]
    source: str


@dataclasses.dataclass(frozen=True)
class Standin:
    """In the place of a flash kernel: what it reads, writes and keeps, but not what it computes.

    Attributes:
      multiple: as the kernel's.
      head_dim: what it takes: a multiple of the first number, at most the second.
    """

    multiple: int
    head_dim: tuple[int, int]

    def unfit(self, q: jax.ShapeDtypeStruct, mask: Mask) -> str | None:
        """Why the device's kernel cannot take such queries."""
        del mask
        step, largest = self.head_dim
        if q.dtype != jnp.float16 or q.shape[-1] % step or q.shape[-1] > largest:
            return "it takes 16 bit and other head dimensions"
        return None

    def forward(self, q, k, v, span):
        del span
        out = q + jnp.repeat(k + v, q.shape[2] // k.shape[2], axis=2)
        return out, out.sum(-1, dtype=jnp.float32).swapaxes(1, 2)

    def backward(self, q, k, v, out, lse, cotangent, span):
        del span
        dq = q + out * cotangent + lse.swapaxes(1, 2)[..., None].astype(q.dtype)
        of_heads = dq.reshape(*k.shape[:3], -1, k.shape[3]).sum(3, dtype=k.dtype)
        return dq, of_heads + k, of_heads + v


def on_devices(config: TrainConfig, devices: int) -> TrainConfig:
    """`config` with a mesh of so many devices, in the form that compiles soonest.

    Raises:
      ConfigError: the mesh does not fit the devices, or does not divide what it splits.
    """
    config = dataclasses.replace(config, mesh=config.mesh.on(devices), unroll=False, seed=0)
    if config.mesh.devices != devices:
        raise ConfigError(
            f"mesh is {config.mesh}, {config.mesh.devices} devices; --devices is {devices}; one "
            "axis may be -1: all that the others leave"
        )
    return config


def make_plan(config: TrainConfig, devices: int, device: str) -> Plan:
    """Compiles one update for so many simulated devices, and adds up.

    Changes this process's attention kernels: call it in a process of its own, with `jax_platforms`
    `cpu` and `jax_num_cpu_devices` at least `devices`.

    Args:
      config: of the run; its mesh may leave one axis open.
      devices: how many.
      device: a row of `devices.ACCELERATORS`.

    Raises:
      ConfigError: the mesh does not fit the devices, or does not divide what it splits.
    """
    check_int("--devices", devices, 1, MAX_DEVICES)
    accelerator = find_accelerator(device)
    config = on_devices(config, devices)
    mesh = make_mesh(config.mesh)
    _use_standin(accelerator)
    with jax.set_mesh(mesh):
        lowered = lower_update(_in_half(config), mesh, in_place=False)
        compiled = lowered.compile(compiler_options=_OPTIONS)
    collectives = find_collectives(compiled.as_text() or "", devices)
    domain = min(accelerator.domain, devices // config.mesh.dcn)
    return _add_up(config, device, accelerator, mesh, compiled, collectives, domain)


def _add_up(
    config: TrainConfig,
    device: str,
    accelerator: Accelerator,
    mesh: jax.sharding.Mesh,
    compiled: Any,
    collectives: list[Collective],
    domain: int,
) -> Plan:
    tokens = config.batch_size * config.sequence_length
    flops = tokens * flops_per_token(
        config.model, parameter_count(config), config.sequence_length
    )
    executed = flops + (tokens * _recomputed_per_token(config) if config.remat else 0)
    memory = _memory(config, mesh, compiled, accelerator)
    traffic = _traffic(collectives, config.mesh.sizes, accelerator, domain)
    peak = accelerator.flops * mesh.size
    state = memory["parameters"] + memory["optimizer"]
    seconds = _seconds(executed / peak, 2 * state / accelerator.memory_bandwidth, traffic)
    bounds = seconds["slow"], seconds["overlapped"]
    share = memory["total"] / memory["available"]
    return Plan(
        device=device,
        devices=mesh.size,
        mesh=config.mesh.sizes,
        parameters=parameter_count(config),
        tokens=tokens,
        flops=flops,
        executed_flops=executed,
        memory=memory,
        traffic=traffic,
        seconds=seconds,
        tokens_per_second=(tokens / bounds[0], tokens / bounds[1]),
        mfu=(flops / peak / bounds[0], flops / peak / bounds[1]),
        fits="no" if share > 1 else "tight" if share > TIGHT else "yes",
        notes=_notes(config, accelerator, collectives),
        source=accelerator.source,
    )


def _seconds(arithmetic: float, memory: float, traffic: list[Traffic]) -> dict[str, Any]:
    low, high = (sum(row["seconds"][i] for row in traffic) for i in (0, 1))
    return {
        "arithmetic": arithmetic,
        "memory": memory,
        "communication": (low, high),
        "overlapped": max(arithmetic, memory, low),
        "added": arithmetic + memory + high,
        "slow": arithmetic / LEAST_EFFICIENCY + memory + high,
    }


def _memory(
    config: TrainConfig, mesh: jax.sharding.Mesh, compiled: Any, accelerator: Accelerator
) -> Memory:
    layout, step = describe_layout(config, mesh), step_memory(compiled)
    assert step is not None  # XLA for CPU always says
    # Float32, laid out as their parameters. While they live, the memory of the new state is theirs.
    gradients = layout.parameters
    return Memory(
        parameters=layout.parameters,
        optimizer=layout.optimizer,
        gradients=gradients,
        activations=step.argument - layout.parameters - layout.optimizer + step.temp,
        total=step.argument + step.temp + gradients,
        available=int(accelerator.memory),
    )


def _traffic(
    collectives: list[Collective],
    sizes: Mapping[str, int],
    accelerator: Accelerator,
    domain: int,
) -> list[Traffic]:
    rows: dict[tuple[str, tuple[str, ...]], list[Collective]] = defaultdict(list)
    for c in collectives:
        rows[c.kind, mesh_axes(c.groups, sizes)].append(c)
    traffic = []
    for (kind, axes), row in rows.items():
        seconds = [link_seconds(c, sizes, accelerator, domain) for c in row]
        traffic.append(
            Traffic(
                kind=kind,
                axes=list(axes),
                devices=row[0].devices,
                count=sum(c.times for c in row),
                bytes=sum(c.times * c.bytes for c in row),
                sent=int(sum(c.times * sent(kind, c.bytes, c.devices) for c in row)),
                seconds=(sum(low for low, _ in seconds), sum(high for _, high in seconds)),
            )
        )
    return sorted(traffic, key=lambda row: -row["seconds"][1])


def link_seconds(
    c: Collective, sizes: Mapping[str, int], accelerator: Accelerator, domain: int
) -> tuple[float, float]:
    """Seconds that a collective needs the links for, in all its runs: at least, at most.

    Fast links join `domain` neighbours; a group that reaches further first works inside each
    domain, then between them, where every device sends its part through its own share of the
    network. At least: both at once, over all links of a device, and an all-reduce along `fsdp` is a
    reduce-scatter, after which the other axes reduce a part only. At most: one after the other,
    over those links alone that lie along one axis of a torus, and an all-reduce is one.
    """
    inside, between = _volume(c.kind, c.bytes, c.groups[0], domain)
    high = inside / (accelerator.link / accelerator.torus) + between / accelerator.network
    if c.kind == "all-reduce" and "fsdp" in mesh_axes(c.groups, sizes):
        scattered, rest = _along_fsdp(c.groups[0], sizes)
        first = _volume("reduce-scatter", c.bytes, scattered, domain)
        then = _volume("all-reduce", c.bytes / len(scattered), rest, domain)
        inside, between = first[0] + then[0], first[1] + then[1]
    low = max(inside / accelerator.link, between / accelerator.network)
    return c.times * low, c.times * high


def _volume(kind: str, size: float, members: np.ndarray, domain: int) -> tuple[float, float]:
    """Bytes that each device sends inside its domain, and to other domains."""
    domains = members // domain
    near = int((domains == domains[0]).sum())
    inside = sent(kind, size, near) if near > 1 else 0.0
    far = len(members) // near
    return inside, sent(kind, size / near, far) if far > 1 else 0.0


def _along_fsdp(
    members: np.ndarray, sizes: Mapping[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Members that differ from the first in `fsdp` only, and members that share its `fsdp`."""
    places = np.stack(np.unravel_index(members, tuple(sizes.values())))
    is_fsdp = np.array([name == "fsdp" for name in sizes])
    same = places == places[:, :1]
    return members[same[~is_fsdp].all(0)], members[same[is_fsdp].all(0)]


def _recomputed_per_token(config: TrainConfig) -> float:
    """Operations of one more forward pass through the blocks."""
    model = config.model
    blocks = sum(
        x.size for name, x in parameters(abstract(model)).items() if name.startswith("blocks.")
    )
    c = model.block.attention
    attention = 4 * model.depth * c.heads * c.head_dim * config.sequence_length
    return 2 * (blocks - idle_parameters(model)) + attention


def _notes(
    config: TrainConfig, accelerator: Accelerator, collectives: list[Collective]
) -> list[str]:
    notes = []
    if not all(c.counted for c in collectives):
        notes.append("some collectives are in loops of unknown length and counted once")
    if config.model.dtype != "bfloat16":
        notes.append(f"model.dtype is {config.model.dtype}; the peak is that of bfloat16")
    if accelerator.unconfirmed:
        notes.append(f"not confirmed by the maker's own text: {accelerator.unconfirmed}")
    if config.optimizer.name == "muon":
        notes.append("Muon's own products of matrices are not in the arithmetic")
    return notes


def _use_standin(accelerator: Accelerator) -> None:
    attention.KERNELS.clear()
    attention.KERNELS["standin"] = Standin(accelerator.pad, accelerator.head_dim)


def _in_half(config: TrainConfig) -> TrainConfig:
    """`config` in float16 where it is in bfloat16, and with the device's own attention."""
    own = config.model.block.attention.implementation == "xla"
    model = config.model if own else config.model.with_attention(implementation=None)
    model = copy.copy(model)
    # Past the checks: nobody trains in float16.
    if model.dtype == "bfloat16":
        object.__setattr__(model, "dtype", "float16")
    half = copy.copy(config)
    object.__setattr__(half, "model", model)
    return half


def main(settings: str, devices: str, device: str) -> int:
    """See `process.answer`."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", int(devices))
    config = json.loads(settings)
    return answer(lambda: make_plan(from_mapping(TrainConfig, config), int(devices), device))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
