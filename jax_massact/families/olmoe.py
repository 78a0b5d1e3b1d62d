"""OLMoE (Muennighoff et al. 2024): a mixture of experts whose queries and keys are normed over all
heads at once."""

from typing import Any

from jax_massact.families import decoder, experts, gguf, llama, qwen3_moe
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.nn.block_config import MoEConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 50_304,
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "clip_qkv": None,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "norm_topk_prob": False,
}
_ALWAYS = {"block.attention.qk_norm": "all"}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    if settings.has("clip_qkv"):
        # As in every published file; transformers would clip behind the norms.
        raise settings.error("clip_qkv", "null")
    moe = MoEConfig(
        experts=settings.size("num_experts"),
        active=settings.size("num_experts_per_tok"),
        renormalize=settings.flag("norm_topk_prob", False),
    )
    return {**llama.read(settings), **_ALWAYS, **experts.fields(moe)}


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    moe = config.block.mlp.moe
    return llama.write(config) | {
        "num_experts": max(moe.experts, 1),
        "num_experts_per_tok": moe.active,
        "norm_topk_prob": moe.renormalize,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    fields = gguf.read_decoder(settings, file, known=experts.GGUF_KNOWN)
    return {**fields, **_ALWAYS, **experts.read_gguf(settings, renormalize=False)}


def _normed(names: Names, block: str, q: str, k: str) -> dict[str, Place]:
    return dict(names) | in_blocks(block, {
        "attn.q_norm.scales": Place(q, "(nh)->nh"), "attn.k_norm.scales": Place(k, "(kh)->kh"),
    })  # fmt: skip


_EXPERTS = {n: p for n, p in qwen3_moe.NAMES.items() if n.startswith("blocks.mlp.")}
NAMES = _normed(
    experts.instead(decoder.NAMES, _EXPERTS), "model.layers.{l}.self_attn.", "q_norm.weight",
    "k_norm.weight",
)
GGUF_NAMES = _normed(
    experts.instead(gguf.NAMES, experts.GGUF_ROWS), "blk.{l}.", "attn_q_norm.weight",
    "attn_k_norm.weight",
)

FAMILY = Family(
    model_type="olmoe", about="OLMoE", architecture="OlmoeForCausalLM", base="OlmoeModel",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES), own_names=decoder.own_names,
    gguf=Gguf("olmoe", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
