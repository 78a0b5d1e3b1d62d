"""What an intervention changes: targets, their means, and the places where they are met."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_massact.errors import ConfigError
from jax_massact.results import MassiveRecord
from jax_massact.settings import check_int
from jax_massact.studies.collector import Found
from jax_massact.studies.inputs import KINDS


@dataclasses.dataclass
class Samples:
    """Values of massive activations by (layer, dimension) and kind of token.

    Strict and relaxed hits are kept apart: (layer, dim, strict) is the key.
    """

    values: dict[tuple[int, int, bool], dict[str, list[float]]] = dataclasses.field(
        default_factory=lambda: collections.defaultdict(lambda: collections.defaultdict(list))
    )

    def add(self, found: Iterable[Found], kind_of: Callable[[int], str]) -> None:
        """Adds one sequence; `kind_of` says the kind of token at a position."""
        for hit in found:
            kind = kind_of(hit.position)
            for strict in {hit.strict, False}:
                self.values[hit.layer, hit.dim, strict][kind].append(hit.value)


class TargetPlace(NamedTuple):
    """One (layer, dimension) to change; `strict` says over which threshold its activations are."""

    layer: int
    dim: int
    strict: bool

    def is_met_by(self, hit: Found) -> bool:
        return (hit.layer, hit.dim) == (self.layer, self.dim) and (hit.strict or not self.strict)


def choose_targets(massive: Sequence[MassiveRecord], layers: str, depth: int) -> list[TargetPlace]:
    """The targets that `layers` (of `InterveneConfig`) means.

    Strict dimensions only, if there are any; else the relaxed ones.

    Raises:
      ConfigError: a layer that the model does not have, or one at which nothing is massive.
    """
    chosen = [] if layers in ("first", "all") else [int(n) for n in layers.split(",")]
    for layer in chosen:
        check_int("layers", layer, 0, depth - 1)
    records = [r for r in massive if r["strict"]] or list(massive)
    targets = []
    for r in records:
        span = range(r["first_layer"], r["last_layer"] + 1)
        if layers == "first":
            at = [r["first_layer"]]
        else:
            at = [n for n in span if layers == "all" or n in chosen]
        targets += [TargetPlace(n, r["dim"], r["strict"]) for n in at]
    if records and not targets:
        spans = "; ".join(
            f"dim {r['dim']}: {r['first_layer']} to {r['last_layer']}" for r in records
        )
        raise ConfigError(
            f"layers is {layers!r}, where nothing is massive; expected here: {spans}"
        )
    return sorted(set(targets))


class Means(NamedTuple):
    """Mean, standard deviation and number of one target's values, by kind of token."""

    of_kind: dict[str, tuple[float, float, int]]
    overall: float

    def of(self, kind: str) -> float:
        """The mean at this kind of token; over all kinds where the calibration met none."""
        return self.of_kind[kind][0] if kind in self.of_kind else self.overall


def estimate_means(samples: Samples, targets: Sequence[TargetPlace]) -> list[Means]:
    """The mean of each target, over the activations of the calibration text."""
    result = []
    for target in targets:
        by_kind = samples.values.get((target.layer, target.dim, target.strict), {})
        flat = [v for values in by_kind.values() for v in values]
        moments = {
            kind: (float(np.mean(v)), float(np.std(v)), len(v))
            for kind in KINDS
            if (v := by_kind.get(kind))
        }
        result.append(Means(moments, float(np.mean(flat)) if flat else 0.0))
    return result


def find_places(
    targets: Sequence[TargetPlace],
    means: Sequence[Means],
    found: Sequence[Sequence[Found]],
    kind_of: Callable[[int, int], str],
    shape: tuple[int, int],
) -> tuple[Bool[np.ndarray, "E B T"], Float[np.ndarray, "E B T"]]:
    """Where the targets are massive in a batch, and their mean there (0 elsewhere).

    Args:
      found: of each sequence.
      kind_of: (sequence, position) to the kind of token.
      shape: [B, T]; sequences beyond those in `found` have no places.
    """
    tokens = np.zeros((len(targets), *shape), bool)
    mean = np.zeros((len(targets), *shape), np.float32)
    for e, target in enumerate(targets):
        for b, hits in enumerate(found):
            for position in {h.position for h in hits if target.is_met_by(h)}:
                tokens[e, b, position] = True
                mean[e, b, position] = means[e].of(kind_of(b, position))
    return tokens, mean


def choose_control_dims(
    count: int, width: int, taken: Iterable[int], seed: int
) -> Int[np.ndarray, " E"]:
    """One dimension at random for each target, none of those that are `taken`."""
    free = np.setdiff1d(np.arange(width), np.fromiter(taken, int))
    rng = np.random.default_rng([seed, count])
    return rng.choice(free if len(free) else np.arange(width), count)


def control_places(
    tokens: Bool[np.ndarray, "E B T"],
    magnitude: Float[np.ndarray, "E B T"],
    low: Float[np.ndarray, "E B"],
    high: Float[np.ndarray, "E B"],
    first_sequence: int,
    seed: int,
) -> Bool[np.ndarray, "E B T"]:
    """As many places of ordinary magnitude as `tokens` has, in the same sequences and layers.

    Args:
      magnitude: of the control dimension of each target, at its layer.
      low, high: what is ordinary there: from the median to the 0.9 quantile of |resid_post|.
      first_sequence: number of the batch's first sequence in the run: the choice depends on the
        sequence, not on the batch.
    """
    chosen = np.zeros_like(tokens)
    for e, b in zip(*np.nonzero(tokens.any(-1)), strict=True):
        ordinary = (magnitude[e, b] >= low[e, b]) & (magnitude[e, b] <= high[e, b])
        free = np.nonzero(ordinary)[0]
        rng = np.random.default_rng([seed, first_sequence + b, e])
        wanted = int(tokens[e, b].sum())
        if len(free) < wanted:  # what comes nearest
            outside = np.maximum(low[e, b] - magnitude[e, b], magnitude[e, b] - high[e, b])
            free = np.argsort(outside, kind="stable")[:wanted]
        chosen[e, b, rng.choice(free, wanted, replace=False)] = True
    return chosen
