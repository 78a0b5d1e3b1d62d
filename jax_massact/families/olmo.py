"""OLMo (Groeneveld et al. 2024): LayerNorm without any parameters; clipped queries, keys and
values."""

from typing import Any

from jax_massact.families import decoder, gguf, llama
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Names, Place
from jax_massact.families.rope import rope_fields
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {"vocab_size": 50_304, "clip_qkv": None}
_EPS = 1e-5


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    bias = settings.flag("attention_bias", False)
    return {
        **decoder.read_decoder(settings),
        **in_all_norms(kind="layer", eps=_EPS, scale=False),
        "block.attention.clip": settings.number("clip_qkv") if settings.has("clip_qkv") else None,
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    return decoder.write_decoder(config) | {
        "clip_qkv": config.block.attention.clip,
        "attention_bias": config.block.attention.qkv_bias,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    sizes = gguf.read_sizes(settings, file, known=("attention.clamp_kqv",))
    eps = settings.number("attention.layer_norm_epsilon", _EPS)
    clip = settings.get("attention.clamp_kqv", 0.0)
    return {
        **sizes,
        **rope_fields(gguf.read_rope(settings, file, sizes["block.attention.head_dim"])),
        **in_all_norms(kind="layer", eps=eps, scale=False),
        "block.attention.clip": settings.number("attention.clamp_kqv") if clip else None,
    }


def _without_norms(names: Names) -> dict[str, Place]:
    return {name: place for name, place in names.items() if "norm." not in name}


def _own_names(config: ModelConfig) -> Names:
    norms = {name: place for name, place in decoder.NAMES.items() if "norm." in name}
    return {**decoder.own_names(config), **norms}


FAMILY = Family(
    model_type="olmo", about="OLMo 1", architecture="OlmoForCausalLM", base="OlmoModel",
    defaults=DEFAULTS, read=read, write=write, names=always(_without_norms(decoder.NAMES)),
    own_names=_own_names,
    gguf=Gguf("olmo", read_gguf, always(_without_norms(llama.GGUF_NAMES))),
    bos=False,
)  # fmt: skip
