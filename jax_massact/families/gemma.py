"""Gemma (2024): scales are learned as what is added to 1, and tokens are multiplied by sqrt(D)."""

from typing import Any

from jax_massact.families import decoder, gguf, llama
from jax_massact.families.decoder import read_decoder, write_decoder
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Names, Place
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 256_000,
    "hidden_size": 3072,
    "intermediate_size": 24_576,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "head_dim": 256,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def always_of(width: int) -> dict[str, Any]:
    """The fields that all Gemmas of a width have."""
    return {**in_all_norms(offset=1.0, wide=True), "embed.scale": width**0.5}


def read_gemma(settings: Settings, *, activation: str, **rope: Any) -> dict[str, Any]:
    """The fields that all Gemmas state."""
    settings.one_of("use_bidirectional_attention", (False,), False)
    # The first files said gelu where the tanh form was trained.
    old = settings.get(activation) == "gelu"
    bias = settings.flag("attention_bias", False)
    return {
        **read_decoder(settings, activation=activation, **rope),
        **always_of(settings.size("hidden_size")),
        **({"block.mlp.activation": "gelu_tanh"} if old else {}),
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
        "head.tied": settings.flag("tie_word_embeddings", True),
    }


def write_gemma(config: ModelConfig, *, activation: str) -> dict[str, Any]:
    """The inverse of `read_gemma`."""
    bias = {"attention_bias": config.block.attention.qkv_bias}
    return write_decoder(config, activation=activation) | bias


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    return read_gemma(settings, activation="hidden_act")


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    return write_gemma(config, activation="hidden_act")


def read_gguf(settings: Settings, file: GgufFile, **options: Any) -> dict[str, Any]:
    """The fields that a GGUF file states; `options` of `gguf.read_decoder`."""
    fields = gguf.read_decoder(settings, file, **options)
    return fields | always_of(fields["width"]) | {"block.mlp.activation": "gelu_tanh"}


def with_one(names: Names) -> dict[str, Place]:
    """Names in GGUF files, which hold 1 + scale of every norm."""
    return {
        name: Place(place.template, place.layout, added=1.0) if "norm." in name else place
        for name, place in names.items()
    }


FAMILY = Family(
    model_type="gemma", about="Gemma 1", architecture="GemmaForCausalLM", base="GemmaModel",
    defaults=DEFAULTS, read=read, write=write, names=always(decoder.NAMES),
    own_names=decoder.own_names, gguf=Gguf("gemma", read_gguf, always(with_one(gguf.NAMES))),
    bos=True,
)  # fmt: skip
