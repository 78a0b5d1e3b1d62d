"""What the families have in common in GGUF files, under llama.cpp's names."""

import dataclasses
from collections.abc import Collection
from typing import Any

import numpy as np

from jax_massact.errors import WeightsError
from jax_massact.families.fields import in_all_norms
from jax_massact.families.places import Place, in_blocks
from jax_massact.families.rope import Scaling, rope_fields, yarn
from jax_massact.nn.block_config import RopeConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings
from jax_massact.weights.tensors import Tensor

ROPE_FREQS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = (f"rope_factors_{kind}.weight" for kind in ("long", "short"))

# Settings that other members of these architectures use and this package does not compute, each
# with the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.scale": (),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
    "attn_logit_softcapping": (0.0,),
    "attention.logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "expert_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (1.0,),
    "residual_scale": (1.0,),
    "rope.scaling.attn_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}


def read_sizes(
    settings: Settings, file: GgufFile, *, known: Collection[str] = ()
) -> dict[str, Any]:
    """The fields that all families state, whatever their blocks are made of.

    Args:
      known: settings that this family computes and others do not.

    Raises:
      WeightsError: a setting is not supported, or one is missing or wrong.
    """
    for name, unused in _UNUSED.items():
        if name not in known and settings.has(name) and settings.get(name) not in unused:
            raise settings.error(name, " or ".join(map(repr, unused)) or "nothing, not supported")
    width, heads = settings.size("embedding_length"), _same_in_all(settings, "attention.head_count")
    head_dim = settings.size("attention.key_length", max(width // heads, 1))
    if settings.size("attention.value_length", head_dim) != head_dim:
        raise settings.error("attention.value_length", f"{head_dim}, that of the keys")
    return {
        "embed.vocab_size": _vocab_size(settings, file),
        "depth": settings.size("block_count"),
        "width": width,
        "context_length": settings.size("context_length"),
        "block.attention.heads": heads,
        "block.attention.kv_heads": _same_in_all(settings, "attention.head_count_kv", heads),
        "block.attention.head_dim": head_dim,
        "block.mlp.hidden": _same_in_all(settings, "feed_forward_length"),
        "head.tied": "output.weight" not in file.tensors,
    }


def read_window(settings: Settings) -> int | None:
    """The window that is stated; 0 means none."""
    has_one = settings.get("attention.sliding_window", 0)
    return settings.size("attention.sliding_window") if has_one else None


def read_rope(
    settings: Settings,
    file: GgufFile,
    head_dim: int,
    *,
    partial: bool = False,
    truncate: bool = True,
) -> RopeConfig:
    """The rotary settings.

    Args:
      partial: whether the family turns a part of a head.
      truncate: whether YaRN's first and last pair are rounded, which the file does not say.

    Raises:
      WeightsError: a kind of scaling is not supported, or a setting is missing or wrong.
    """
    dims = settings.size("rope.dimension_count", head_dim)
    if dims != head_dim and not partial:
        raise settings.error("rope.dimension_count", f"{head_dim}, the whole head")
    rope = RopeConfig(
        base=settings.number("rope.freq_base", 10_000.0), dims=None if dims == head_dim else dims
    )
    if settings.get("rope.scaling.type") == "yarn":
        return _yarn(settings, rope, dims, truncate)
    if LONG_FACTORS in file.tensors:
        return _longrope(settings, file, rope, dims)
    factors = _factors(settings, file.tensors.get(ROPE_FREQS), dims // 2)
    return dataclasses.replace(rope, factors=factors)


def _yarn(settings: Settings, rope: RopeConfig, dims: int, truncate: bool) -> RopeConfig:
    """YaRN as llama.cpp computes it: the scale follows from the factor, times what is stated."""
    context = settings.size("context_length")
    original = settings.size("rope.scaling.original_context_length", context)
    stated: dict[str, Any] = {"truncate": truncate} | {
        name: value
        for name, key in (
            ("factor", "factor"), ("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")
        )
        if (value := settings.get(f"rope.scaling.{key}")) is not None
    }
    scaling = Scaling(Settings(stated, settings.file), rope, dims, context, original)
    found = yarn(scaling)
    return dataclasses.replace(
        found, scale=found.scale * settings.number("rope.scaling.attn_factor", 1.0)
    )


def _longrope(settings: Settings, file: GgufFile, rope: RopeConfig, dims: int) -> RopeConfig:
    short, long = (
        tuple(_divisors(file.tensors[name], dims // 2).tolist())
        for name in (SHORT_FACTORS, LONG_FACTORS)
    )
    return dataclasses.replace(
        rope,
        factors=short,
        long_factors=long,
        original_context=settings.size("rope.scaling.original_context_length"),
        scale=settings.number("rope.scaling.attn_factor", 1.0),
    )


def read_decoder(
    settings: Settings, file: GgufFile, *, known: Collection[str] = (), partial: bool = False
) -> dict[str, Any]:
    """The fields of a model with RMSNorm, rotary positions and a gated MLP.

    Args:
      known: as for `read_sizes`.
      partial: as for `read_rope`.

    Raises:
      WeightsError: a setting is not supported, or one is missing or wrong.
    """
    sizes = read_sizes(settings, file, known=("rope.scaling.attn_factor", *known))
    rope = read_rope(settings, file, sizes["block.attention.head_dim"], partial=partial)
    if rope.scale == 1.0 and settings.get("rope.scaling.attn_factor", 1.0) != 1.0:
        raise settings.error("rope.scaling.attn_factor", "1.0 without YaRN and LongRoPE")
    has, eps = file.tensors.__contains__, settings.number("attention.layer_norm_rms_epsilon")
    return {
        **sizes,
        **rope_fields(rope),
        "block.attention.window": read_window(settings),
        # llama.cpp reads a bias wherever there is one.
        "block.attention.qkv_bias": has("blk.0.attn_q.bias"),
        "block.attention.out_bias": has("blk.0.attn_output.bias"),
        "block.mlp.bias": has("blk.0.ffn_up.bias"),
        **in_all_norms(eps=eps),
    }


def _same_in_all(settings: Settings, name: str, default: int | None = None) -> int:
    """A size that may be stated once, or once for each block."""
    value = settings.get(name)
    if not isinstance(value, list):
        return settings.size(name, default)
    if len(value) != settings.size("block_count") or len(set(map(str, value))) != 1:
        raise settings.error(name, "the same number for every block")
    return Settings({name: value[0]}, settings.file).size(name)


def _vocab_size(settings: Settings, file: GgufFile) -> int:
    embed = file.tensors.get("token_embd.weight")
    rows = embed.shape[0] if embed else None
    size = settings.size("vocab_size", rows)
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > size:
        raise WeightsError(
            f"{settings.file}: tokenizer.ggml.tokens has {len(tokens):,} entries; expected: at "
            f"most {size:,}, the number of embeddings"
        )
    return size


def _factors(settings: Settings, freqs: Tensor | None, count: int) -> tuple[float, ...] | None:
    """The divisors of the rotary frequencies: a tensor, or one number for all."""
    kind = settings.get("rope.scaling.type", "linear")
    if kind not in ("none", "linear"):
        raise settings.error("rope.scaling.type", "'none', 'linear' or 'yarn'")
    factor = settings.number("rope.scaling.factor", settings.number("rope.scale_linear", 1.0))
    factor = 1.0 if kind == "none" else factor
    if freqs is None:
        return None if factor == 1.0 else (factor,) * count
    return tuple((_divisors(freqs, count) * factor).tolist())


def _divisors(tensor: Tensor, count: int) -> np.ndarray:
    """The divisors of the frequencies in a tensor of the file."""
    if tensor.shape != (count,):
        raise tensor.error(
            f"has shape {[*tensor.shape]}", f"[{count}], one for each pair of a head"
        )
    values = tensor.read().astype(np.float32)
    if values.min() <= 0:
        raise tensor.error(f"holds {float(values.min())}", "divisors above 0")
    return values


# Queries, keys and values one after another in one tensor, however many heads they have.
ROWS_IN_ORDER = {"q": "([n]h)d->dnh", "k": "([k]h)d->dkh", "v": "([k]h)d->dkh"}
NAMES = {
    "embed": Place("token_embd.weight", "vd->vd"),
    "final_norm.scale": Place("output_norm.weight", "d->d"),
    "head": Place("output.weight", "vd->dv"),
    **in_blocks(
        "blk.{l}.",
        {
            "attn_norm.scale": Place("attn_norm.weight", "d->d"),
            "attn.q": Place("attn_q.weight", "(nh)d->dnh"),
            "attn.k": Place("attn_k.weight", "(kh)d->dkh"),
            "attn.v": Place("attn_v.weight", "(kh)d->dkh"),
            "attn.out": Place("attn_output.weight", "d(nh)->nhd"),
            "mlp_norm.scale": Place("ffn_norm.weight", "d->d"),
            "mlp.gate": Place("ffn_gate.weight", "fd->df"),
            "mlp.up": Place("ffn_up.weight", "fd->df"),
            "mlp.down": Place("ffn_down.weight", "df->fd"),
        },
    ),
}
# Of families without a gate.
FUSED_NAMES = {
    **{name: place for name, place in NAMES.items() if name != "blocks.mlp.gate"},
    **in_blocks(
        "blk.{l}.",
        {f"attn.{x}": Place("attn_qkv.weight", rows) for x, rows in ROWS_IN_ORDER.items()},
    ),
}
