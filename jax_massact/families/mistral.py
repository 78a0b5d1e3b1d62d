"""Mistral 7B (Jiang et al. 2023): LLaMA with a window."""

from typing import Any

from jax_massact.families import decoder, llama
from jax_massact.families.decoder import read_decoder, read_depth, write_decoder
from jax_massact.families.family import Family, always
from jax_massact.families.fields import Fields
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "intermediate_size": 14_336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131_072,
    "sliding_window": 4096,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    window = settings.size("sliding_window") if settings.has("sliding_window") else None
    kind = "full_attention" if window is None else "sliding_attention"
    types = [kind] * read_depth(settings, "num_hidden_layers")
    if settings.get("layer_types", types) != types:
        raise settings.error("layer_types", f"{len(types)} times {kind!r}, as sliding_window says")
    return read_decoder(settings) | {"block.attention.window": window}


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    # Null rather than absent, which would be the default.
    return write_decoder(config) | {"sliding_window": config.block.attention.window}


FAMILY = Family(
    model_type="mistral", about="Mistral 7B", architecture="MistralForCausalLM",
    base="MistralModel", defaults=DEFAULTS, read=read, write=write, names=always(decoder.NAMES),
    own_names=decoder.own_names, gguf=None,
    bos=True,
)  # fmt: skip
