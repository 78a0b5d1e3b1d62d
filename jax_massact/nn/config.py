"""The configuration of a model: what its blocks share, around their own (`nn.block_config`).

A trait of a model is one field of the part that computes it, and is read there alone. A field added
here is computed by one table of `nn/` (embed, patches, head, pool).
"""

import dataclasses
from typing import Any, Literal, get_args

from jax_massact.errors import ConfigError
from jax_massact.nn.block_config import BlockConfig, NormConfig, RopeConfig
from jax_massact.settings import check_float, check_in, check_int

EmbeddedPositionKind = Literal["none", "learned"]
ResampleKind = Literal["exact", "antialias", "offset"]
PoolKind = Literal["cls", "mean", "cls_mean", "mean_norm", "map"]
DType = Literal["float32", "bfloat16"]


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
