"""Where a run's state lives: each parameter's layout in words, and the bytes on each device."""

import math
from typing import Any, NamedTuple

import jax

from jax_massact.mesh import LAYOUTS
from jax_massact.nn.parameters import parameter
from jax_massact.train.config import TrainConfig
from jax_massact.train.step import State, abstract_state

_AXES = {"d": "width", "n": "heads", "h": "head", "f": "hidden units", "v": "vocabulary",
         "p": "positions", "r": "rows"}


class ParameterLayout(NamedTuple):
    """One parameter.

    Attributes:
      name: dotted.
      shape: of all of it; stacked over layers for `blocks.`.
      layout: which of its axes are split over which mesh axes, in words.
      bytes: bytes on each device.
    """

    name: str
    shape: tuple[int, ...]
    layout: str
    bytes: int


class Layout(NamedTuple):
    """What each device holds between two updates.

    Attributes:
      rows: one for each parameter.
      parameters: bytes of all parameters on each device.
      optimizer: bytes of the optimizer's averages on each device.
    """

    rows: tuple[ParameterLayout, ...]
    parameters: int
    optimizer: int


class StepMemory(NamedTuple):
    """The compiler's account of one update's memory, in bytes on each device.

    Attributes:
      argument: state and batch.
      output: the new state and the step's metrics.
      alias: the part of the output that reuses the argument's memory.
      temp: gradients, activations and other temporaries.
    """

    argument: int
    output: int
    alias: int
    temp: int

    @property
    def total(self) -> int:
        """Bytes that are needed at the same time."""
        return self.argument + self.output - self.alias + self.temp


def describe_layout(config: TrainConfig, mesh: jax.sharding.Mesh) -> Layout:
    """The layout of a run's state on `mesh`; no memory is used."""
    state: State = abstract_state(config, mesh)
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    rows = tuple(
        ParameterLayout(name, x.shape, _in_words(name, x, sizes), _bytes(x))
        for name, x in state.params.items()
    )
    optimizer = sum(_bytes(x) for x in jax.tree.leaves(state.optimizer))
    return Layout(rows, sum(row.bytes for row in rows), optimizer)


def step_memory(compiled: Any) -> StepMemory | None:
    """The memory of a compiled update; None where the device does not say."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return StepMemory(
        found.argument_size_in_bytes, found.output_size_in_bytes, found.alias_size_in_bytes,
        found.temp_size_in_bytes,
    )


def _bytes(x: Any) -> int:
    return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def _in_words(name: str, x: Any, sizes: dict[str, int]) -> str:
    """`width over fsdp (4), heads over model (2)`; axes that the mesh does not divide are whole."""
    letters = parameter(name).letters
    # Entries that are left out at the end are None; stacked parameters have layers in front.
    spec = [*x.sharding.spec, *(None,) * x.ndim][x.ndim - len(letters) : x.ndim]
    words = []
    for letter, wanted, entry, length in zip(
        letters, LAYOUTS[letters], spec, x.shape[x.ndim - len(letters) :], strict=True
    ):
        names = _named(entry, sizes)
        if names:
            words.append(f"{_AXES[letter]} over {' x '.join(names)}")
        elif missing := _named(wanted, sizes):
            words.append(f"{_AXES[letter]} whole: {' x '.join(missing)} does not divide {length}")
    return ", ".join(words) or "whole on every device"


def _named(entry: Any, sizes: dict[str, int]) -> list[str]:
    names = (entry,) if isinstance(entry, str) else entry or ()
    return [f"{name} ({sizes[name]})" for name in names if sizes.get(name, 1) > 1]
