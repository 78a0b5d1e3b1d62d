"""The definition of massive activations and outlier features."""

import dataclasses

from jax_massact.errors import ConfigError
from jax_massact.settings import check_float, check_int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """|a| > magnitude and |a| >= ratio x the median of its sequence at that layer.

    Attributes:
      magnitude: in the units of the residual stream.
      ratio: to the median of |a|.
    """

    magnitude: float
    ratio: float

    def __post_init__(self) -> None:
        check_float("magnitude", self.magnitude, 0.0)
        check_float("ratio", self.ratio, 0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """What counts as massive, and what as an outlier feature. One definition serves everything.

    Attributes:
      strict: the paper's definition (Sun et al. 2024, section 2).
      relaxed: for models in which nothing reaches the strict thresholds. A relaxed hit is never
        called massive without that word.
      outlier: a dimension over this threshold at more than `outlier_share` of the tokens of a
        sequence is an outlier feature there. The magnitude is that of LLM.int8() (Dettmers et al.
        2022).
      outlier_share: also, nothing is massive in a dimension that is over the relaxed threshold at
        more than this share of the tokens.
      min_share, min_layers: a dimension is massive (strict) if it is over the strict threshold in
        more than this share of the sequences at this many layers or more: massive activations stay
        in the residual stream, while chance crossings of the threshold do not.
    """

    strict: Threshold = Threshold(magnitude=100.0, ratio=1000.0)
    relaxed: Threshold = Threshold(magnitude=20.0, ratio=100.0)
    outlier: Threshold = Threshold(magnitude=6.0, ratio=10.0)
    outlier_share: float = 0.5
    min_share: float = 0.5
    min_layers: int = 2

    def __post_init__(self) -> None:
        check_float("definition.outlier_share", self.outlier_share, 0.0, 1.0)
        check_float("definition.min_share", self.min_share, 0.0, 1.0)
        check_int("definition.min_layers", self.min_layers, 1)
        for name in ("magnitude", "ratio"):
            strict, relaxed = getattr(self.strict, name), getattr(self.relaxed, name)
            if relaxed > strict:
                raise ConfigError(
                    f"definition.relaxed.{name} is {relaxed:g}; expected: at most that of "
                    f"definition.strict, {strict:g}"
                )
