"""The MLP of a block."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_massact.nn.block_config import ActivationKind, MLPConfig
from jax_massact.nn.draw import Key, drawn, split
from jax_massact.nn.fused.gelu import gelu
from jax_massact.nn.linear import project


def _in_float32(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """`function`, computed in float32 from arrays of any dtype.

    For the gradient only the input is kept and the rest computed again, which takes less time than
    to write and read it.
    """
    return jax.checkpoint(lambda x: function(x.astype(jnp.float32)).astype(x.dtype))


ACTIVATIONS: dict[ActivationKind, Callable[[jax.Array], jax.Array]] = {
    "silu": _in_float32(jax.nn.silu),
    "gelu_tanh": _in_float32(lambda x: jax.nn.gelu(x, approximate=True)),
    "gelu": _in_float32(gelu),
    "quick_gelu": _in_float32(lambda x: x * jax.nn.sigmoid(1.702 * x)),
    "relu": jax.nn.relu,
}


def _clamped_swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    """gpt-oss's: inputs are cut at 7, and 1 is added to the linear part."""
    gate, up = jnp.minimum(gate, 7), jnp.clip(up, -7, 7)
    return gate * jax.nn.sigmoid(1.702 * gate) * (up + 1)


# Activations of gate and up together.
GATES: dict[ActivationKind, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "clamped_swiglu": _clamped_swiglu,
}


def gated_units(activation: ActivationKind, gate: jax.Array, up: jax.Array) -> jax.Array:
    """The activated units of a gated MLP."""
    if activation in GATES:
        return GATES[activation](gate, up)
    return ACTIVATIONS[activation](gate) * up


class Router(NamedTuple):
    """The experts of every token of a mixture.

    Attributes:
      experts: their indices, the largest weight first.
      weights: by which their results are multiplied, float32.
    """

    experts: Int[Array, "B T k"]
    weights: Float[Array, "B T k"]


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x)) (SwiGLU, Shazeer 2020), or down(act(up(x))) without a gate."""

    def __init__(self, config: MLPConfig, width: int, out_std: float, key: Key):
        D, F, bias, gated = width, config.hidden, config.bias, config.gated
        up, gate, down = split(key, 3)
        self.up = drawn(up, D, F)
        self.gate = drawn(gate, D, F) if gated else None
        self.down = drawn(down, F, D, std=out_std)
        self.up_bias = nnx.Param(jnp.zeros(F)) if bias else None
        self.gate_bias = nnx.Param(jnp.zeros(F)) if bias and gated else None
        self.down_bias = nnx.Param(jnp.zeros(D)) if bias else None

    def hidden(
        self, x: Float[Array, "B T D"], activation: ActivationKind
    ) -> tuple[Float[Array, "B T F"], None]:
        """The activated units, which `down` reads; no router chooses among them."""
        up = project(x, self.up, "df", self.up_bias)
        if self.gate is None:
            return ACTIVATIONS[activation](up), None
        return gated_units(activation, project(x, self.gate, "df", self.gate_bias), up), None

    def output(
        self, hidden: Float[Array, "B T F"], router: Router | None = None
    ) -> Float[Array, "B T D"]:
        """Returns what the units add to the residual stream."""
        del router
        return project(hidden, self.down, "fd", self.down_bias)
