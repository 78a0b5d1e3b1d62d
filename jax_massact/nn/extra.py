"""Extra keys and values for the softmax of attention: the form of every bias of its variants."""

from typing import NamedTuple

from jaxtyping import Array, Float


class Extra(NamedTuple):
    """R more keys and values: softmax([q K^T, q key + logit]) [V; value], logits scaled alike.

    Attributes:
      key: not rotated, however queries are; None: 0.
      logit: for each query head, added after the scale; None: 0.
      value: None: 0.
    """

    key: Float[Array, "R K H"] | None = None
    logit: Float[Array, "R N"] | None = None
    value: Float[Array, "R K H"] | None = None

    @property
    def number(self) -> int:
        """R."""
        return next(x.shape[0] for x in self if x is not None)
