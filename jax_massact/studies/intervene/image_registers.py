"""Registers fixed at every block's input: to zero, to their mean, to another picture's."""

from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from jax_massact.measure.registers import fix_registers, registers_of
from jax_massact.nn.edits import VectorEdits
from jax_massact.nn.transformer import Transformer
from jax_massact.studies.inputs import ImageInputs

Values = Float[np.ndarray, "L B R D"]


class FixedRegisters:
    """The edits of one batch after another, in the order of the pictures.

    It holds the sum over all pictures and one picture's registers, however many there are.
    """

    def __init__(self, model: Transformer, inputs: ImageInputs, size: int) -> None:
        self._model, self._inputs, self._read = model, inputs, jax.jit(registers_of)
        self._sum, self._before = np.zeros(()), np.zeros(())
        for rows, pixels, _ in inputs.batches(size):
            values = self._values(pixels)[:, : rows.stop - rows.start]
            self._sum = self._sum + values.sum(1, dtype=np.float64)
            self._before = values[:, -1]

    def _values(self, pixels: np.ndarray) -> Values:
        found: Any = jax.device_get(self._read(self._model, pixels))
        return found

    def edits(self, rows: slice, pixels: np.ndarray) -> dict[str, VectorEdits]:
        """The edits of each change; "original" changes nothing."""
        own, n = self._values(pixels), rows.stop - rows.start
        others = (self._sum[:, None] - own) / (len(self._inputs) - 1)
        before = np.concatenate([self._before[:, None], own[:, :-1]], axis=1)
        self._before = own[:, n - 1]
        fixed = {
            name: fix_registers(self._model.config, values.astype(np.float32), self._inputs.length)
            for name, values in (
                ("registers_zero", np.zeros_like(own)), ("registers_mean", others),
                ("registers_shuffle", before),
            )
        }
        some = fixed["registers_zero"]
        nothing = VectorEdits(some.layer, some.tokens & False, some.vector, some.site)
        return {"original": nothing, **fixed}
