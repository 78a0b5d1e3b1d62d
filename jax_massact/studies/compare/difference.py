"""Whether two variants differ in loss: paired, on the same validation batches."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
import scipy.special


class Difference(TypedDict):
    """Validation loss minus that of the first variant, in nats per token.

    Attributes:
      mean: over batches, of the means over runs.
      error: its standard error over batches; null for one batch.
      low, high: the 95% interval of the mean, of Student's t over batches: it says what other rows
        of this text would give, not what other seeds would.
      by_seed: the same, for each seed that both variants have; their spread is that over seeds.
    """

    mean: float
    error: float | None
    low: float | None
    high: float | None
    by_seed: dict[str, float]


def paired(
    first: Mapping[int, Sequence[Sequence[float]]], other: Mapping[int, Sequence[Sequence[float]]]
) -> Difference:
    """The difference of two variants.

    Args:
      first, other: by seed, the losses of each run on the same validation batches.
    """
    batches = _of_batches(other) - _of_batches(first)
    mean = float(batches.mean())
    error = low = high = None
    if (count := len(batches)) > 1:
        error = statistics.stdev(batches.tolist()) / count**0.5
        reach = float(scipy.special.stdtrit(count - 1, 0.975)) * error
        low, high = mean - reach, mean + reach
    both = [seed for seed in first if seed in other]
    by_seed = {str(seed): float(np.mean(other[seed]) - np.mean(first[seed])) for seed in both}
    return Difference(mean=mean, error=error, low=low, high=high, by_seed=by_seed)


def _of_batches(runs: Mapping[int, Sequence[Sequence[float]]]) -> np.ndarray:
    """The mean over runs, of each batch."""
    return np.mean([losses for of_seed in runs.values() for losses in of_seed], axis=0)
