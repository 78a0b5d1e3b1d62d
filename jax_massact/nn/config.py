"""The configuration of a model: everything that is not a weight."""

import dataclasses
from typing import Literal, get_args

from jax_massact.errors import ConfigError
from jax_massact.settings import check_float, check_in, check_int

NormKind = Literal["rms", "layer"]


PositionKind = Literal["rope", "learned"]


RopePairs = Literal["interleaved", "halves"]


ActivationKind = Literal["silu", "gelu_tanh", "gelu"]


AttentionKind = Literal[
    "standard", "sink", "kv_bias", "k_bias", "v_bias", "sink_logit", "softmax1", "gated"
]


DType = Literal["float32", "bfloat16"]


ImplementationKind = Literal["xla", "cudnn", "splash"]


# Standard deviation of new weights, GPT-2's and LLaMA's.
INIT_STD = 0.02


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021).

    `pairs` says which two coordinates of a head turn together: `interleaved` (2i, 2i+1), as in
    the paper and in LLaMA's GGUF files, or `halves` (i, i+H/2), as in Hugging Face's files.
    `factors`, one for each pair, divide the frequencies: how Llama 3 stretches its context
    (`nn.layers.llama3_factors`).
    """

    base: float = 10_000.0
    pairs: RopePairs = "halves"
    factors: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        check_float("rope.base", self.base, 0.0, open_low=True)
        check_in("rope.pairs", self.pairs, ("interleaved", "halves"))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """The shape of one decoder-only transformer: everything that is not a weight.

    Letters used for sizes all over the package: V vocabulary, L layers (`depth`), D residual
    stream (`width`), N query heads, K key/value heads, H head dimension, F hidden units of the MLP,
    P learned positions, B sequences, T tokens.

    Attributes:
      first_position: position of the first token that is given to the model.
      attention: which variant of attention, a row of `nn.variants.VARIANTS`.
      bias_position: where k' of `kv_bias` stands: with a sliding window, queries further behind it
        do not see it. None: every query sees it.
      implementation: of attention, as for `nn.attention.attend`; None: the best that can compute
        it on the device at hand.

    Raises:
      ConfigError: a size is out of range, or two settings contradict each other.
    """

    family: str
    vocab_size: int
    depth: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    context_length: int
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    norm_bias: bool = False
    position: PositionKind = "rope"
    rope: RopeConfig = RopeConfig()
    first_position: int = 0
    activation: ActivationKind = "silu"
    gated_mlp: bool = True
    qkv_bias: bool = False
    attn_out_bias: bool = False
    mlp_bias: bool = False
    sliding_window: int | None = None
    attention: AttentionKind = "standard"
    bias_position: int | None = None
    tied_head: bool = False
    dtype: DType = "float32"
    implementation: ImplementationKind | None = None

    def __post_init__(self) -> None:
        for name in ("vocab_size", "depth", "width", "num_heads", "num_kv_heads", "head_dim",
                     "mlp_dim", "context_length"):
            check_int(name, getattr(self, name), 1)
        check_int("first_position", self.first_position, 0)
        check_float("norm_eps", self.norm_eps, 0.0, open_low=True)
        check_in("norm", self.norm, ("rms", "layer"))
        check_in("position", self.position, ("rope", "learned"))
        check_in("activation", self.activation, ("silu", "gelu_tanh", "gelu"))
        check_in("attention", self.attention, get_args(AttentionKind))
        check_in("dtype", self.dtype, ("float32", "bfloat16"))
        if self.implementation is not None:
            check_in("implementation", self.implementation, get_args(ImplementationKind))
        if self.bias_position is not None:
            check_int("bias_position", self.bias_position, 0)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads is {self.num_kv_heads}; allowed: a divisor of num_heads, "
                f"which is {self.num_heads}"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ConfigError(
                f"head_dim is {self.head_dim}; allowed with rotary positions: an even number"
            )
        if self.rope.factors is not None and len(self.rope.factors) != self.head_dim // 2:
            raise ConfigError(
                f"rope.factors has {len(self.rope.factors)} entries; expected one for each pair of "
                f"coordinates of a head, {self.head_dim // 2}"
            )
        if self.sliding_window is not None:
            check_int("sliding_window", self.sliding_window, 1)
        if self.norm_bias and self.norm == "rms":
            raise ConfigError("norm_bias is True; allowed with norm='rms': False")
