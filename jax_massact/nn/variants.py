"""The attention variants people compare: what each adds to one softmax over the keys.

A variant is one class here, with hooks and a sentence about itself, and a row in `VARIANTS`; each
of its parameters has a row in `nn.parameters.PARAMETERS`. Everything else asks these rows.
Parameters are per key/value head, so that grouped-query models have them, too; in GPT-2 that is
every head.
"""

import difflib
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.errors import ConfigError
from jax_massact.nn import sharded
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.draw import Key, drawn, split
from jax_massact.nn.extra import Extra
from jax_massact.nn.linear import project
from jax_massact.nn.weigh import Clipped, Sigmoid, Softmax, Softpick


class Standard(nnx.Module):
    """softmax(q K^T / sqrt(H)) V and nothing else; the base of all others.

    Attributes:
      about: one sentence for tables and help.
      prefix: how many learned rows stand in front of every sequence.
      extra_key: what takes attention beside the tokens, in words; None: nothing does.
    """

    about = "softmax attention and nothing else"
    prefix = 0
    extra_key: str | None = None

    def __init__(self, config: ModelConfig, key: Key):
        del config, key

    @classmethod
    def weigh(cls, config: ModelConfig) -> Softmax:
        """From logits to weights."""
        del config
        return Softmax()

    def extra(self) -> Extra | None:
        """The extra keys that every query sees."""
        return None

    def heads(
        self, z: Float[Array, "B T N H"], attn_in: Float[Array, "B T D"]
    ) -> Float[Array, "B T N H"]:
        """The heads' results, changed before they are summed into the residual stream.

        Args:
          z: what the softmax gave.
          attn_in: the attention's input.
        """
        del attn_in
        return z


class SinkToken(Standard):
    """A learned embedding in front of every sequence, dropped before the final norm (Xiao et al.
    2023; Sun et al. 2024, section 4.3). It is not a part of any block: `Transformer` holds it."""

    about = "a learned sink token in front of every sequence"
    prefix = 1


class KVBias(Standard):
    """Explicit attention biases k' and v' (Sun et al. 2024, equation 3):
    softmax(q [K^T k'] / sqrt(H)) [V; v'^T]. k' is not rotated."""

    about = "a learned key k' and value v' for each head (Sun et al. 2024, equation 3)"
    extra_key = "k'"

    def __init__(self, config: ModelConfig, key: Key):
        k, v = split(key)
        self.k = drawn(k, *_extra_shape(config))
        self.v = drawn(v, *_extra_shape(config))

    def extra(self) -> Extra:
        return Extra(key=self.k[...], value=self.v[...])


class KBias(Standard):
    """As `KVBias` with v' = 0: the key takes attention and gives nothing (Gu et al. 2024)."""

    about = "a learned key k' for each head, whose value is 0"
    extra_key = "k'"

    def __init__(self, config: ModelConfig, key: Key):
        self.k = drawn(key, *_extra_shape(config))

    def extra(self) -> Extra:
        return Extra(key=self.k[...])


class VBias(Standard):
    """softmax(q K^T / sqrt(H)) V + v': a bias of the output without a key (Gu et al. 2024)."""

    about = "a learned bias v' added to each head's result"

    def __init__(self, config: ModelConfig, key: Key):
        shape = _extra_shape(config)[1:]
        self.v_bias = drawn(key, *shape)

    def heads(
        self, z: Float[Array, "B T N H"], attn_in: Float[Array, "B T D"]
    ) -> Float[Array, "B T N H"]:
        del attn_in
        return z + sharded.per_query_head(self.v_bias[...].astype(z.dtype), z.shape[2])


class SinkLogit(Standard):
    """A learned logit for each head, of a key whose value is 0 (gpt-oss, 2025)."""

    about = "a learned logit for each head, of a key whose value is 0"
    extra_key = "the learned logit"

    def __init__(self, config: ModelConfig, key: Key):
        del key
        self.logit = nnx.Param(jnp.zeros(config.block.attention.heads))

    def extra(self) -> Extra:
        return Extra(logit=self.logit[...][None])


class Softmax1(Standard):
    """exp(s) / (1 + sum exp(s)): a logit of 0 and a value of 0 (Miller 2023)."""

    about = "softmax with 1 added to its denominator"
    extra_key = "the 1 in the denominator"

    def __init__(self, config: ModelConfig, key: Key):
        del key
        self.heads_number = config.block.attention.heads

    def extra(self) -> Extra:
        return Extra(logit=jnp.zeros((1, self.heads_number)))


class Gated(Standard):
    """Every head's result times sigmoid(x W), x the attention's input (Qiu et al. 2025)."""

    about = "each head's result times a sigmoid gate of the attention's input"

    def __init__(self, config: ModelConfig, key: Key):
        shape = (config.width, config.block.attention.heads)
        self.gate = drawn(key, *shape)

    def heads(
        self, z: Float[Array, "B T N H"], attn_in: Float[Array, "B T D"]
    ) -> Float[Array, "B T N H"]:
        return z * jax.nn.sigmoid(project(attn_in, self.gate, "dn"))[..., None]


class ClippedSoftmax(Standard):
    """A softmax stretched below 0 and clipped, whose weights can be exactly 0 (Bondarenko et al.
    2023, section 4.1; gamma = -alpha / T with the context's length T)."""

    about = "softmax stretched and clipped, so that weights can be exactly 0"
    ALPHA = 4.0

    @classmethod
    def weigh(cls, config: ModelConfig) -> Softmax:
        return Clipped(gamma=-cls.ALPHA / config.context_length)


class SigmoidAttention(Standard):
    """Each key weighed by itself, with a sigmoid (Ramapuram et al. 2024)."""

    about = "a sigmoid of each logit in place of the softmax"

    @classmethod
    def weigh(cls, config: ModelConfig) -> Softmax:
        return Sigmoid(bias=-math.log(config.context_length))


class SoftpickAttention(Standard):
    """A softmax that is rectified, whose weights can all be 0 (Zuhri et al. 2025)."""

    about = "a rectified softmax, whose weights can all be 0"

    @classmethod
    def weigh(cls, config: ModelConfig) -> Softmax:
        del config
        return Softpick()


def _extra_shape(config: ModelConfig) -> tuple[int, int, int]:
    attention = config.block.attention
    return attention.extra_keys, attention.kv_heads, attention.head_dim


VARIANTS: dict[str, type[Standard]] = {
    "standard": Standard,
    "sink": SinkToken,
    "kv_bias": KVBias,
    "k_bias": KBias,
    "v_bias": VBias,
    "sink_logit": SinkLogit,
    "softmax1": Softmax1,
    "gated": Gated,
    "clipped": ClippedSoftmax,
    "sigmoid": SigmoidAttention,
    "softpick": SoftpickAttention,
}


def variant_of(config: ModelConfig) -> type[Standard]:
    """The row of VARIANTS that the model's attention names.

    Raises:
      ConfigError: there is none.
    """
    name = config.block.attention.variant
    if name not in VARIANTS:
        near = difflib.get_close_matches(str(name), VARIANTS, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"attention.variant is {name!r}; expected: one of {', '.join(VARIANTS)}.{hint}"
        )
    return VARIANTS[name]


def rows_in_front(config: ModelConfig) -> int:
    """How many learned rows stand in front of the input: CLS, registers, the variant's."""
    patches = config.embed.patches
    return variant_of(config).prefix + config.registers + (patches is not None and patches.cls)
