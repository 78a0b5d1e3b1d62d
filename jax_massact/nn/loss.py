"""The cross-entropy of next-token prediction."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_massact import mesh


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "*B V"], targets: Int[Array, "*B"]
) -> Float[Array, "*B"]:
    """-log softmax(logits)[target] in nats, computed in float32.

    Differentiable once, in reverse mode. Between the passes only the logits and one number for each
    target are kept, where automatic differentiation would keep float32 copies of the logits, and
    the gradient is written in the logits' dtype.
    """
    return _forward(logits, targets)[0]


def _forward(logits, targets):
    lse = jax.nn.logsumexp(logits.astype(jnp.float32), axis=-1)
    return lse - mesh.pick(logits, targets).astype(jnp.float32), (logits, targets, lse)


def _backward(residuals, cotangent):
    logits, targets, lse = residuals
    probabilities = jnp.exp(logits.astype(jnp.float32) - lse[..., None])
    gradient = probabilities - mesh.one_hot(logits, targets)
    return (gradient * cotangent[..., None]).astype(logits.dtype), None


cross_entropy.defvjp(_forward, _backward)
