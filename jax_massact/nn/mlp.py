"""The MLP of a block."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.nn.config import INIT_STD, ActivationKind, BlockConfig
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
}


class MLP(nnx.Module):
    """down(act(gate(x)) * up(x)) (SwiGLU, Shazeer 2020), or down(act(up(x))) without a gate."""

    def __init__(self, config: BlockConfig, width: int, out_std: float, key: jax.Array):
        D, F, bias = width, config.mlp.hidden, config.mlp.bias
        up, gate, down = jax.random.split(key, 3)
        gated = config.mlp.gated
        self.up = nnx.Param(INIT_STD * jax.random.normal(up, (D, F)))
        self.gate = nnx.Param(INIT_STD * jax.random.normal(gate, (D, F))) if gated else None
        self.down = nnx.Param(out_std * jax.random.normal(down, (F, D)))
        self.up_bias = nnx.Param(jnp.zeros(F)) if bias else None
        self.gate_bias = nnx.Param(jnp.zeros(F)) if bias and gated else None
        self.down_bias = nnx.Param(jnp.zeros(D)) if bias else None

    def hidden(
        self, x: Float[Array, "B T D"], activation: ActivationKind
    ) -> Float[Array, "B T F"]:
        """The activated units, which `down` reads."""
        act = ACTIVATIONS[activation]
        up = project(x, self.up, "df", self.up_bias)
        if self.gate is None:
            return act(up)
        return act(project(x, self.gate, "df", self.gate_bias)) * up

    def output(self, hidden: Float[Array, "B T F"]) -> Float[Array, "B T D"]:
        """What the units add to the residual stream."""
        return project(hidden, self.down, "fd", self.down_bias)
