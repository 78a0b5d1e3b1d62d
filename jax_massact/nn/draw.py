"""New weights. Without a key they are zeros: the shapes alone are found eight times as fast."""

import jax
import jax.numpy as jnp
from flax import nnx

# Standard deviation of new weights, GPT-2's and LLaMA's.
INIT_STD = 0.02
Key = jax.Array | None


def drawn(key: Key, *shape: int, std: float = INIT_STD) -> nnx.Param:
    """A parameter of normal numbers, or of zeros without a key; float32."""
    return nnx.Param(jnp.zeros(shape) if key is None else std * jax.random.normal(key, shape))


def split(key: Key, number: int = 2) -> list[Key]:
    """Independent keys from one."""
    return [None] * number if key is None else list(jax.random.split(key, number))
