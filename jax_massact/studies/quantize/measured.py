"""One variant of a model, rounded: losses, ranges, one block at a time, the fewest bits."""

import collections
import functools
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jax_massact.measure.quantize import (
    REPORTED,
    Ranges,
    limits_tap,
    ranges_tap,
    round_weights,
    smooth,
)
from jax_massact.nn.acts import SITES
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer
from jax_massact.studies.frame import Progress
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.interventions_result import Spread
from jax_massact.studies.passes import LOSSES, Batch, Job, Reading, Runner
from jax_massact.studies.quantize.result import BitsRecord, RangeRecord, RowRecord
from jax_massact.studies.quantize.settings import QuantizeConfig
from jax_massact.studies.quantize.variants import Variant
from jax_massact.studies.rounding_rows import (
    FEWEST_BITS,
    MOST_BITS,
    Row,
    rounding_of,
    sites_of,
)

BITS_RATIO = 1.1  # of perplexity, at most, with the fewest bits
ALONE = Row("mlp_hidden", "int8")  # the rounding of one block alone, at whichever site


_rounded = jax.jit(round_weights, static_argnums=1)
# Ranges; the data are the massive tokens.
_RANGES = Reading(ranges_tap, lambda taps, losses, data: taps)


@functools.cache
def _limits(quantile: float | None) -> Reading:
    """Static ranges; the data are the tokens that stay in float, and rotations."""

    def tap(acts, data):
        kept, rotations = data
        return limits_tap(acts, kept, quantile, rotations)

    return Reading(tap, lambda taps, losses, data: taps)


class Work:
    """The rows to run, and how far they are: a pass is one sequence through one variant."""

    def __init__(
        self, rows: tuple[Row, ...], config: QuantizeConfig, depth: int, progress: Progress
    ) -> None:
        self.rows, self.config, self.depth = rows, config, depth
        self._progress = progress
        self._done = self._total = 0
        self.bits_rows = tuple(
            row for row in (Row("linear", "int8"), Row("residual", "int8")) if row in rows
        )
        alone = tuple(ALONE._replace(sites=site) for site in config.alone)
        self.sites = sites_of((*rows, *alone), depth)

    def expect(self, passes: int) -> None:
        self._total += passes

    def passes(self, variants: Sequence[Variant]) -> int:
        """How many are left, about: the search for bits ends when it has found them."""
        c, L = self.config, self.depth
        few, fewest = (min(n, c.sequences) for n in (c.sensitivity_sequences, c.bits_sequences))
        searched = sum(variant.name in ("original", "folded") for variant in variants)
        return (
            len(variants) * (len(self.rows) * c.sequences + c.static_sequences)
            + len(c.alone) * L * few + 3 * len(self.bits_rows) * fewest * searched
        )

    def done(self, passes: int) -> None:
        self._done += passes
        self._progress(min(self._done, self._total), self._total)


