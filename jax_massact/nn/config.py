"""The configuration of a model, as parts that compose: everything that is not a weight.

A trait of a model is one field of the part that computes it, and is read there alone. A field added
here is computed by one table of `nn/` (norms, positions, mlp, embed, head, variants).
"""

import dataclasses
from typing import Any, Literal, get_args

from jax_massact.errors import ConfigError
from jax_massact.settings import check_float, check_in, check_int

NormKind = Literal["rms", "layer"]
PositionKind = Literal["rope", "none"]
EmbeddedPositionKind = Literal["none", "learned"]
ActivationKind = Literal["silu", "gelu_tanh", "gelu"]
DType = Literal["float32", "bfloat16"]
ImplementationKind = Literal["xla", "cudnn", "splash"]

# Standard deviation of new weights, GPT-2's and LLaMA's.
INIT_STD = 0.02


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    """A norm over the residual stream.

    Attributes:
      kind: `rms` (Zhang and Sennrich 2019) or `layer` (Ba et al. 2016).
      eps: added to the variance, or to the mean square.
      bias: whether a learned bias is added; `layer` only.
    """

    kind: NormKind = "rms"
    eps: float = 1e-5
    bias: bool = False

    def __post_init__(self) -> None:
        check_in("norm.kind", self.kind, get_args(NormKind))
        check_float("norm.eps", self.eps, 0.0, open_low=True)
        if self.bias and self.kind == "rms":
            raise ConfigError("norm.bias is True; allowed with norm.kind='rms': False")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) over the pairs (i, i + H/2) of a head.

    Every way of stretching a context is a list of factors and one scale (`nn.positions`).

    Attributes:
      base: pair i turns by base^(-2i/H) radians a token.
      factors: one divisor for each pair's frequency; None: all 1.
      scale: of cosine and sine, as YaRN has it; queries and keys both get it.
    """

    base: float = 10_000.0
    factors: tuple[float, ...] | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_float("rope.base", self.base, 0.0, open_low=True)
        check_float("rope.scale", self.scale, 0.0, open_low=True)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Self-attention of one kind of block.

    Attributes:
      heads: query heads (N).
      kv_heads: key/value heads (K), a divisor of `heads`.
      head_dim: size of each head (H).
      variant: a row of `nn.variants.VARIANTS`.
      position: how queries and keys know their positions, a row of `nn.positions.POSITIONS`.
      rope: the settings of `position="rope"`.
      window: a query sees its own token and the `window - 1` before it; None: all before it.
      scale: factor on q.k; None: 1 / sqrt(head_dim).
      softcap: logits become softcap * tanh(logits / softcap); None: as they are.
      qkv_bias, out_bias: whether the projections have biases.
      extra_keys: how many extra keys the variant has, if it has any (`fold` makes several).
      implementation: of attention, see `nn.attention.attend`; None: the fastest that can.
    """

    heads: int
    kv_heads: int
    head_dim: int
    variant: str = "standard"
    position: PositionKind = "rope"
    rope: RopeConfig = RopeConfig()
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    extra_keys: int = 1
    implementation: ImplementationKind | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim", "extra_keys"):
            check_int(f"attention.{name}", getattr(self, name), 1)
        check_in("attention.position", self.position, get_args(PositionKind))
        for name in ("scale", "softcap"):
            if (value := getattr(self, name)) is not None:
                check_float(f"attention.{name}", value, 0.0, open_low=True)
        if self.window is not None:
            check_int("attention.window", self.window, 1)
        if self.implementation is not None:
            check_in("attention.implementation", self.implementation, get_args(ImplementationKind))
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"attention.kv_heads is {self.kv_heads}; allowed: a divisor of attention.heads, "
                f"which is {self.heads}"
            )
        if self.position != "rope":
            return
        if self.head_dim % 2:
            raise ConfigError(
                f"attention.head_dim is {self.head_dim}; allowed with rotary positions: an even "
                "number"
            )
        factors = self.rope.factors
        if factors is not None and len(factors) != self.head_dim // 2:
            raise ConfigError(
                f"rope.factors has {len(factors)} entries; expected: one for each pair of "
                f"coordinates of a head, {self.head_dim // 2}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MLPConfig:
    """The MLP of one kind of block.

    Attributes:
      hidden: units (F).
      activation: a row of `nn.mlp.ACTIVATIONS`.
      gated: act(gate(x)) * up(x) (SwiGLU) in place of act(up(x)).
      bias: whether its projections have biases.
    """

    hidden: int
    activation: ActivationKind = "silu"
    gated: bool = True
    bias: bool = False

    def __post_init__(self) -> None:
        check_int("mlp.hidden", self.hidden, 1)
        check_in("mlp.activation", self.activation, get_args(ActivationKind))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """One kind of block: x + attention(norm(x)), then + mlp(norm(.)).

    Attributes:
      norm: before attention and before the MLP.
    """

    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """From ids to the residual stream.

    Attributes:
      vocab_size: V.
      positions: `learned`: a row for each position of the context is added; `none`.
    """

    vocab_size: int
    positions: EmbeddedPositionKind = "none"

    def __post_init__(self) -> None:
        check_int("embed.vocab_size", self.vocab_size, 1)
        check_in("embed.positions", self.positions, get_args(EmbeddedPositionKind))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """From the residual stream to logits.

    Attributes:
      tied: whether the embedding serves as the head's matrix.
      present: whether there is a head at all; a model without one has no logits.
    """

    tied: bool = False
    present: bool = True

    def __post_init__(self) -> None:
        if self.tied and not self.present:
            raise ConfigError("head.present is False; allowed with head.tied=True: True")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One transformer: everything that is not a weight.

    Letters used for sizes all over the package: V vocabulary, L layers (`depth`), D residual
    stream (`width`), N query heads, K key/value heads, H head dimension, F hidden units of the MLP,
    P learned positions, R rows in front or extra keys, B sequences, T tokens.

    Attributes:
      context_length: the most tokens that the model takes, `first_position` included.
      block: the blocks; the first kind of several.
      others: where blocks of several kinds alternate, the kinds that follow `block` in a period.
        They may differ in what has no parameters: windows, positions, scales.
      final_norm: before the head.
      first_position: position of the first token that is given to the model.
      bias_position: position of the first extra key: with a window, queries further behind it do
        not see it. None: every query sees every extra key.
      dtype: of the computation.

    Raises:
      ConfigError: a size is out of range, or two settings contradict each other.
    """

    depth: int
    width: int
    context_length: int
    embed: EmbedConfig
    block: BlockConfig
    others: tuple[BlockConfig, ...] = ()
    final_norm: NormConfig = NormConfig()
    head: HeadConfig = HeadConfig()
    first_position: int = 0
    bias_position: int | None = None
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in ("depth", "width", "context_length"):
            check_int(name, getattr(self, name), 1)
        check_int("first_position", self.first_position, 0)
        check_in("dtype", self.dtype, get_args(DType))
        if self.bias_position is not None:
            check_int("bias_position", self.bias_position, 0)
        for other in self.others:
            if _parameters_of(other) != _parameters_of(self.block):
                raise ConfigError(
                    "others differ from block in what decides the parameters; allowed to differ: "
                    f"attention.{', attention.'.join(_WITHOUT_PARAMETERS)}"
                )

    @property
    def pattern(self) -> tuple[BlockConfig, ...]:
        """The kinds of blocks in one period: layer l is of kind l mod their number."""
        return (self.block, *self.others)

    def with_attention(self, **changes: Any) -> "ModelConfig":
        """This model with these fields of `AttentionConfig` in every kind of block."""
        first, *others = (
            dataclasses.replace(kind, attention=dataclasses.replace(kind.attention, **changes))
            for kind in self.pattern
        )
        return dataclasses.replace(self, block=first, others=tuple(others))

    def reach(self, kind: BlockConfig) -> int | None:
        """How many queries see the first extra key in a block of this kind; None: all.

        Extra key r is seen by r more: each stands one position further on.
        """
        if kind.attention.window is None or self.bias_position is None:
            return None
        return max(0, kind.attention.window - (self.first_position - self.bias_position))


_WITHOUT_PARAMETERS = ("window", "position", "rope", "scale", "softcap", "implementation")


def _parameters_of(kind: BlockConfig) -> tuple:
    attention = dataclasses.replace(
        kind.attention, position="none",
        **{name: None for name in ("window", "scale", "softcap", "implementation")},
        rope=RopeConfig(),
    )
    return attention, kind.mlp, kind.norm
