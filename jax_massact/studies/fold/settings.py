"""The settings of `massact fold`."""

import dataclasses

from jax_massact.errors import ConfigError
from jax_massact.measure.fold import check_foldable
from jax_massact.measure.registers import check_foldable_registers
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import check_head
from jax_massact.settings import check_in, check_int
from jax_massact.studies.medium import MediumConfig, check_medium
from jax_massact.studies.settings import RunConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoldConfig(RunConfig):
    """The settings of `massact fold`.

    Attributes:
      first_token: which token always stands first: `bos`, the id of a token, or a text that is one
        token.
      calibration_sequences: of an encoder of images, how many more pictures, over which the
        registers' means are taken; of fewer, half of all that there are at least.
      save: whether to write the folded model.
      medium: the section on activations of medium scale, and on outlier features, of the folded
        model.
    """

    sequences: int = 4
    bos: str = "false"
    first_token: str = "bos"
    calibration_sequences: int = 4
    save: bool = True
    medium: MediumConfig = MediumConfig()

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        if self.bos == "true":
            raise ConfigError(
                "bos is 'true'; expected for folding: auto or false. The first token is put in "
                "front of every sequence of the original model; see first_token"
            )
        object.__setattr__(self, "bos", "false")
        check_int("sequence_length", self.sequence_length, 3)
        check_int("calibration_sequences", self.calibration_sequences, 1, 1_000_000)
        check_in("save", self.save, (True, False))
        check_medium(self.medium, self.sequences)
        object.__setattr__(self, "first_token", str(self.first_token))

    @property
    def spare(self) -> int:
        """One position, for the first token."""
        return 1

    @property
    def total(self) -> int:
        """The sequences; pictures for the means come on top."""
        return self.sequences + (self.calibration_sequences if self.images else 0)

    def check(self, model: ModelConfig) -> None:
        """See `RunConfig.check`: the model has a loss, its attention is standard, and a first token
        by id exists; an encoder of images has registers."""
        if model.embed.patches is not None:
            check_foldable_registers(model)
            if self.medium.sequences:
                raise ConfigError(
                    f"medium.sequences is {self.medium.sequences}; expected with images: 0"
                )
            return
        check_head(model)
        check_foldable(model)
        if self.first_token.isdecimal():
            check_int("first_token", int(self.first_token), 0, model.embed.vocab_size - 1)
