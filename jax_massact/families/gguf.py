"""What the families have in common in GGUF files, under llama.cpp's names."""

from typing import Any

import numpy as np

from jax_massact.errors import WeightsError
from jax_massact.families.places import Place, in_blocks
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings
from jax_massact.weights.tensors import Tensor

ROPE_FREQS = "rope_freqs.weight"

# Settings that other members of these architectures use and this package does not compute, each
# with the values that mean "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.scale": (),
    "attention.clamp_kqv": (0.0,),
    "attention.max_alibi_bias": (0.0,),
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


def read_sizes(settings: Settings, file: GgufFile) -> dict[str, Any]:
    """The fields that all families state, whatever their blocks are made of.

    Raises:
      WeightsError: a setting is not supported, or one is missing or wrong.
    """
    for name, unused in _UNUSED.items():
        if settings.has(name) and settings.get(name) not in unused:
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


def read_decoder(settings: Settings, file: GgufFile) -> dict[str, Any]:
    """The fields of a model with RMSNorm, rotary positions and a gated MLP.

    Raises:
      WeightsError: a setting is not supported, or one is missing or wrong.
    """
    sizes = read_sizes(settings, file)
    head_dim = sizes["block.attention.head_dim"]
    if settings.size("rope.dimension_count", head_dim) != head_dim:
        raise settings.error("rope.dimension_count", f"{head_dim}, the whole head")
    window = settings.get("attention.sliding_window", 0)
    has, eps = file.tensors.__contains__, settings.number("attention.layer_norm_rms_epsilon")
    return {
        **sizes,
        "block.attention.rope.base": settings.number("rope.freq_base", 10_000.0),
        "block.attention.rope.factors": _factors(
            settings, file.tensors.get(ROPE_FREQS), head_dim // 2
        ),
        "block.attention.window": settings.size("attention.sliding_window") if window else None,
        # llama.cpp reads a bias wherever there is one.
        "block.attention.qkv_bias": has("blk.0.attn_q.bias"),
        "block.attention.out_bias": has("blk.0.attn_output.bias"),
        "block.mlp.bias": has("blk.0.ffn_up.bias"),
        "block.norm.eps": eps,
        "final_norm.eps": eps,
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
        raise settings.error("rope.scaling.type", "'none' or 'linear'")
    factor = settings.number("rope.scaling.factor", settings.number("rope.scale_linear", 1.0))
    factor = 1.0 if kind == "none" else factor
    if freqs is None:
        return None if factor == 1.0 else (factor,) * count
    if freqs.shape != (count,):
        raise freqs.error(f"has shape {[*freqs.shape]}", f"[{count}], one for each pair of a head")
    values = freqs.read().astype(np.float32)
    if values.min() <= 0:
        raise freqs.error(f"holds {float(values.min())}", "divisors above 0")
    return tuple((values * factor).tolist())


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
