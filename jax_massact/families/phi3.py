"""Phi-3, Phi-3.5 and Phi-4 (2024): LLaMA with fused matrices; long contexts by LongRoPE."""

from typing import Any

from jax_massact.families import decoder, gguf, llama
from jax_massact.families.decoder import read_decoder, write_decoder
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields
from jax_massact.families.places import Names, Place
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 32_064,
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "original_max_position_embeddings": 4096,
    "sliding_window": None,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    window = settings.size("sliding_window") if settings.has("sliding_window") else None
    return read_decoder(settings, partial=1.0) | {"block.attention.window": window}


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    scaling = write_decoder(config)
    original = (scaling["rope_scaling"] or {}).get("original_max_position_embeddings")
    return scaling | {
        "sliding_window": config.block.attention.window,
        "original_max_position_embeddings": original or config.context_length,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    return gguf.read_decoder(settings, file, partial=True)


def fused(names: Names, *, qkv: str = "", up: str = "") -> dict[str, Place]:
    """Names in which one tensor holds queries, keys and values, or gate and up."""
    shares = {"q": "([n]h)d->dnh", "k": "([k]h)d->dkh", "v": "([k]h)d->dkh"}
    return {
        **names,
        **{f"blocks.attn.{x}": Place(qkv, layout) for x, layout in shares.items() if qkv},
        **{f"blocks.mlp.{x}": Place(up, "([1]f)d->df") for x in ("gate", "up") if up},
    }


NAMES = fused(
    decoder.NAMES, qkv="model.layers.{l}.self_attn.qkv_proj.weight",
    up="model.layers.{l}.mlp.gate_up_proj.weight",
)
GGUF_NAMES = fused(gguf.NAMES, qkv="blk.{l}.attn_qkv.weight", up="blk.{l}.ffn_up.weight")

FAMILY = Family(
    model_type="phi3", about="Phi-3, Phi-3.5 and Phi-4", architecture="Phi3ForCausalLM",
    base="Phi3Model", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names, gguf=Gguf("phi3", read_gguf, always(GGUF_NAMES)),
)  # fmt: skip
