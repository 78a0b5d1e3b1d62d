"""Configurations of well-known shapes, to train and to measure."""

from jax_massact.errors import ConfigError
from jax_massact.nn.block_config import (
    AttentionConfig,
    BlockConfig,
    MLPConfig,
    NormConfig,
    RopeConfig,
)
from jax_massact.nn.config import DType, EmbedConfig, HeadConfig, ModelConfig, PatchConfig
from jax_massact.settings import check_int


def gpt2(
    *,
    vocab_size: int = 50304,
    depth: int = 12,
    width: int = 768,
    heads: int = 12,
    context_length: int = 1024,
    variant: str = "standard",
    dtype: DType = "bfloat16",
) -> ModelConfig:
    """A GPT-2 as Sun et al. (2024) build it: no biases, tied head; 124M parameters by default.

    Raises:
      ConfigError: a size is out of range, or the heads do not divide the width.
    """
    check_int("heads", heads, 1)
    if width % heads:
        raise ConfigError(f"heads is {heads}; expected: a divisor of width, {width}")
    norm = NormConfig(kind="layer")
    return ModelConfig(
        depth=depth,
        width=width,
        context_length=context_length,
        embed=EmbedConfig(vocab_size=vocab_size, positions="learned"),
        block=BlockConfig(
            attention=AttentionConfig(
                heads=heads, kv_heads=heads, head_dim=width // heads, variant=variant,
                position="none",
            ),
            mlp=MLPConfig(hidden=4 * width, activation="gelu", gated=False),
            norm=norm,
        ),
        final_norm=norm,
        head=HeadConfig(tied=True),
        dtype=dtype,
    )


def llama(
    *,
    vocab_size: int,
    depth: int,
    width: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    hidden: int,
    context_length: int,
    rope_base: float = 10_000.0,
    tied: bool = False,
) -> ModelConfig:
    """A LLaMA: RMSNorm, rotary positions, SwiGLU, no biases."""
    attention = AttentionConfig(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, rope=RopeConfig(base=rope_base)
    )
    return ModelConfig(
        depth=depth, width=width, context_length=context_length,
        embed=EmbedConfig(vocab_size=vocab_size),
        block=BlockConfig(attention=attention, mlp=MLPConfig(hidden=hidden)),
        head=HeadConfig(tied=tied),
    )


def dinov2(*, depth: int, width: int, heads: int, registers: int = 0) -> ModelConfig:
    """A DINOv2 with patches of 14 pixels, its positions learned for 37 x 37 of them."""
    norm = NormConfig(kind="layer", bias=True, eps=1e-6)
    attention = AttentionConfig(
        heads=heads, kv_heads=heads, head_dim=width // heads, position="none", causal=False,
        qkv_bias=True, out_bias=True,
    )
    return ModelConfig(
        depth=depth, width=width, context_length=37 * 37, registers=registers, final_norm=norm,
        embed=EmbedConfig(
            vocab_size=1, positions="learned", patches=PatchConfig(size=14, grid=(37, 37))
        ),
        block=BlockConfig(
            attention=attention, norm=norm, layer_scale=True,
            mlp=MLPConfig(hidden=4 * width, activation="gelu", gated=False, bias=True),
        ),
        head=HeadConfig(present=False, pool="cls"),
    )


SHAPES = {
    "llama2-7b": llama(
        vocab_size=32000, depth=32, width=4096, heads=32, kv_heads=32, head_dim=128,
        hidden=11008, context_length=4096,
    ),
    "llama2-70b": llama(
        vocab_size=32000, depth=80, width=8192, heads=64, kv_heads=8, head_dim=128,
        hidden=28672, context_length=4096,
    ),
    "smollm2-135m": llama(
        vocab_size=49152, depth=30, width=576, heads=9, kv_heads=3, head_dim=64, hidden=1536,
        context_length=8192, rope_base=1e5, tied=True,
    ),
    "gpt2-124m": gpt2(),
    # timm's vit_large_patch14_dinov2.
    "vit-l14": dinov2(depth=24, width=1024, heads=16),
}
