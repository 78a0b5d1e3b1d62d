"""The settings of `massact probe`."""

import dataclasses

from jax_massact.settings import check_int
from jax_massact.studies.medium import MediumConfig, check_medium
from jax_massact.studies.settings import RunConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ProbeConfig(RunConfig):
    """The settings of `massact probe`.

    Attributes:
      top_k: how many of the largest magnitudes of each layer to report.
      medium: the section on activations of medium scale.
    """

    top_k: int = 5
    medium: MediumConfig = MediumConfig()

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("top_k", self.top_k, 1, 100)
        check_medium(self.medium, self.sequences)
