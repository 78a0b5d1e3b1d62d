"""What numbers of 8 bits cost a finished run: its model, on its held-out data."""

from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jax_massact.measure.loss import losses_of
from jax_massact.measure.quantize import round_weights
from jax_massact.studies.compare.interventions import prepare_run
from jax_massact.studies.interventions import split
from jax_massact.studies.rounding_rows import FLOAT_ROW, Row, rounding_of, sites_of
from jax_massact.train.config import TrainConfig


class Kind(NamedTuple):
    """One way to round.

    Attributes:
      words: its name in reports.
      row: what is rounded, with one range for a sequence.
    """

    words: str
    row: Row


# After table 1 of Bondarenko et al. (2023), whose residual sums are rounded, too.
KINDS = {
    "w8a8": Kind("W8A8, linear inputs", Row("linear", "int8", weights=8)),
    "w8a8_residual": Kind("W8A8, residual too", Row("linear+residual", "int8", weights=8)),
    "fp8": Kind("fp8, linear inputs", Row("linear", "fp8")),
}
FLOAT = "float"


@jax.jit
def _losses(model, tokens, rounding):
    return losses_of(model(tokens, rounding=rounding)[0], tokens)


_rounded = jax.jit(round_weights, static_argnums=1)


def round_run(folder: Path, config: TrainConfig) -> dict[str, float]:
    """The loss of the rows that a run is intervened on, in float and with each of KINDS.

    Args:
      folder: of `train`.
      config: of that run.

    Raises:
      UserError: the model or the data of the run cannot be read any more.
    """
    prepared, settings = prepare_run(folder, config)
    _, inputs = split(prepared, settings, settings.calibration_sequences)
    model = prepared.checkpoint.load_model(settings.dtype)
    depth, size = model.config.depth, min(settings.batch_size, len(inputs))
    ways = {FLOAT: FLOAT_ROW} | {name: kind.row for name, kind in KINDS.items()}
    sites = sites_of(tuple(ways.values()), depth)
    kept = np.zeros((1, inputs.length), bool)
    found = {}
    for name, row in ways.items():
        own = model if row.weights is None else _rounded(model, row.weights)
        rounding = rounding_of(row, row.places(depth), sites, kept, None, {})
        losses = [
            inputs.scored(jax.device_get(_losses(own, tokens, rounding)))[: rows.stop - rows.start]
            for rows, tokens, _ in inputs.batches(size)
        ]
        found[name] = float(np.concatenate(losses).astype(np.float64).mean())
    return found
