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


@dataclasses.dataclass(frozen=True)
class Sigmoid(Softmax):
    """sigmoid(logit - log T): no key's weight depends on another's (Ramapuram et al. 2024, "Theory,
    Analysis, and Best Practices for Sigmoid Self-Attention", section 3).

    Attributes:
      bias: -log T, with the context's length T.
    """

    bias: float

    def __call__(self, keys, extra):
        weigh = lambda logits: jax.nn.sigmoid(logits + self.bias)
        return weigh(keys), None if extra is None else weigh(extra)


@dataclasses.dataclass(frozen=True)
class Softpick(Softmax):
    """relu(exp(s) - 1) / sum |exp(s) - 1|: logits of at most 0 get nothing, and the weights need
    not add up to 1 (Zuhri et al. 2025, "Softpick", equation 4).

    Attributes:
      eps: added to the sum.
    """

    eps: float = 1e-6

    def __call__(self, keys, extra):
        logits = keys if extra is None else jnp.concatenate([keys, extra], axis=-1)
        peak = jax.lax.stop_gradient(jnp.maximum(logits.max(-1, keepdims=True), 0))
        # exp(s) - 1 over exp(peak): near 0 without cancelling, far above without overflowing.
        near = jnp.expm1(jnp.minimum(logits, 1)) * jnp.exp(-peak)
        rise = jnp.where(logits < 1, near, jnp.exp(logits - peak) - jnp.exp(-peak))
        rise = jnp.where(logits == -jnp.inf, 0, rise)  # a key that is not seen counts for nothing
        weights = jax.nn.relu(rise) / (jnp.abs(rise).sum(-1, keepdims=True) + self.eps)
        if extra is None:
            return weights, None
        return weights[..., : keys.shape[-1]], weights[..., keys.shape[-1] :]
