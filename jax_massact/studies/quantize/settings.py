"""The settings of `massact quantize`."""

import dataclasses
import re

from jax_massact.errors import ConfigError
from jax_massact.measure.quantize import check_smoothable
from jax_massact.nn.acts import SITES
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import check_head
from jax_massact.settings import check_float, check_in, check_int
from jax_massact.studies.rounding_rows import parse
from jax_massact.studies.settings import RunConfig

VARIANTS = ("original", "first", "folded", "kept", "halved")
ROWS = (
    "linear:int8:tensor,linear:int8:token,linear:int8:static,linear:fp8:tensor,"
    "residual:int8:tensor,residual:fp8:tensor"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeConfig(RunConfig):
    """The settings of `massact quantize`.

    Attributes:
      sequences: how many to measure the perplexity on, held out of the calibration.
      calibration_sequences: how many to find massive activations on.
      rows: what to round, with commas between: SITES:FORMAT:RANGE[:WEIGHTS]. SITES are `linear`
        (the inputs of linear layers), `residual` (the embedding and both sums), `outputs` (of
        attention and MLP), `softmax`, `cache` (keys and values), `all`, or names such as
        `mlp_hidden` (the input of the down projection), `+` between. FORMAT is `int8` (any from
        int2 to int16, symmetric), `fp8` (e4m3) or `float`. RANGE is `tensor` (the largest magnitude
        of a sequence), `token` (of each token), `static` (of the calibration text) or
        `static@99.99` (a percentile of it). WEIGHTS are `int8`, `int4` and the like, with a scale
        for each output channel.
      variants: of the model: `original`; `first` with `first_token` in front of every sequence;
        `folded`, in which that token is explicit k', v'; `kept`, in which the tokens of `keep` stay
        in float; `halved`, whose massive dimensions are clipped to half their mean in the block
        that writes them. What a model does not have is left out.
      first_token: which token to put in front and fold: `bos`, the id of a token, or a text that is
        one token.
      keep: which tokens stay in float in `kept`: `first`, `massive`, or `ratio:64`, those whose
        largest input of a down projection, or activation of the stream, is over so many times the
        median of all tokens' (PrefixQuant).
      static_sequences: how many calibration sequences static ranges, and the table of ranges, are
        from.
      rotate: whether to round after a random rotation, which is turned back (QuaRot).
      smooth: alpha by which large activations are moved into weights (SmoothQuant); 0: not.
      sensitivity: sites to round alone in one block at a time, with commas between, or nothing.
      sensitivity_sequences: on how many held-out sequences.
      bits_sequences: on how many the fewest bits are searched.
      seed: of the rotation.
    """

    sequences: int = 4
    calibration_sequences: int = 8
    rows: str = ROWS
    variants: str = ",".join(VARIANTS)
    first_token: str = "bos"
    keep: str = "first"
    static_sequences: int = 4
    rotate: bool = False
    smooth: float = 0.0
    sensitivity: str = "mlp_hidden"
    sensitivity_sequences: int = 2
    bits_sequences: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        RunConfig.__post_init__(self)
        check_int("sequence_length", self.sequence_length, 3)
        check_int("calibration_sequences", self.calibration_sequences, 1, 1_000_000)
        check_int("static_sequences", self.static_sequences, 1, 1_000_000)
        check_int("sensitivity_sequences", self.sensitivity_sequences, 1, 1_000_000)
        check_int("bits_sequences", self.bits_sequences, 1, 1_000_000)
        check_int("seed", self.seed, 0)
        check_in("rotate", self.rotate, (True, False))
        check_float("smooth", self.smooth, 0.0, 1.0)
        parse(self.rows)
        for name in self.names:
            check_in("variants", name, VARIANTS)
        if len(set(self.names)) < len(self.names) or "original" not in self.names:
            raise ConfigError(
                f"variants is {self.variants!r}; expected: different names, `original` among them"
            )
        for site in self.alone:
            check_in("sensitivity", site, SITES)
        object.__setattr__(self, "first_token", str(self.first_token))
        if self.keep not in ("first", "massive") and self.ratio is None:
            raise ConfigError(
                f"keep is {self.keep!r}; expected: first, massive, or a ratio such as ratio:64"
            )

    @property
    def names(self) -> tuple[str, ...]:
        """The variants."""
        return tuple(name for name in self.variants.replace(" ", "").split(",") if name)

    @property
    def alone(self) -> tuple[str, ...]:
        """The sites of the sensitivity."""
        return tuple(site for site in self.sensitivity.replace(" ", "").split(",") if site)

    @property
    def ratio(self) -> float | None:
        """The number in `keep`, if it is one."""
        found = re.fullmatch(r"ratio:(\d+(\.\d+)?)", self.keep)
        return float(found[1]) if found else None

    @property
    def total(self) -> int:
        """Calibration and held-out sequences."""
        return self.calibration_sequences + self.sequences

    @property
    def spare(self) -> int:
        """One position, for the first token."""
        return 1

    def check(self, model: ModelConfig) -> None:
        """See `RunConfig.check`: there is a loss, and norms that can be smoothed if they are to."""
        check_head(model)
        if self.smooth:
            check_smoothable(model)
