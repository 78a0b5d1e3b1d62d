"""The settings of `massact explain`."""

import dataclasses

from jax_massact.settings import check_float, check_int
from jax_massact.studies.settings import RunConfig


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ExplainConfig(RunConfig):
    """The settings of `massact explain`.

    Attributes:
      sink_epsilon: a head is a sink head if its mean attention to the first token exceeds this.
      sink_length: over how many first queries that mean is taken.
      location_sequences: in how many sequences to look for massive activations without and with
        BOS; 0 leaves this out.
      location_length: tokens in each of these.
    """

    sequences: int = 20
    sink_epsilon: float = 0.3
    sink_length: int = 64
    location_sequences: int = 100
    location_length: int = 256

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("sequence_length", self.sequence_length, 2)
        check_float("sink_epsilon", self.sink_epsilon, 0.0, 1.0)
        check_int("sink_length", self.sink_length, 1)
        check_int("location_sequences", self.location_sequences, 0, 1_000_000)
        check_int("location_length", self.location_length, 2, 1 << 20)
