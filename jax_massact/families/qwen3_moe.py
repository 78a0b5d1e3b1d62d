"""Qwen3-MoE (Yang et al. 2025): Qwen3 with a mixture of experts in every block."""

from typing import Any

from jax_massact.families import decoder, experts, qwen3
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields
from jax_massact.nn.block_config import MoEConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = qwen3.DEFAULTS | {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "head_dim": None,
    "moe_intermediate_size": 768,
    "num_experts": None,
    "num_local_experts": None,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    experts.check_every_layer(settings)
    moe = MoEConfig(
        experts=settings.size("num_experts", settings.get("num_local_experts", 128)),
        active=settings.size("num_experts_per_tok"),
        renormalize=settings.flag("norm_topk_prob", False),
    )
    hidden = {"block.mlp.hidden": settings.size("moe_intermediate_size")}
    return {**qwen3.read(settings), **hidden, **experts.fields(moe)}


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    mlp = config.block.mlp
    return qwen3.write(config) | {
        "moe_intermediate_size": mlp.hidden,
        "num_experts": max(mlp.moe.experts, 1),
        "num_experts_per_tok": mlp.moe.active,
        "norm_topk_prob": mlp.moe.renormalize,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    fields = qwen3.read_gguf(settings, file, known=experts.GGUF_KNOWN)
    return {**fields, **experts.read_gguf(settings, renormalize=True)}


NAMES = experts.instead(qwen3.NAMES, experts.names_of(
    "model.layers.{l}.mlp.", "experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight",
    "experts.{e}.down_proj.weight", "gate.weight",
))  # fmt: skip
GGUF_NAMES = experts.instead(qwen3.GGUF_NAMES, experts.GGUF_ROWS)

FAMILY = Family(
    model_type="qwen3_moe", about="Qwen3-MoE", architecture="Qwen3MoeForCausalLM",
    base="Qwen3MoeModel", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names, gguf=Gguf("qwen3moe", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
