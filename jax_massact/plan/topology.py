"""TPUs that are not there: their names, and the compiler that knows them.

The compiler of TPUs is in `libtpu`, a package that runs on any x86 machine with Linux and compiles
for topologies of which no chip is present (`jax.experimental.topologies`).
"""

import importlib.util
import math
import re
from typing import Any, NamedTuple

from jax_massact.accelerators import ACCELERATORS, find_accelerator
from jax_massact.errors import ConfigError

# What libtpu asks of the machine before it compiles: it must not look for chips, or for the
# metadata of a TPU VM. The type of the machine is not that of the topology. Who takes no chip may
# compile beside others.
ENVIRONMENT = {
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


class Topology(NamedTuple):
    """Chips of one slice, such as `v5e:4x4`, or of several, such as `2xv5e:4x4`.

    Attributes:
      accelerator: row of `accelerators.ACCELERATORS`.
      shape: chips of a slice along each axis of its torus.
      slices: how many; only a data-center network joins them.
    """

    accelerator: str
    shape: tuple[int, ...]
    slices: int = 1

    @property
    def slice(self) -> str:
        """The name of one of them."""
        return f"{self.accelerator}:{'x'.join(map(str, self.shape))}"

    @property
    def name(self) -> str:
        return self.slice if self.slices == 1 else f"{self.slices}x{self.slice}"

    @property
    def devices(self) -> int:
        return math.prod(self.shape) * self.slices


def parse_device(text: str) -> tuple[str, Topology | None]:
    """The accelerator that `--device` names, and the topology if it names one.

    Raises:
      ConfigError: there is no such accelerator, or its chips are not joined in that way.
    """
    several = re.fullmatch(r"([1-9]\d*)x(.+:.*)", text)
    slices, one = (int(several[1]), several[2]) if several else (1, text)
    name, colon, dims = one.partition(":")
    accelerator = find_accelerator(name)
    if not colon:
        return name, None
    torus, example = accelerator.torus, {2: "4x4", 3: "4x4x4"}.get(accelerator.torus)
    if example is None:
        tpus = ", ".join(key for key, row in ACCELERATORS.items() if row.torus > 1)
        raise ConfigError(
            f"--device is {text!r}; expected: {name} alone, with --devices; {tpus} have topologies"
        )
    if not re.fullmatch("x".join([r"[1-9]\d*"] * torus), dims):
        raise ConfigError(
            f"--device is {text!r}; expected: {name}:{example} or another topology of {torus} axes"
        )
    return name, Topology(name, tuple(map(int, dims.split("x"))), slices)


def has_compiler() -> bool:
    """Whether libtpu is installed."""
    return importlib.util.find_spec("libtpu") is not None


def topology_devices(topology: Topology) -> list[Any]:
    """The chips, as devices that can be compiled for.

    This process must have ENVIRONMENT.

    Raises:
      ConfigError: the compiler does not know the topology.
    """
    from jax.experimental import topologies

    try:
        # libtpu takes the number of slices only where there are several.
        more = {} if topology.slices == 1 else {"num_slices": topology.slices}
        return topologies.get_topology_desc(topology.slice, platform="tpu", **more).devices
    except Exception as error:  # whatever libtpu raises
        reason = str(error).strip().splitlines()[0]
        raise ConfigError(
            f"--device is {topology.name!r}; libtpu does not compile for it: {reason}; expected: "
            "the topology of a slice, such as v5e:4x4"
        ) from None
