"""The interventions on massive activations: what each one sets, its name in reports, its colour.

A new intervention is a row of `CHANGES`: `massact intervene`, `massact compare` and their reports
read everything from here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jax_massact.nn.edits import Edits
from jax_massact.report.chart import BLUE, GREEN, GREY, ORANGE
from jax_massact.studies.targets import TargetPlace

FRACTION = "fraction_"  # begins the names of fractions of the mean


class Met(NamedTuple):
    """What can be changed in one batch: the targets found in it, and ordinary activations.

    Attributes:
      targets: E targets, each a layer and a dimension.
      tokens: where each target is massive.
      mean: calibrated mean of the massive activations there; 0 where nothing is massive.
      control_dims: dimension of each target's control.
      control: as many places in `control_dims` whose activations are ordinary.
    """

    targets: Sequence[TargetPlace]
    tokens: Bool[np.ndarray, "E B T"]
    mean: Float[np.ndarray, "E B T"]
    control_dims: Int[np.ndarray, " E"]
    control: Bool[np.ndarray, "E B T"]


class Change(NamedTuple):
    """One intervention.

    Attributes:
      words: its name in reports; what stands before a colon is enough where room is short.
      color: of its bars and marks.
      edits: the edits that make it in a batch. All interventions share one compilation.
    """

    words: str
    color: str
    edits: Callable[[Met], Edits]

    @property
    def short(self) -> str:
        """The name where room is short."""
        return self.words.partition(":")[0]


def set_to(factor: float) -> Callable[[Met], Edits]:
    """Sets massive activations to `factor` times their mean."""

    def edits(met: Met) -> Edits:
        return _edits(met, [t.dim for t in met.targets], met.tokens, factor * met.mean)

    return edits


def _zero_control(met: Met) -> Edits:
    return _edits(met, met.control_dims, met.control, 0 * met.mean)


def _nothing(met: Met) -> Edits:
    return _edits(met, [t.dim for t in met.targets], np.zeros_like(met.tokens), 0 * met.mean)


def _edits(
    met: Met,
    dims: Sequence[int] | np.ndarray,
    tokens: Bool[np.ndarray, "E B T"],
    value: Float[np.ndarray, "E B T"],
) -> Edits:
    """Edits that set `dims` at these places to `value`."""
    layers = np.array([t.layer for t in met.targets], np.int32)
    return Edits.set_to(layers, tokens, np.array(dims, np.int32), value)


ORIGINAL = Change("original", GREY, _nothing)
CHANGES = {
    "zero": Change("set to zero", ORANGE, set_to(0.0)),
    "mean": Change("set to the mean", BLUE, set_to(1.0)),
    "control_zero": Change("control: ordinary activations set to zero", GREEN, _zero_control),
}


def with_fractions(fractions: Sequence[float]) -> dict[str, Change]:
    """`CHANGES`, and after `mean` these fractions of it."""
    found = {}
    for name, change in CHANGES.items():
        found[name] = change
        if name == "mean":
            found |= {(key := f"{FRACTION}{f:g}"): change_of(key) for f in fractions}
    return found


def change_of(name: str) -> Change:
    """The intervention of this name in `intervene.json`, or the unchanged run.

    Raises:
      KeyError: there is none.
    """
    if name.startswith(FRACTION):
        factor = name.removeprefix(FRACTION)
        mean = CHANGES["mean"]
        return Change(f"set to {factor} of the mean", mean.color, set_to(float(factor)))
    return ORIGINAL if name == "original" else CHANGES[name]
