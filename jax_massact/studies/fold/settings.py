"""The settings of `massact fold`."""

import dataclasses

from jax_massact.settings import check_in, check_int
from jax_massact.studies.settings import RunConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FoldConfig(RunConfig):
    """The settings of `massact fold`.

    Attributes:
      first_token: which token always stands first: `bos`, the id of a token, or a text that is one
        token.
      save: whether to write the folded model.
    """

    sequences: int = 4
    first_token: str = "bos"
    save: bool = True

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("sequence_length", self.sequence_length, 3)
        check_in("save", self.save, (True, False))
        object.__setattr__(self, "first_token", str(self.first_token))