class Measured:
    """One variant, ready to be rounded.

    Args:
      runner: of the original.
    """

    def __init__(
        self, variant: Variant, work: Work, size: int, rotations: dict[str, np.ndarray],
        config: QuantizeConfig, runner: Runner,
    ) -> None:
        self.variant, self.work, self.size, self.config = variant, work, size, config
        self.rotations, self._runner = rotations, runner
        self.model = variant.model
        self._weights: dict[int | None, Any] = {}
        self._limits: dict[float | None, np.ndarray] = {}
        if config.smooth:
            assert isinstance(self.model, Transformer)
            ((_, per_dim),) = self._surveyed(runner.start([self._survey(None)]))
            self.model = smooth(self.model, per_dim, config.smooth)
        self._weights[None] = self.model

    def ask(
        self, row: Row, places: Bool[np.ndarray, "L S"] | None = None, count: int | None = None
    ) -> "Ask":
        """The losses of every held-out sequence, or of the first `count`, with this rounding."""
        places = row.places(self.work.depth) if places is None else places
        return Ask(self, row, places, len(self.variant.held_out.inputs) if count is None else count)

    def weights(self, bits: int | None) -> Any:
        """The model with weights of so many bits; the last one is kept."""
        if bits is not None and bits not in self._weights:
            on_disk = isinstance(self.model, BlockSource)
            rounded = round_weights(self.model, bits) if on_disk else _rounded(self.model, bits)
            self._weights = {None: self.model, bits: rounded}
        return self._weights[bits]

    def limits(self, percentile: float | None) -> Float[np.ndarray, "L S"]:
        """Static ranges, from the calibration text."""
        if percentile not in self._limits:
            ((limits, _),) = self._surveyed(self._runner.start([self._survey(percentile)]))
            self._limits[percentile] = limits
        return self._limits[percentile]

    def _survey(self, percentile: float | None) -> Job:
        quantile = None if percentile is None else percentile / 100
        edits = self.variant.calibration.edits
        batches = [Batch(tokens, (kept, self.rotations), edits)
                   for _, tokens, kept, _ in self._calibration()]
        return Job(_limits(quantile), batches, lambda: self.model)

    def _surveyed(
        self, jobs: Sequence[Iterator[Any]]
    ) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """The largest over sequences: of every site, and of every dimension of linear inputs."""
        for results in jobs:
            limits, dims = [], collections.defaultdict(list)
            for (n, *_), (limit, per_dim) in zip(self._calibration(), results, strict=True):
                limits.append(limit[..., :n].max(-1))
                for site, found in per_dim.items():
                    dims[site].append(found[:, :n].max(1))
                self.work.done(n)
            yield np.max(limits, 0), {site: np.max(found, 0) for site, found in dims.items()}

    def _calibration(self) -> Iterator[tuple[int, Any, Any, Any]]:
        """Batches of the calibration text: how many count, tokens, kept, massive."""
        text = self.variant.calibration
        inputs = text.inputs[: self.config.static_sequences]
        for rows, tokens, _ in inputs.batches(self.size):
            kept = text.rows(rows, self.size)
            massive = text._replace(kept=text.massive).rows(rows, self.size)
            yield rows.stop - rows.start, tokens, kept, massive

    def ranges(self) -> list[RangeRecord]:
        """Ranges of each reported site and each block, over the calibration text."""
        batches = [Batch(tokens, massive) for _, tokens, _, massive in self._calibration()]
        found = []
        (results,) = self._runner.start([Job(_RANGES, batches, lambda: self.model)])
        for (n, *_), batch in zip(self._calibration(), results, strict=True):
            found.append(jax.tree.map(lambda x, n=n: x[..., :n], batch))
            self.work.done(n)
        whole: Ranges = jax.tree.map(lambda *x: np.concatenate(x, -1), *found)
        inputs = self.variant.calibration.inputs
        return [
            _range_record(whole, inputs, site, layer)
            for site in range(len(REPORTED)) for layer in range(self.work.depth)
        ]

    def alone(self, count: int) -> list[tuple[str, int, "Ask"]]:
        """Each of the sites of `config.alone` in each block alone: site, block."""
        found = []
        for site in self.config.alone:
            for layer in range(self.work.depth):
                places = np.zeros((self.work.depth, len(SITES)), bool)
                places[layer, SITES.index(site)] = True
                found.append((site, layer, self.ask(ALONE._replace(sites=site), places, count)))
        return found

    def fewest_bits(
        self, row: Row, exact: Float[np.ndarray, "S T-1"], eight: float
    ) -> "Search":
        """By bisection, beginning with the row of 8 bits, whose ratio is known."""
        fits = {8: eight}
        low, high = (FEWEST_BITS - 1, 8) if eight <= BITS_RATIO else (8, MOST_BITS + 1)
        while high - low > 1:
            bits = (low + high + 1) // 2 if high > MOST_BITS else (low + high) // 2
            losses = yield self.ask(row._replace(format=f"int{bits}"), count=len(exact))
            fits[bits] = exp(float((losses - exact).mean()))
            low, high = (low, bits) if fits[bits] <= BITS_RATIO else (bits, high)
        bits = None if high > MOST_BITS else high
        return BitsRecord(
            variant=self.variant.name, sites=row.sites, bits=bits,
            ratio=None if bits is None else fits[bits],
        )


Search = Generator["Ask", np.ndarray, BitsRecord]


