"""The settings of `massact registers`."""

import dataclasses

from jax_massact.errors import ConfigError
from jax_massact.measure.register_neurons import check_standard
from jax_massact.nn.config import ModelConfig
from jax_massact.settings import check_int
from jax_massact.studies.settings import RunConfig

AUTO = -1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RegistersConfig(RunConfig):
    """The settings of `massact registers`.

    Attributes:
      sequences: pictures that the changes are scored on.
      calibration_sequences: pictures that come before them, in which outlier patches and the
        neurons are found; of fewer, half of all that there are at least.
      layer: after which block outlier patches are looked for; -1: where they stand out most, in
        the later half of the blocks.
      last_block: neurons are of the blocks up to this one; -1: the block after which half of the
        outlier patches have begun to be some.
      neurons: numbers of neurons to try, one after the other, until no outlier patch is left.
      draws: of the controls with other neurons, whose mean is reported.
      seed: of these draws.
    """

    sequences: int = 50
    calibration_sequences: int = 100
    layer: int = AUTO
    last_block: int = AUTO
    neurons: tuple[int, ...] = (10, 20, 50, 100, 200)
    draws: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("calibration_sequences", self.calibration_sequences, 1, 1_000_000)
        for name in ("layer", "last_block"):
            check_int(name, getattr(self, name), AUTO)
        numbers = self.neurons if isinstance(self.neurons, tuple) else (self.neurons,)
        for number in numbers:
            check_int("neurons", number, 1)
        if not numbers:
            raise ConfigError("neurons is (); expected: at least one number of neurons to try")
        object.__setattr__(self, "neurons", tuple(sorted(set(numbers))))
        check_int("draws", self.draws, 1, 1000)
        check_int("seed", self.seed, 0)

    @property
    def total(self) -> int:
        """All pictures."""
        return self.calibration_sequences + self.sequences

    def check(self, model: ModelConfig) -> None:
        """See `RunConfig.check`: it takes images, its blocks have the neurons, and there is room
        for k' and v'."""
        if model.embed.patches is None:
            raise ConfigError("the model takes text; expected for registers: an encoder of images")
        check_standard(model)
        for name in ("layer", "last_block"):
            check_int(name, getattr(self, name), AUTO, model.depth - 1)
        block = model.block.mlp
        if block.moe.experts:
            raise ConfigError("the model is a mixture of experts; expected: one MLP in each block")
        # As many others are needed for the controls.
        check_int("neurons", self.neurons[-1], 1, block.hidden // 2)
