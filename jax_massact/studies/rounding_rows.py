"""What is rounded, to which numbers, in which range: a row of `massact quantize`."""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from jax_massact.errors import ConfigError
from jax_massact.nn.acts import SITES
from jax_massact.nn.rounding import (
    E4M3,
    E4M3_LARGEST,
    FLOAT,
    INTEGER,
    Rounding,
    levels_of,
)

# Names for several sites. The stream is rounded as it enters the first block and at both sums.
GROUPS = {
    "linear": ("attn_in", "z", "mlp_in", "mlp_hidden"),
    "residual": ("resid_pre", "resid_mid", "resid_post"),
    "outputs": ("attn_out", "mlp_out"),
    "softmax": ("weights",),
    "cache": ("k", "v"),
    "all": SITES,
}
MOST_BITS, FEWEST_BITS = 16, 2
_EXPECTED = (
    "SITES:FORMAT:RANGE, such as linear:int8:tensor or mlp_hidden+resid_post:fp8:token, and after "
    "them :int8 or :int4 for the weights"
)


class Row(NamedTuple):
    """One way to round.

    Attributes:
      sites: names of GROUPS or of `nn.acts.SITES`, `+` between.
      format: `float`, `fp8` or `intN`.
      granularity: who shares a range: `tensor` (all tokens of a sequence), `token`, or `static`
        (all sequences alike, from the calibration text).
      percentile: of static ranges, in place of the largest magnitude.
      weights: bits of the linear layers' weights; None: as they are.
    """

    sites: str
    format: str
    granularity: str = "tensor"
    percentile: float | None = None
    weights: int | None = None

    @property
    def bits(self) -> int | None:
        """Bits of one activation; None: as many as the model has."""
        if self.format == "float":
            return None
        return 8 if self.format == "fp8" else int(self.format[3:])

    @property
    def range(self) -> str:
        """How the range is found, in words of the settings."""
        return "minmax" if self.percentile is None else f"percentile:{self.percentile:g}"

    @property
    def spec(self) -> str:
        """As in the settings."""
        more = "" if self.percentile is None else f"@{self.percentile:g}"
        weights = "" if self.weights is None else f":int{self.weights}"
        return f"{self.sites}:{self.format}:{self.granularity}{more}{weights}"

    def places(self, depth: int) -> Bool[np.ndarray, "L S"]:
        """The sites of the blocks that it rounds."""
        mask = np.zeros((depth, len(SITES)), bool)
        for name in self.sites.split("+"):
            for site in GROUPS.get(name, (name,)):
                once = site == "resid_pre" and name in GROUPS  # it leaves the block before rounded
                mask[: 1 if once else depth, SITES.index(site)] = True
        return mask


FLOAT_ROW = Row("linear", "float")


def parse(text: str) -> tuple[Row, ...]:
    """The rows of a setting, commas between.

    Raises:
      ConfigError: a row is not one, or is given twice.
    """
    rows = tuple(_row(part) for part in text.replace(" ", "").split(",") if part)
    if len(set(rows)) < len(rows):
        raise ConfigError(f"rows is {text!r}; expected: different ones, commas between")
    return rows


def _row(text: str) -> Row:
    def wrong(why: str) -> ConfigError:
        return ConfigError(f"rows has {text!r}: {why}; expected: {_EXPECTED}")

    parts = text.split(":")
    if not 3 <= len(parts) <= 4:
        raise wrong(f"{len(parts)} parts")
    sites, format, span = parts[:3]
    for name in sites.split("+"):
        if name not in GROUPS and name not in SITES:
            raise wrong(f"{name!r} is none of {', '.join((*GROUPS, *SITES))}")
    granularity, _, percent = span.partition("@")
    if granularity not in ("tensor", "token", "static"):
        raise wrong(f"the range is {span!r}, not tensor, token, static or static@99.99")
    percentile = None
    if percent:
        try:
            percentile = float(percent)
        except ValueError:
            percentile = -1.0
        if granularity != "static" or not 50 <= percentile <= 100:
            raise wrong(f"the range is {span!r}; a percentile from 50 to 100 is of static ranges")
    weights = _integer_bits(parts[3]) if len(parts) == 4 else None
    if len(parts) == 4 and weights is None:
        raise wrong(f"the weights are {parts[3]!r}, not integers such as int8")
    if format not in ("float", "fp8") and _integer_bits(format) is None:
        raise wrong(f"the format is {format!r}, not fp8, float, or int2 to int16")
    return Row(sites, format, granularity, percentile, weights)


def _integer_bits(text: str) -> int | None:
    found = re.fullmatch(r"int(\d+)", text)
    bits = int(found[1]) if found else 0
    return bits if FEWEST_BITS <= bits <= MOST_BITS else None


def sites_of(rows: tuple[Row, ...], depth: int) -> tuple[str, ...]:
    """The sites that any of the rows rounds."""
    touched = np.zeros(len(SITES), bool)
    for row in rows:
        touched |= row.places(depth).any(0) & (row.format != "float")
    return tuple(site for site, here in zip(SITES, touched, strict=True) if here)


def rounding_of(
    row: Row,
    places: Bool[np.ndarray, "L S"],
    sites: tuple[str, ...],
    kept: Bool[np.ndarray, "B T"],
    limits: Float[np.ndarray, "L S"] | None,
    rotations: dict[str, np.ndarray],
) -> Rounding:
    """A row as arrays.

    Args:
      places: which sites of which blocks are rounded, of all `nn.acts.SITES`.
      sites: those that the arrays are about; rows with the same share one compilation.
      limits: static ranges of all `nn.acts.SITES`, where the row needs them.
    """
    index = [SITES.index(site) for site in sites]
    here = places[:, index]
    code = {"float": FLOAT, "fp8": E4M3}.get(row.format, INTEGER)
    largest = {FLOAT: 1.0, E4M3: E4M3_LARGEST}.get(code) or levels_of(row.bits or 8)
    limit = np.zeros(here.shape) if limits is None else limits[:, index]
    return Rounding(
        kind=np.where(here, code, FLOAT).astype(np.int32),  # pyright: ignore[reportArgumentType]
        largest=np.full(here.shape, largest, np.float32),  # pyright: ignore[reportArgumentType]
        per_token=np.full(here.shape, row.granularity == "token"),  # pyright: ignore
        limit=limit.astype(np.float32),  # pyright: ignore[reportArgumentType]
        kept=kept,  # pyright: ignore[reportArgumentType]
        rotations=rotations,  # pyright: ignore[reportArgumentType]
        sites=sites,
    )
