"""From logits to weights: the softmax of attention, and what variants put in its place."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@dataclasses.dataclass(frozen=True)
class Softmax:
    """exp(logit) over the sum of all; frozen, so that it can be a static part of a block."""

    def __call__(
        self, keys: Float[Array, "*B S"], extra: Float[Array, "*B R"] | None
    ) -> tuple[Float[Array, "*B S"], Float[Array, "*B R"] | None]:
        """Weights of real and of extra keys, which share one softmax.

        Args:
          keys, extra: float32 logits, -inf where a key is not seen.
        """
        peak = keys.max(-1, keepdims=True)
        if extra is not None:
            peak = jnp.maximum(peak, extra.max(-1, keepdims=True))
        peak = jax.lax.stop_gradient(peak)
        keys = jnp.exp(keys - peak)
        total = keys.sum(-1, keepdims=True)
        if extra is None:
            return keys / total, None
        extra = jnp.exp(extra - peak)
        total = total + extra.sum(-1, keepdims=True)
        return keys / total, extra / total


@dataclasses.dataclass(frozen=True)
class Clipped(Softmax):
    """clip((zeta - gamma) softmax + gamma, 0, 1): exact zeros without infinite logits.

    Bondarenko et al. 2023, "Quantizable Transformers", equation 4.

    Attributes:
      gamma: below 0; weights of less than -gamma / (zeta - gamma) become 0.
      zeta: at least 1.
    """

    gamma: float
    zeta: float = 1.0

    def __call__(self, keys, extra):
        stretch = lambda w: jnp.clip((self.zeta - self.gamma) * w + self.gamma, 0, 1)
        keys, extra = super().__call__(keys, extra)
        return stretch(keys), None if extra is None else stretch(extra)
