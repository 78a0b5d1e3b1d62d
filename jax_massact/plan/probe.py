"""The probe of a model that is not loaded, compiled for TPUs that are not there.

    python -m jax_massact.plan.probe SETTINGS DEVICE

SETTINGS is a `ProbeShape` as JSON and DEVICE a topology such as `v5e:4x4`; prints one line of JSON.
Needs libtpu, and `topology.ENVIRONMENT`. The program is `ma.magnitudes` of a model that is laid out
over a mesh.
"""

import dataclasses
import json
import sys
from typing import Any, TypedDict

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding

from jax_massact.accelerators import ACCELERATORS
from jax_massact.errors import ConfigError
from jax_massact.measure.definition import Definition
from jax_massact.measure.magnitudes import magnitudes
from jax_massact.mesh import LAYOUTS, fit, make_mesh, parameter_sharding
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.transformer import Transformer, abstract, from_parameters, parameters
from jax_massact.plan.compiled import Compiled, compile_lowered
from jax_massact.plan.process import answer
from jax_massact.plan.topology import Topology, parse_device, topology_devices
from jax_massact.settings import from_mapping
from jax_massact.train.config import MeshConfig
from jax_massact.train.metrics import flops_per_token


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProbeShape:
    """All of a probe that its program depends on.

    Attributes:
      model: also says in which dtype it is computed.
      inputs: shape of a batch: sequences and tokens, or images [B, Y, X, 3].
      mesh: one axis may be -1: all chips that the others leave.
    """

    model: ModelConfig
    inputs: tuple[int, ...]
    top_k: int
    definition: Definition
    mesh: MeshConfig


class ProbePlan(TypedDict):
    """A probe on paper.

    Attributes:
      inputs: shape of a batch.
      flops: of a batch, on all chips together.
      seconds: of a batch, at least: `arithmetic` at the chips' peak, `memory`: each chip's weights
        read once.
    """

    inputs: list[int]
    mesh: dict[str, int]
    parameters: int
    tokens: int
    flops: float
    seconds: dict[str, float]
    compiled: Compiled


def plan_probe(shape: ProbeShape, topology: Topology) -> ProbePlan:
    """Compiles the probe of one batch; nothing is computed.

    Raises:
      ConfigError: the mesh does not fit the topology, libtpu does not know it, or the probe does
        not compile for it.
    """
    sizes = shape.mesh.on(topology.devices)
    if sizes.devices != topology.devices:
        raise ConfigError(
            f"mesh is {shape.mesh}, {sizes.devices} devices; {topology.name} has "
            f"{topology.devices}; one axis may be -1: all that the others leave"
        )
    mesh = make_mesh(**sizes.sizes, devices=topology_devices(topology))

    def lower() -> jax.stages.Lowered:
        with jax.set_mesh(mesh):
            run = lambda model, inputs: magnitudes(
                model, inputs, top_k=shape.top_k, definition=shape.definition
            )
            return jax.jit(run).lower(_model(shape, mesh), _inputs(shape, mesh))

    compiled = compile_lowered("the probe", lower, topology, mesh)
    accelerator = ACCELERATORS[topology.accelerator]
    count = sum(x.size for x in parameters(abstract(shape.model)).values())
    batch, length = shape.inputs[:2]
    if (patches := shape.model.embed.patches) is not None:
        length = length * shape.inputs[2] // patches.size**2
    tokens = batch * length
    # A third of a step of training: the forward pass alone.
    flops = tokens * flops_per_token(shape.model, count, length) / 3
    return ProbePlan(
        inputs=list(shape.inputs),
        mesh=sizes.sizes,
        parameters=count,
        tokens=tokens,
        flops=flops,
        seconds={
            "arithmetic": flops / (accelerator.flops * topology.devices),
            "memory": compiled["memory"]["arguments"] / accelerator.memory_bandwidth,
        },
        compiled=compiled,
    )


def _model(shape: ProbeShape, mesh: jax.sharding.Mesh) -> Transformer:
    def placed(name: str, leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        sharding = parameter_sharding(
            mesh, parameter(name).letters, leaf.shape, stacked=is_stacked(name)
        )
        return jax.ShapeDtypeStruct(leaf.shape, jnp.dtype(shape.model.dtype), sharding=sharding)

    arrays = parameters(abstract(shape.model))
    return from_parameters(shape.model, {name: placed(name, x) for name, x in arrays.items()})


def _inputs(shape: ProbeShape, mesh: jax.sharding.Mesh) -> jax.ShapeDtypeStruct:
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    dtype = jnp.int32 if shape.model.embed.patches is None else jnp.uint8
    layout = fit(LAYOUTS["bt"], shape.inputs[:2], sizes)
    return jax.ShapeDtypeStruct(shape.inputs, dtype, sharding=NamedSharding(mesh, layout))


def main(settings: str, device: str) -> int:
    """See `process.answer`."""

    def make() -> Any:
        _, topology = parse_device(device)
        assert topology is not None
        return plan_probe(from_mapping(ProbeShape, json.loads(settings)), topology)

    return answer(make)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
