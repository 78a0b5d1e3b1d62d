"""The attention variants people compare: what each adds to one softmax over the keys.

A variant is a module with three hooks and a row in `VARIANTS`; adding one touches this file only
(and `PARAMETER_KINDS` of `nn.decoder`, where it has a parameter of a new name). Parameters are per
key/value head, so that grouped-query models have them, too; in GPT-2 that is every head.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact import mesh
from jax_massact.nn.config import INIT_STD, ModelConfig
from jax_massact.nn.extra import Extra


class Standard(nnx.Module):
    """softmax(q K^T / sqrt(H)) V and nothing else; the base of all others.

    Attributes:
      tokens_in_front: how many learned embeddings stand before every sequence.
    """

    tokens_in_front = 0

    def __init__(self, config: ModelConfig, key: jax.Array):
        del config, key

    def extra(self) -> Extra | None:
        """One more key that every query sees."""
        return None

    def heads(
        self, z: Float[Array, "B T N H"], normed: Float[Array, "B T D"]
    ) -> Float[Array, "B T N H"]:
        """The heads' results, changed before they are summed into the residual stream.

        Args:
          z: what the softmax gave.
          normed: the attention's input.
        """
        del normed
        return z


class SinkToken(Standard):
    """A learned embedding in front of every sequence, dropped before the final norm (Xiao et al.
    2023; Sun et al. 2024, section 4.3). It is not a part of any block: `Transformer` holds it."""

    tokens_in_front = 1


class KVBias(Standard):
    """Explicit attention biases k' and v' (Sun et al. 2024, equation 3):
    softmax(q [K^T k'] / sqrt(H)) [V; v'^T]. k' is not rotated."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        k, v = jax.random.split(key)
        shape = (config.num_kv_heads, config.head_dim)
        self.k = nnx.Param(INIT_STD * jax.random.normal(k, shape))
        self.v = nnx.Param(INIT_STD * jax.random.normal(v, shape))

    def extra(self) -> Extra:
        return Extra(key=self.k[...], value=self.v[...])


class KBias(Standard):
    """As `KVBias` with v' = 0: the key takes attention and gives nothing (Gu et al. 2024)."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        self.k = nnx.Param(
            INIT_STD * jax.random.normal(key, (config.num_kv_heads, config.head_dim))
        )

    def extra(self) -> Extra:
        return Extra(key=self.k[...])


class VBias(Standard):
    """softmax(q K^T / sqrt(H)) V + v': a bias of the output without a key (Gu et al. 2024)."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        self.v = nnx.Param(
            INIT_STD * jax.random.normal(key, (config.num_kv_heads, config.head_dim))
        )

    def heads(
        self, z: Float[Array, "B T N H"], normed: Float[Array, "B T D"]
    ) -> Float[Array, "B T N H"]:
        del normed
        v = self.v[...].astype(z.dtype)
        return z + mesh.per_query_head(v, z.shape[2])


class SinkLogit(Standard):
    """A learned logit for each head, of a key whose value is 0 (gpt-oss, 2025)."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        del key
        self.logit = nnx.Param(jnp.zeros(config.num_heads))

    def extra(self) -> Extra:
        return Extra(logit=self.logit[...])


class Softmax1(Standard):
    """exp(s) / (1 + sum exp(s)): a logit of 0 and a value of 0 (Miller 2023)."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        del key
        self.num_heads = config.num_heads

    def extra(self) -> Extra:
        return Extra(logit=jnp.zeros(self.num_heads))


class Gated(Standard):
    """Every head's result times sigmoid(x W), x the attention's input (Qiu et al. 2025)."""

    def __init__(self, config: ModelConfig, key: jax.Array):
        shape = (config.width, config.num_heads)
        self.gate = nnx.Param(INIT_STD * jax.random.normal(key, shape))

    def heads(
        self, z: Float[Array, "B T N H"], normed: Float[Array, "B T D"]
    ) -> Float[Array, "B T N H"]:
        w = mesh.gathered(self.gate[...].astype(normed.dtype), "gate_dn")
        gate = mesh.einsum("btd,dn->btn", normed, w, out="act_btn")
        return z * jax.nn.sigmoid(gate)[..., None]


VARIANTS: dict[str, type[Standard]] = {
    "standard": Standard,
    "sink": SinkToken,
    "kv_bias": KVBias,
    "k_bias": KBias,
    "v_bias": VBias,
    "sink_logit": SinkLogit,
    "softmax1": Softmax1,
    "gated": Gated,
}
