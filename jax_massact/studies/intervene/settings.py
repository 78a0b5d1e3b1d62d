"""The settings of `massact intervene`."""

import dataclasses

from jax_massact.errors import ConfigError
from jax_massact.settings import check_float, check_int
from jax_massact.studies.settings import RunConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class InterveneConfig(RunConfig):
    """The settings of `massact intervene`.

    Attributes:
      sequences: how many to measure the perplexity on, held out of the calibration.
      calibration_sequences: how many to find massive activations and their means on.
      layers: after which blocks to intervene: `first`, where each massive dimension first appears;
        `all` in which it is massive; or numbers with commas between.
      fractions: of the mean, to set to as well.
      seed: of the choice of ordinary activations for the control.
    """

    sequences: int = 8
    calibration_sequences: int = 8
    layers: str = "first"
    fractions: tuple[float, ...] = (0.5,)
    seed: int = 0

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("sequence_length", self.sequence_length, 2)
        check_int("calibration_sequences", self.calibration_sequences, 1, 1_000_000)
        check_int("seed", self.seed, 0)
        layers = str(self.layers).replace(" ", "")
        if layers not in ("first", "all") and not all(p.isdecimal() for p in layers.split(",")):
            raise ConfigError(
                f"layers is {self.layers!r}; allowed: first, all, or numbers such as 11 or 11,12"
            )
        object.__setattr__(self, "layers", layers)
        fractions = self.fractions if isinstance(self.fractions, tuple) else (self.fractions,)
        for fraction in fractions:
            check_float("fractions", fraction, -1e6, 1e6)
        object.__setattr__(self, "fractions", fractions)
