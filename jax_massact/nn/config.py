"""The configuration of a model, as parts that compose: everything that is not a weight.

A trait of a model is one field of the part that computes it, and is read there alone. A field added
here is computed by one table of `nn/` (norms, positions, mlp, embed, head, variants).
"""

import dataclasses
from typing import Any, Literal, get_args

from jax_massact.errors import ConfigError
from jax_massact.settings import check_float, check_in, check_int

NormKind = Literal["rms", "layer", "dyt"]
NormPlaces = Literal["in", "out", "both"]
PositionKind = Literal["rope", "rope_2d", "alibi", "alibi_rounded", "none"]
QKNormKind = Literal["none", "head", "per_head", "all"]
EmbeddedPositionKind = Literal["none", "learned"]
ActivationKind = Literal["silu", "gelu_tanh", "gelu", "quick_gelu", "relu", "clamped_swiglu"]
ResampleKind = Literal["exact", "antialias", "offset"]
PoolKind = Literal["cls", "mean", "cls_mean", "mean_norm", "map"]
RouterKind = Literal["softmax", "top_softmax"]
DType = Literal["float32", "bfloat16"]
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


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PatchConfig:
    """Images as tokens: every square patch is one (Dosovitskiy et al. 2021).

    Attributes:
      size: side of a patch in pixels.
      grid: rows and columns of patches that positions are learned for; other images may have any.
      channels: of the images (C).
      bias: whether the projection of patches has a bias.
      cls: whether a learned CLS token stands in front of all others.
      cls_position: whether it has a learned position, too.
      resample: how learned positions serve another grid, a row of `nn.patches.RESAMPLE`.
      mean, std: of each channel in [0, 1], by which uint8 images are normalized.
    """

    size: int
    grid: tuple[int, int]
    channels: int = 3
    bias: bool = True
    cls: bool = True
    cls_position: bool = True
    resample: ResampleKind = "exact"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        check_int("patches.size", self.size, 1)
        check_int("patches.channels", self.channels, 1)
        check_in("patches.resample", self.resample, get_args(ResampleKind))
        for name, length in (("grid", 2), ("mean", self.channels), ("std", self.channels)):
            if len(value := getattr(self, name)) != length:
                raise ConfigError(f"patches.{name} is {value!r}; expected: {length} numbers")
        for number in self.grid:
            check_int("patches.grid", number, 1)
        for number in self.std:
            check_float("patches.std", number, 0.0, open_low=True)
        if self.cls_position and not self.cls:
            raise ConfigError("patches.cls_position is True; expected without patches.cls: False")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class EmbedConfig:
    """From ids, or from images, to the residual stream.

    Attributes:
      vocab_size: V; of an encoder of images, what the head tells apart (1 without a head).
      positions: `learned`: a row for each position of the context is added; `none`.
      scale: factor on the embedded tokens.
      norm: whether the sum is normed, as before the head; of images, CLS and registers as well.
      patches: how images become tokens; None: the model takes ids.
    """

    vocab_size: int
    positions: EmbeddedPositionKind = "none"
    scale: float = 1.0
    norm: bool = False
    patches: PatchConfig | None = None

    def __post_init__(self) -> None:
        check_int("embed.vocab_size", self.vocab_size, 1)
        check_float("embed.scale", self.scale, 0.0, open_low=True)
        check_in("embed.positions", self.positions, get_args(EmbeddedPositionKind))
        if self.patches and self.positions == "none" and self.patches.cls_position:
            raise ConfigError(
                "patches.cls_position is True; expected with embed.positions='none': False"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """From the residual stream to logits.

    Attributes:
      tied: whether the embedding serves as the head's matrix.
      present: whether there is a head at all; a model without one has no logits.
      bias: whether its logits have a learned bias.
      scale: factor on the logits.
      softcap: logits become softcap * tanh(logits / softcap) in the end; None: as they are.
      pool: the features of an image, a row of `nn.pool.POOLS`; None: every token has logits.
    """

    tied: bool = False
    present: bool = True
    bias: bool = False
    scale: float = 1.0
    softcap: float | None = None
    pool: PoolKind | None = None

    def __post_init__(self) -> None:
        check_float("head.scale", self.scale, 0.0, open_low=True)
        if self.softcap is not None:
            check_float("head.softcap", self.softcap, 0.0, open_low=True)
        if self.pool is not None:
            check_in("head.pool", self.pool, get_args(PoolKind))
        if self.tied and not self.present:
            raise ConfigError("head.present is False; expected with head.tied=True: True")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """One transformer: everything that is not a weight.

    Letters used for sizes all over the package: V vocabulary, L layers (`depth`), D residual
    stream (`width`), N query heads, K key/value heads, H head dimension, F hidden units of the MLP,
    P learned positions, R rows in front or extra keys, E experts, B sequences, T tokens; of images
    also Y and X pixels, C channels, S tokens with CLS and registers.

    Attributes:
      context_length: the most tokens that the model takes, `first_position` included; of an
        encoder of images, the patches that positions are learned for.
      block: the blocks; the first kind of several.
      others: where blocks of several kinds alternate, the kinds that follow `block` in a period.
        They may differ in what has no parameters: windows, positions, scales.
      final_norm: before the head.
      registers: learned rows in front, behind CLS, that are no part of the input (Darcet et al.
        2024).
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
    registers: int = 0
    first_position: int = 0
    bias_position: int | None = None
    dtype: DType = "float32"

    def __post_init__(self) -> None:
        for name in ("depth", "width", "context_length"):
            check_int(name, getattr(self, name), 1)
        check_int("first_position", self.first_position, 0)
        check_int("registers", self.registers, 0)
        check_in("dtype", self.dtype, get_args(DType))
        if self.bias_position is not None:
            check_int("bias_position", self.bias_position, 0)
        for other in self.others:
            if _parameters_of(other) != _parameters_of(self.block):
                raise ConfigError(
                    "others differ from block in what decides the parameters; expected to differ: "
                    f"attention.{', attention.'.join(_WITHOUT_PARAMETERS)}"
                )

        self._check_images()

    def _check_images(self) -> None:
        patches, pool = self.embed.patches, self.head.pool
        if patches is None:
            if pool is not None or any(k.attention.position == "rope_2d" for k in self.pattern):
                raise ConfigError(
                    "embed.patches is None; expected with head.pool or 'rope_2d': how images "
                    "become tokens"
                )
            return
        if pool is None or self.head.tied or (not patches.cls and pool in ("cls", "cls_mean")):
            raise ConfigError(
                f"head.pool is {pool!r}, head.tied is {self.head.tied}; expected with images: a "
                "way of pooling that the model's tokens allow, and no tied head"
            )
        if self.context_length != patches.grid[0] * patches.grid[1]:
            raise ConfigError(
                f"context_length is {self.context_length}; expected with patches.grid "
                f"{patches.grid}: their number"
            )
        if any(kind.attention.position == "rope" for kind in self.pattern):
            raise ConfigError("attention.position is 'rope'; expected with images: 'rope_2d'")

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


_WITHOUT_PARAMETERS = (
    "window", "position", "rope", "slopes", "scale", "softcap", "clip", "implementation"
)


def _parameters_of(kind: BlockConfig) -> BlockConfig:
    attention = dataclasses.replace(
        kind.attention, position="none",
        **{name: None for name in _WITHOUT_PARAMETERS if name not in ("position", "rope")},
        rope=RopeConfig(),
    )
    return dataclasses.replace(kind, attention=attention)
