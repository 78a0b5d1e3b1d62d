"""One variant of a model, rounded: losses, ranges, one block at a time, the fewest bits."""

import collections
import functools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, Float

from jax_massact.measure.loss import losses_of
from jax_massact.measure.quantize import (
    REPORTED,
    Ranges,
    limits_tap,
    ranges_tap,
    round_weights,
    smooth,
)
from jax_massact.nn.acts import SITES
from jax_massact.nn.transformer import Transformer
from jax_massact.studies.frame import Progress
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.interventions_result import Spread
from jax_massact.studies.quantize.result import (
    BitsRecord,
    RangeRecord,
    RowRecord,
    SensitivityRecord,
)
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


@jax.jit
def _losses(model, tokens, edits, rounding):
    logits, _ = model(tokens, edits=edits, rounding=rounding)
    return losses_of(logits, tokens)


@functools.partial(jax.jit, static_argnames="quantile")
def _limits(model, tokens, edits, kept, rotations, quantile):
    tap = lambda acts: limits_tap(acts, kept, quantile, rotations)
    return model.residual(tokens, tap=tap, edits=edits)[1]


@jax.jit
def _ranges(model, tokens, massive):
    return model.residual(tokens, tap=lambda acts: ranges_tap(acts, massive))[1]


_rounded = jax.jit(round_weights, static_argnums=1)


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
    """One variant, ready to be rounded."""

    def __init__(
        self, variant: Variant, work: Work, size: int, rotations: dict[str, np.ndarray],
        config: QuantizeConfig,
    ) -> None:
        self.variant, self.work, self.size, self.config = variant, work, size, config
        self.rotations = rotations
        self.model = variant.model
        self._weights: dict[int | None, Transformer] = {}
        self._limits: dict[float | None, np.ndarray] = {}
        if config.smooth:
            per_dim = self._surveyed(None)[1]
            self.model = smooth(self.model, per_dim, config.smooth)
            self._limits.clear()
        self._weights[None] = self.model

    def losses(
        self, row: Row, places: Bool[np.ndarray, "L S"] | None = None, count: int | None = None
    ) -> Float[np.ndarray, "S T-1"]:
        """Losses of every held-out sequence, or of the first `count`, with this rounding."""
        places = row.places(self.work.depth) if places is None else places
        limits = self.limits(row.percentile) if row.granularity == "static" else None
        text = self.variant.held_out
        inputs = text.inputs[: len(text.inputs) if count is None else count]
        weights = self.weights(row.weights)

        def one(batch):
            rows, tokens, _ = batch
            rounding = rounding_of(
                row, places, self.work.sites, text.rows(rows, self.size), limits, self.rotations
            )
            losses = jax.device_get(_losses(weights, tokens, text.edits, rounding))
            return losses[: rows.stop - rows.start, self.variant.skip :]

        found = []
        # Two passes at a time: one alone leaves cores of a CPU idle between its operations.
        with ThreadPoolExecutor(2) as pool:
            for losses in pool.map(one, inputs.batches(self.size)):
                found.append(losses)
                self.work.done(len(losses))
        return np.concatenate(found).astype(np.float64)

    def weights(self, bits: int | None) -> Transformer:
        """The model with weights of so many bits; the last one is kept."""
        if bits not in self._weights:
            self._weights = {None: self.model, bits: _rounded(self.model, bits)}
        return self._weights[bits]

    def limits(self, percentile: float | None) -> Float[np.ndarray, "L S"]:
        """Static ranges, from the calibration text."""
        if percentile not in self._limits:
            self._limits[percentile] = self._surveyed(percentile)[0]
        return self._limits[percentile]

    def _surveyed(self, percentile: float | None) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The largest over sequences: of every site, and of every dimension of linear inputs."""
        quantile = None if percentile is None else percentile / 100

        limits, dims = [], collections.defaultdict(list)
        edits = self.variant.calibration.edits
        for n, tokens, kept, _ in self._calibration():
            limit, per_dim = jax.device_get(
                _limits(self.model, tokens, edits, kept, self.rotations, quantile)
            )
            limits.append(limit[..., :n].max(-1))
            for site, found in per_dim.items():
                dims[site].append(found[:, :n].max(1))
            self.work.done(n)
        return np.max(limits, 0), {site: np.max(found, 0) for site, found in dims.items()}

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

        found = []
        for n, tokens, _, massive in self._calibration():
            batch = jax.device_get(_ranges(self.model, tokens, massive))
            found.append(jax.tree.map(lambda x, n=n: x[..., :n], batch))
            self.work.done(n)
        whole: Ranges = jax.tree.map(lambda *x: np.concatenate(x, -1), *found)
        inputs = self.variant.calibration.inputs
        return [
            _range_record(whole, inputs, site, layer)
            for site in range(len(REPORTED)) for layer in range(self.work.depth)
        ]

    def sensitivity(self, exact: Float[np.ndarray, "S T-1"]) -> list[SensitivityRecord]:
        """Each of the sites of `config.alone` in each block alone."""
        count = min(self.config.sensitivity_sequences, len(exact))
        records = []
        for site in self.config.alone:
            for layer in range(self.work.depth):
                places = np.zeros((self.work.depth, len(SITES)), bool)
                places[layer, SITES.index(site)] = True
                row = ALONE._replace(sites=site)
                change = (self.losses(row, places, count) - exact[:count]).mean(1)
                records.append(SensitivityRecord(
                    variant=self.variant.name, site=site, layer=layer,
                    loss_change=float(change.mean()), stderr=stderr_of(change),
                ))
        return records

    def fewest_bits(
        self, exact: Float[np.ndarray, "S T-1"], records: Sequence[RowRecord]
    ) -> list[BitsRecord]:
        """By bisection, beginning with the row of 8 bits that is measured already."""
        count = min(self.config.bits_sequences, len(exact))
        found = []
        for row in self.work.bits_rows:
            eight = next(r for r in records if r["variant"] == self.variant.name
                         and (r["sites"], r["format"]) == (row.sites, row.format))
            fits = {8: eight["ratio"]}
            low, high = (FEWEST_BITS - 1, 8) if eight["ratio"] <= BITS_RATIO else (8, MOST_BITS + 1)
            while high - low > 1:
                bits = (low + high + 1) // 2 if high > MOST_BITS else (low + high) // 2
                losses = self.losses(row._replace(format=f"int{bits}"), count=count)
                fits[bits] = exp(float((losses - exact[:count]).mean()))
                low, high = (low, bits) if fits[bits] <= BITS_RATIO else (bits, high)
            bits = None if high > MOST_BITS else high
            found.append(BitsRecord(
                variant=self.variant.name, sites=row.sites, bits=bits,
                ratio=None if bits is None else fits[bits],
            ))
        return found


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
