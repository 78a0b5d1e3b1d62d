"""GLM-4-9B (2024): LLaMA whose first half of each head is turned, with biases of queries, keys and
values."""

from typing import Any

from jax_massact.families import decoder, llama
from jax_massact.families.family import Family, always
from jax_massact.families.fields import Fields
from jax_massact.families.phi3 import fused
from jax_massact.families.places import Names, Place
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 151_552,
    "intermediate_size": 13_696,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 0.00000015625,
    "attention_bias": True,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    fields = decoder.read_decoder(settings, partial=0.5)
    dims, head_dim = fields["block.attention.rope.dims"], fields["block.attention.head_dim"]
    if dims is not None and (not dims or head_dim % dims):
        raise settings.error("partial_rotary_factor", "a part of which a head has several")
    return fields | {"block.attention.qkv_bias": settings.flag("attention_bias", True)}


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    bias = {"attention_bias": config.block.attention.qkv_bias}
    return {"partial_rotary_factor": 1.0} | decoder.write_decoder(config) | bias


def with_pairs(names: Names) -> dict[str, Place]:
    """Names whose rotary pairs lie side by side, in the first part of a head."""
    start = names["blocks.attn.q"].template, names["blocks.attn.k"].template
    return {
        **names,
        "blocks.attn.q": Place(start[0], "(nwij)d->dn(wji)"),
        "blocks.attn.k": Place(start[1], "(kwij)d->dk(wji)"),
    }


NAMES = fused(with_pairs(decoder.NAMES), up="model.layers.{l}.mlp.gate_up_proj.weight")

FAMILY = Family(
    model_type="glm", about="GLM-4-9B", architecture="GlmForCausalLM", base="GlmModel",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES), own_names=decoder.own_names,
    gguf=None,
)  # fmt: skip
