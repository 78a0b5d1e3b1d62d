"""Granite (2024): LLaMA with factors on embeddings, attention, sublayers and logits."""

from typing import Any

from jax_massact.families import decoder, llama
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "embedding_multiplier": 1.0,
    "attention_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}
_GGUF = ("embedding_scale", "attention.scale", "residual_scale", "logit_scale")


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    return {
        **llama.read(settings),
        "embed.scale": settings.number("embedding_multiplier"),
        "block.attention.scale": settings.number("attention_multiplier"),
        "block.residual_scale": settings.number("residual_multiplier"),
        "head.scale": 1.0 / settings.number("logits_scaling"),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    attention = config.block.attention
    scaling = 1.0 / config.head.scale
    whole = round(scaling)
    return llama.write(config) | {
        "embedding_multiplier": config.embed.scale,
        "attention_multiplier": (
            attention.head_dim**-0.5 if attention.scale is None else attention.scale
        ),
        "residual_multiplier": config.block.residual_scale,
        # Whole in every file; dividing twice by another number may be off by its last bit.
        "logits_scaling": whole if whole and 1.0 / whole == config.head.scale else scaling,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    embedding, attention, residual, logits = (settings.number(name, 1.0) for name in _GGUF)
    fields = llama.read_gguf(settings, file, known=_GGUF)
    usual = fields["block.attention.head_dim"] ** -0.5
    return {
        **fields,
        "embed.scale": embedding,
        "block.attention.scale": attention if settings.has("attention.scale") else usual,
        "block.residual_scale": residual,
        "head.scale": 1.0 / logits,
    }


FAMILY = Family(
    model_type="granite", about="Granite 3", architecture="GraniteForCausalLM",
    base="GraniteModel", defaults=DEFAULTS, read=read, write=write, names=always(decoder.NAMES),
    own_names=decoder.own_names, gguf=Gguf("granite", read_gguf, always(llama.GGUF_NAMES)),
    bos=False,
)  # fmt: skip
