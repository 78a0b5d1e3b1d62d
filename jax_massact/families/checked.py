"""What the numbers of each family were compared with, and how far they were off."""

import functools
import json
from importlib.resources import files
from typing import TypedDict

from jax_massact.families.family import Family


class Checked(TypedDict):
    """A comparison of small random models, as `tests/parity/measure.py` has recorded it.

    Attributes:
      oracle: the library that computed the expected numbers.
      models: how many configurations were compared.
      gguf: how many of these were compared as GGUF files, too.
      logits, hidden: how far the logits and the hidden state after any block are off at most, as a
        share of the largest value of a model, in float32.
    """

    oracle: str
    models: int
    gguf: int
    logits: float
    hidden: float


def checked(family: Family) -> Checked:
    """The comparison of a family."""
    return _recorded()[family.model_type]


@functools.cache
def _recorded() -> dict[str, Checked]:
    return json.loads((files("jax_massact.families") / "checked.json").read_text())
