"""Mixtral (Jiang et al. 2024): Mistral with a mixture of experts in every block."""

from typing import Any

from jax_massact.families import decoder, experts, mistral
from jax_massact.families.family import Family, always
from jax_massact.families.fields import Fields
from jax_massact.nn.block_config import MoEConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

DEFAULTS = mistral.DEFAULTS | {
    "rms_norm_eps": 1e-5,
    "sliding_window": None,
    "num_local_experts": 8,
    "num_experts_per_tok": 2,
}
_BASE = 1e6


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    window = settings.size("sliding_window") if settings.has("sliding_window") else None
    moe = MoEConfig(
        experts=settings.size("num_local_experts"), active=settings.size("num_experts_per_tok")
    )
    fields = decoder.read_decoder(settings, base=_BASE)
    return fields | {"block.attention.window": window} | experts.fields(moe)


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    moe = config.block.mlp.moe
    return mistral.write(config) | {
        "num_local_experts": max(moe.experts, 1), "num_experts_per_tok": moe.active
    }


_EXPERT = "block_sparse_moe.experts.{e}."
NAMES = experts.instead(decoder.NAMES, experts.names_of(
    "model.layers.{l}.", f"{_EXPERT}w1.weight", f"{_EXPERT}w3.weight", f"{_EXPERT}w2.weight",
    "block_sparse_moe.gate.weight",
))  # fmt: skip

FAMILY = Family(
    model_type="mixtral", about="Mixtral", architecture="MixtralForCausalLM", base="MixtralModel",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES), own_names=decoder.own_names,
    gguf=None,
    bos=True,
)  # fmt: skip
