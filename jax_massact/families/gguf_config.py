"""The metadata of a GGUF file as a model's configuration."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_massact.errors import ConfigError, WeightsError
from jax_massact.nn.config import ModelConfig, RopeConfig, RopePairs
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


def gguf_config(path: Path, file: GgufFile) -> ModelConfig:
    """The configuration that a GGUF file states, with float32 as its compute dtype.

    Raises:
      WeightsError: the architecture or a setting is not supported, or one is missing or wrong.
    """
    general = Settings(file.metadata, path)
    arch = general.one_of("general.architecture", tuple(_READERS))
    settings = Settings(file.metadata, path, f"{arch}.")
    for name, unused in _UNUSED.items():
        if settings.has(name) and settings.get(name) not in unused:
            raise settings.error(name, " or ".join(map(repr, unused)) or "nothing, not supported")
    try:
        return _READERS[arch](settings, file)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def _common(settings: Settings, file: GgufFile) -> dict[str, Any]:
    width, heads = settings.size("embedding_length"), _same_in_all(settings, "attention.head_count")
    head_dim = settings.size("attention.key_length", max(width // heads, 1))
    if settings.size("attention.value_length", head_dim) != head_dim:
        raise settings.error("attention.value_length", f"{head_dim}, that of the keys")
    return {
        "vocab_size": _vocab_size(settings, file),
        "depth": settings.size("block_count"),
        "width": width,
        "num_heads": heads,
        "num_kv_heads": _same_in_all(settings, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "mlp_dim": _same_in_all(settings, "feed_forward_length"),
        "context_length": settings.size("context_length"),
        "tied_head": "output.weight" not in file.tensors,
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


def _rope_decoder(
    family: str, pairs: RopePairs, *, biased: bool
) -> Callable[[Settings, GgufFile], ModelConfig]:
    """A reader for families with rotary positions, RMSNorm and a gated MLP."""

    def read(settings: Settings, file: GgufFile) -> ModelConfig:
        common = _common(settings, file)
        head_dim = common["head_dim"]
        if settings.size("rope.dimension_count", head_dim) != head_dim:
            raise settings.error("rope.dimension_count", f"{head_dim}, the whole head")
        window = settings.get("attention.sliding_window", 0)
        has = file.tensors.__contains__
        return ModelConfig(
            family=family,
            **common,
            norm="rms",
            norm_eps=settings.number("attention.layer_norm_rms_epsilon"),
            rope=RopeConfig(
                base=settings.number("rope.freq_base", 10_000.0),
                pairs=pairs,
                factors=_factors(settings, file.tensors.get(ROPE_FREQS), head_dim // 2),
            ),
            activation="silu",
            gated_mlp=True,
            # llama.cpp reads a bias wherever there is one.
            qkv_bias=biased or has("blk.0.attn_q.bias"),
            attn_out_bias=has("blk.0.attn_output.bias"),
            mlp_bias=has("blk.0.ffn_up.bias"),
            sliding_window=settings.size("attention.sliding_window") if window else None,
        )

    return read


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


def _gpt2(settings: Settings, file: GgufFile) -> ModelConfig:
    return ModelConfig(
        family="gpt2",
        **_common(settings, file),
        norm="layer",
        norm_eps=settings.number("attention.layer_norm_epsilon"),
        norm_bias=True,
        position="learned",
        activation="gelu_tanh",
        gated_mlp=False,
        qkv_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
    )


_READERS: Mapping[str, Callable[[Settings, GgufFile], ModelConfig]] = {
    "llama": _rope_decoder("llama", "interleaved", biased=False),
    "qwen2": _rope_decoder("qwen2", "halves", biased=True),
    "gpt2": _gpt2,
}