class Ask(NamedTuple):
    """Losses that are wanted.

    Attributes:
      places: the sites of the blocks that are rounded.
      count: of how many of the held-out sequences.
    """

    of: Measured
    row: Row
    places: Bool[np.ndarray, "L S"]
    count: int

    def job(self) -> Job:
        """Its batches."""
        return Job(LOSSES, self._batches(), lambda: self.of.weights(self.row.weights))

    def _batches(self) -> Iterator[Batch]:
        m, text, row = self.of, self.of.variant.held_out, self.row
        limits = m.limits(row.percentile) if row.granularity == "static" else None
        for rows, tokens, _ in text.inputs[: self.count].batches(m.size):
            kept = text.rows(rows, m.size)
            rounding = rounding_of(row, self.places, m.work.sites, kept, limits, m.rotations)
            yield Batch(tokens, (), text.edits, rounding)

    def collected(self, results: Iterator[Any]) -> Float[np.ndarray, "S T-1"]:
        """The losses that its batches gave."""
        m, found = self.of, []
        inputs = m.variant.held_out.inputs[: self.count]
        for (rows, _, _), losses in zip(inputs.batches(m.size), results, strict=True):
            found.append(inputs.scored(losses[: rows.stop - rows.start]))
            m.work.done(rows.stop - rows.start)
        return np.concatenate(found).astype(np.float64)


def answers(runner: Runner, asks: Sequence[Ask]) -> Iterator[Float[np.ndarray, "S T-1"]]:
    """The losses of all; a model that is streamed is read once for them."""
    results = runner.start([ask.job() for ask in asks])
    for ask, own in zip(asks, results, strict=True):
        yield ask.collected(own)


def searched(runner: Runner, searches: Sequence[Search]) -> list[BitsRecord]:
    """Goes on with all searches at once."""
    found: dict[int, BitsRecord] = {}
    asks: dict[int, Ask] = {}

    def go_on(i: int, losses: Any) -> None:
        try:
            asks[i] = searches[i].send(losses)
        except StopIteration as end:
            found[i] = end.value

    for i in range(len(searches)):
        go_on(i, None)
    while asks:
        now, asks = asks, {}
        for i, losses in zip(now, answers(runner, list(now.values())), strict=True):
            go_on(i, losses)
    return [found[i] for i in range(len(searches))]


def row_record(
    variant: str, row: Row, losses: Float[np.ndarray, "S T-1"], exact: Float[np.ndarray, "S T-1"]
) -> RowRecord:
    change = (losses - exact).mean(1)
    return RowRecord(
        variant=variant,
        sites=row.sites,
        format=row.format,
        granularity=row.granularity,
        range=row.range,
        bits=row.bits,
        weights=row.weights,
        perplexity=exp(float(losses.mean())),
        loss=Spread(mean=float(losses.mean()), std=float(losses.mean(1).std())),
        ratio=exp(float(change.mean())),
        stderr=stderr_of(change),
    )


def _range_record(ranges: Ranges, inputs: Inputs, site: int, layer: int) -> RangeRecord:
    at = Ranges(*(np.asarray(x, np.float64)[layer, site] for x in ranges))
    mean = lambda x: float(np.mean(x))
    positions = collections.Counter(map(int, at.position))
    position = positions.most_common(1)[0][0]
    sequence = int(np.argmax(at.position == position))
    (ids,) = inputs.ids(slice(sequence, sequence + 1))
    known = lambda x: mean(x) if np.isfinite(x).all() else None
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.log2(at.top / at.top_without)
    return RangeRecord(
        site=REPORTED[site],
        layer=layer,
        top=mean(at.top),
        top_token=inputs.name(ids[position]),
        top_position=position,
        top_without=mean(at.top_without),
        token_ratio=known(at.token_ratio),
        bits_lost=known(lost),
        sqnr=known(at.sqnr),
        sqnr_without=known(at.sqnr_without),
        zero_share=mean(at.zero_share),
        columns=mean(at.columns),
        columns_without=mean(at.columns_without),
    )


def stderr_of(change: Float[np.ndarray, " S"]) -> float | None:
    return float(change.std(ddof=1) / math.sqrt(len(change))) if len(change) > 1 else None


def exp(loss: float) -> float:
    return math.exp(loss) if loss < 709 else math.inf
