"""The configuration of one kind of block, as parts that compose.

A trait of a block is one field of the part that computes it, and is read there alone. A field added
here is computed by one table of `nn/` (norms, positions, mlp, variants).
"""

import dataclasses
from typing import Literal, get_args

from jax_massact.errors import ConfigError
from jax_massact.settings import check_float, check_in, check_int

NormKind = Literal["rms", "layer", "dyt"]
NormPlaces = Literal["in", "out", "both"]
PositionKind = Literal["rope", "rope_2d", "alibi", "alibi_rounded", "none"]
QKNormKind = Literal["none", "head", "per_head", "all"]
ActivationKind = Literal["silu", "gelu_tanh", "gelu", "quick_gelu", "relu", "clamped_swiglu"]
RouterKind = Literal["softmax", "top_softmax"]
ImplementationKind = Literal["xla", "cudnn", "splash"]

# New factors of LayerScale, those of DINOv2.
LAYER_SCALE = 1e-5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NormConfig:
    """A norm over the residual stream.

    Attributes:
      kind: `rms` (Zhang and Sennrich 2019), `layer` (Ba et al. 2016), or `dyt`, which is no norm:
        tanh(alpha x) with a learned alpha (Zhu et al. 2025, "Transformers without Normalization").
      eps: added to the variance, or to the mean square.
      scale: whether the result is multiplied with a learned scale.
      offset: added to the learned scale; Gemma learns what is added to 1.
      wide: of `rms`, whether the result is rounded to the compute dtype after the scale rather than
        before; the others always round after it.
      bias: whether a learned bias is added; not of `rms`.
    """

    kind: NormKind = "rms"
    eps: float = 1e-5
    scale: bool = True
    offset: float = 0.0
    wide: bool = False
    bias: bool = False

    def __post_init__(self) -> None:
        check_in("norm.kind", self.kind, get_args(NormKind))
        check_float("norm.eps", self.eps, 0.0, open_low=True)
        check_float("norm.offset", self.offset, 0.0)
        if self.offset and not self.scale:
            raise ConfigError(f"norm.offset is {self.offset:g}; expected with norm.scale=False: 0")
        if self.bias and self.kind == "rms":
            raise ConfigError("norm.bias is True; expected with norm.kind='rms': False")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding (Su et al. 2021) over the pairs (i, i + R/2) of a head.

    Every way of stretching a context is a list of factors and one scale (`nn.positions`).

    Attributes:
      base: pair i turns by base^(-2i/R) radians a token.
      dims: the first R coordinates of a head are turned; None: all of them.
      factors: one divisor for each pair's frequency; None: all 1.
      long_factors: in place of `factors` where a sequence is longer than `original_context`.
      original_context: tokens, at positions counted from 0; None: `factors` serve every length.
      scale: of cosine and sine, as YaRN has it; queries and keys both get it.
    """

    base: float = 10_000.0
    dims: int | None = None
    factors: tuple[float, ...] | None = None
    long_factors: tuple[float, ...] | None = None
    original_context: int | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_float("rope.base", self.base, 0.0, open_low=True)
        check_float("rope.scale", self.scale, 0.0, open_low=True)
        if (self.long_factors is None) != (self.original_context is None):
            raise ConfigError(
                f"rope.original_context is {self.original_context}; expected: the context beyond "
                "which rope.long_factors serve, if there are any"
            )
        for name in ("dims", "original_context"):
            if (value := getattr(self, name)) is not None:
                check_int(f"rope.{name}", value, 1)

    def turned(self, head_dim: int) -> int:
        """Number of coordinates of a head that are rotated."""
        return head_dim if self.dims is None else self.dims

    def at(self, length: int) -> "RopeConfig":
        """The settings for a sequence whose last position is `length - 1`."""
        if self.original_context is None:
            return self
        factors = self.long_factors if length > self.original_context else self.factors
        return dataclasses.replace(self, factors=factors, long_factors=None, original_context=None)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionConfig:
    """Self-attention of one kind of block.

    Attributes:
      heads: query heads (N).
      kv_heads: key/value heads (K), a divisor of `heads`.
      head_dim: size of each head (H).
      variant: a row of `nn.variants.VARIANTS`.
      position: how queries and keys know their positions, a row of `nn.positions.POSITIONS`.
      rope: the settings of `position="rope"`, and the base of `position="rope_2d"`.
      slopes: of `position="alibi"`, one for each query head: slope times distance is taken from
        each logit (Press et al. 2022). With `alibi_rounded` slope times position is rounded to
        bfloat16 at every token, and `scale` times the difference is taken.
      causal: whether a query sees only its own token and those before it, rather than all.
      window: a query sees its own token and the `window - 1` before it; None: all before it.
      scale: factor on q.k; None: 1 / sqrt(head_dim).
      softcap: logits become softcap * tanh(logits / softcap); None: as they are.
      clip: queries, keys and values are cut to [-clip, clip] as they are projected; None: not.
      qk_norm: the norm of queries and keys before they are turned, of the block's kind and without
        a bias: of each `head` with one scale for all heads, `per_head` with a scale for each, or of
        `all` heads at once.
      qkv_bias, out_bias: whether the projections have biases.
      key_bias: whether that of the keys has one where `qkv_bias` says so.
      extra_keys: how many extra keys the variant has, if it has any (`fold` makes several).
      implementation: of attention, see `nn.attention.attend`; None: the fastest that can.
    """

    heads: int
    kv_heads: int
    head_dim: int
    variant: str = "standard"
    position: PositionKind = "rope"
    rope: RopeConfig = RopeConfig()
    slopes: tuple[float, ...] | None = None
    causal: bool = True
    window: int | None = None
    scale: float | None = None
    softcap: float | None = None
    clip: float | None = None
    qk_norm: QKNormKind = "none"
    qkv_bias: bool = False
    out_bias: bool = False
    key_bias: bool = True
    extra_keys: int = 1
    implementation: ImplementationKind | None = None

    def __post_init__(self) -> None:
        for name in ("heads", "kv_heads", "head_dim", "extra_keys"):
            check_int(f"attention.{name}", getattr(self, name), 1)
        check_in("attention.position", self.position, get_args(PositionKind))
        check_in("attention.qk_norm", self.qk_norm, get_args(QKNormKind))
        for name in ("scale", "softcap", "clip"):
            if (value := getattr(self, name)) is not None:
                check_float(f"attention.{name}", value, 0.0, open_low=True)
        if self.window is not None:
            check_int("attention.window", self.window, 1)
        if self.implementation is not None:
            check_in("attention.implementation", self.implementation, get_args(ImplementationKind))
        if self.heads % self.kv_heads:
            raise ConfigError(
                f"attention.kv_heads is {self.kv_heads}; expected: a divisor of attention.heads, "
                f"which is {self.heads}"
            )
        slopes = self.heads if self.position in ("alibi", "alibi_rounded") else 0
        if len(self.slopes or ()) != slopes:
            raise ConfigError(
                f"attention.slopes has {len(self.slopes or ())} entries; expected with "
                f"attention.position={self.position!r}: {slopes}"
            )
        if self.position == "rope":
            self._check_rope()
        if self.position == "rope_2d" and self.head_dim % 4:
            raise ConfigError(
                f"attention.head_dim is {self.head_dim}; expected with 'rope_2d': a multiple of 4, "
                "pairs of coordinates for rows and for columns"
            )

    def _check_rope(self) -> None:
        turned = self.rope.turned(self.head_dim)
        if self.rope.dims is None and turned % 2:
            raise ConfigError(
                f"attention.head_dim is {turned}; expected with rotary positions: an even number"
            )
        if turned % 2 or turned > self.head_dim:
            raise ConfigError(
                f"rope.dims is {turned}; expected: an even number of at most attention.head_dim, "
                f"which is {self.head_dim}"
            )
        for name in ("factors", "long_factors"):
            factors = getattr(self.rope, name)
            if factors is not None and len(factors) != turned // 2:
                raise ConfigError(
                    f"rope.{name} has {len(factors)} entries; expected: one for each pair of "
                    f"coordinates of a head that is turned, {turned // 2}"
                )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MoEConfig:
    """A mixture of experts: every token goes through the MLPs of a few of them.

    Attributes:
      experts: how many there are (E), each an MLP of `mlp.hidden` units; 0: one MLP for all tokens.
      active: how many serve a token (k).
      score: their weights, a row of `nn.moe.SCORES`: `softmax` over all experts, of which the k
        largest are taken, or `top_softmax` over the k largest logits.
      renormalize: whether the weights of the k largest are made to add up to 1.
      router_bias: whether the router's logits have a bias.
      shared: units of a further MLP that serves every token; 0: there is none.
      shared_gate: whether its result is multiplied with sigmoid(x w).
    """

    experts: int = 0
    active: int = 1
    score: RouterKind = "softmax"
    renormalize: bool = True
    router_bias: bool = False
    shared: int = 0
    shared_gate: bool = False

    def __post_init__(self) -> None:
        check_int("moe.experts", self.experts, 0)
        check_int("moe.active", self.active, 1)
        check_int("moe.shared", self.shared, 0)
        check_in("moe.score", self.score, get_args(RouterKind))
        if self.experts and self.active > self.experts:
            raise ConfigError(
                f"moe.active is {self.active}; expected: at most moe.experts, {self.experts}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MLPConfig:
    """The MLP of one kind of block.

    Attributes:
      hidden: units (F).
      activation: a row of `nn.mlp.ACTIVATIONS`.
      gated: act(gate(x)) * up(x) (SwiGLU) in place of act(up(x)).
      bias: whether its projections have biases.
      moe: the experts, if it is a mixture; `hidden` are then the units of one.
    """

    hidden: int
    activation: ActivationKind = "silu"
    gated: bool = True
    bias: bool = False
    moe: MoEConfig = MoEConfig()

    def __post_init__(self) -> None:
        check_int("mlp.hidden", self.hidden, 1)
        check_in("mlp.activation", self.activation, get_args(ActivationKind))
        if self.activation == "clamped_swiglu" and not self.gated:
            raise ConfigError("mlp.gated is False; expected with 'clamped_swiglu': True")
        if self.moe.experts and not self.gated:
            raise ConfigError("mlp.gated is False; expected with moe.experts above 0: True")

    @property
    def units(self) -> int:
        """Number of units of a token; of a mixture, those of its k experts and the shared ones."""
        return self.hidden * self.moe.active + self.moe.shared if self.moe.experts else self.hidden


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class BlockConfig:
    """One kind of block: x + attention(norm(x)), then + mlp(norm(.)).

    Attributes:
      norm: of attention and of the MLP.
      norms: whether it is their input that is normed (`in`), their result before it is added
        (`out`), or `both`.
      parallel: whether the MLP reads the block's input, as attention does.
      shared_norm: of parallel blocks, whether one norm serves attention and MLP.
      residual_scale: factor on the results of attention and MLP as they are added.
      layer_scale: whether there is a learned factor on each dimension of them (Touvron et al.
        2021).
    """

    attention: AttentionConfig
    mlp: MLPConfig
    norm: NormConfig = NormConfig()
    norms: NormPlaces = "in"
    parallel: bool = False
    shared_norm: bool = False
    residual_scale: float = 1.0
    layer_scale: bool = False

    def __post_init__(self) -> None:
        check_in("block.norms", self.norms, get_args(NormPlaces))
        check_float("block.residual_scale", self.residual_scale, 0.0, open_low=True)
        if self.norm.kind == "dyt" and self.attention.qk_norm != "none":
            raise ConfigError(
                f"attention.qk_norm is {self.attention.qk_norm!r}; expected with "
                "block.norm.kind='dyt': 'none'"
            )
        if self.shared_norm and not self.parallel:
            raise ConfigError(
                "block.shared_norm is True; expected with block.parallel=False: False"
            )
