"""Qwen2-MoE (2024): Qwen2 with a mixture of experts, and a gated expert that serves every token."""

from typing import Any

from jax_massact.families import decoder, experts, gguf, qwen2
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields
from jax_massact.families.places import Place, in_blocks
from jax_massact.nn.block_config import MoEConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = qwen2.DEFAULTS | {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "sliding_window": 0,
    "moe_intermediate_size": 1408,
    "shared_expert_intermediate_size": 5632,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "norm_topk_prob": False,
    "qkv_bias": True,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    experts.check_every_layer(settings)
    moe = MoEConfig(
        experts=settings.size("num_experts"),
        active=settings.size("num_experts_per_tok"),
        renormalize=settings.flag("norm_topk_prob", False),
        shared=settings.size("shared_expert_intermediate_size"),
        shared_gate=True,
    )
    return {
        **qwen2.read(settings),
        **experts.fields(moe),
        "block.attention.qkv_bias": settings.flag("qkv_bias", True),
        "block.mlp.hidden": settings.size("moe_intermediate_size"),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    mlp = config.block.mlp
    return qwen2.write(config) | {
        "qkv_bias": config.block.attention.qkv_bias,
        "moe_intermediate_size": mlp.hidden,
        "shared_expert_intermediate_size": max(mlp.moe.shared, 1),
        "num_experts": max(mlp.moe.experts, 1),
        "num_experts_per_tok": mlp.moe.active,
        "norm_topk_prob": mlp.moe.renormalize,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    fields = qwen2.read_gguf(settings, file, known=experts.GGUF_KNOWN)
    return {
        **fields,
        **experts.read_gguf(settings, renormalize=False),
        "block.mlp.moe.shared": settings.size("expert_shared_feed_forward_length"),
        "block.mlp.moe.shared_gate": True,
    }


NAMES = experts.instead(decoder.NAMES, experts.names_of(
    "model.layers.{l}.mlp.", "experts.{e}.gate_proj.weight", "experts.{e}.up_proj.weight",
    "experts.{e}.down_proj.weight", "gate.weight",
)) | in_blocks("model.layers.{l}.mlp.", {
    "mlp.shared.gate": Place("shared_expert.gate_proj.weight", "ud->du"),
    "mlp.shared.up": Place("shared_expert.up_proj.weight", "ud->du"),
    "mlp.shared.down": Place("shared_expert.down_proj.weight", "du->ud"),
    "mlp.shared_gate": Place("shared_expert_gate.weight", "1d->d"),
})  # fmt: skip
GGUF_NAMES = experts.instead(gguf.NAMES, experts.GGUF_ROWS) | in_blocks("blk.{l}.", {
    "mlp.shared.gate": Place("ffn_gate_shexp.weight", "ud->du"),
    "mlp.shared.up": Place("ffn_up_shexp.weight", "ud->du"),
    "mlp.shared.down": Place("ffn_down_shexp.weight", "du->ud"),
    "mlp.shared_gate": Place("ffn_gate_inp_shexp.weight", "1d->d"),
})  # fmt: skip

FAMILY = Family(
    model_type="qwen2_moe", about="Qwen1.5-MoE and Qwen2-MoE", architecture="Qwen2MoeForCausalLM",
    base="Qwen2MoeModel", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names, gguf=Gguf("qwen2moe", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
