"""The mesh of a training run as settings."""

import dataclasses
import math

from jax_massact.errors import ConfigError
from jax_massact.settings import check_int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MeshConfig:
    """How many devices along each axis; also as one text, `--config.mesh=data=-1,fsdp=4`.

    Attributes:
      dcn: slices of TPUs that a data-center network joins; they split the batch.
      data: split the batch.
      fsdp: split the batch and every parameter.
      model: split heads, hidden units and the vocabulary. One of these may be -1: all devices
        that the others leave.
    """

    dcn: int = 1
    data: int = 1
    fsdp: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            check_int(name, size, -1)
            if size == 0:
                raise ConfigError(f"{name} is 0; expected: a whole number of at least 1, or -1")
        if list(self.sizes.values()).count(-1) > 1:
            raise ConfigError(f"mesh is {self}; expected: -1 for one axis at most")

    @classmethod
    def from_text(cls, text: str) -> "MeshConfig":
        """The mesh that `data=-1,fsdp=4` names; an axis that is left out is 1.

        Raises:
          ConfigError: it is not such a text.
        """
        axes = [f.name for f in dataclasses.fields(cls)]
        sizes: dict[str, int] = {}
        for part in filter(None, text.replace(" ", "").split(",")):
            name, _, size = part.partition("=")
            if name not in axes or name in sizes or not size.removeprefix("-").isdecimal():
                raise ConfigError(
                    f"mesh is {text!r}; expected AXIS=DEVICES with commas between, such as "
                    f"data=-1,fsdp=4; axes, each once: {', '.join(axes)}"
                )
            sizes[name] = int(size)
        return cls(**sizes)

    def __str__(self) -> str:
        named = [f"{name}={size}" for name, size in self.sizes.items() if size != 1]
        return ",".join(named) or "data=1"

    @property
    def sizes(self) -> dict[str, int]:
        """The axes in their order, -1 as it was given."""
        return dataclasses.asdict(self)

    @property
    def open_axis(self) -> str | None:
        """The axis whose size is -1."""
        return next((name for name, size in self.sizes.items() if size == -1), None)

    @property
    def devices(self) -> int:
        """Number of devices of the mesh, an axis of -1 counted as one."""
        return abs(math.prod(self.sizes.values()))

    def on(self, devices: int) -> "MeshConfig":
        """This mesh with -1 replaced by what this number of devices leaves.

        Raises:
          ConfigError: the other axes do not divide the devices.
        """
        if self.open_axis is None:
            return self
        if devices % self.devices:
            raise ConfigError(
                f"mesh is {self}; the axes beside {self.open_axis} take {self.devices} devices; "
                f"expected with {devices}: a divisor of {devices}: {divisors(devices)}"
            )
        return dataclasses.replace(self, **{self.open_axis: devices // self.devices})


def divisors(*numbers: int) -> str:
    """The common divisors of these numbers, as text."""
    common = math.gcd(*numbers)
    found = [str(n) for n in range(1, common + 1) if common % n == 0]
    return ", ".join(found if len(found) <= 12 else [*found[:11], "...", found[-1]])
