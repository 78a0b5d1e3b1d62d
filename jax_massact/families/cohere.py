"""Command R and Aya (Cohere 2024): LayerNorm without a bias, attention and MLP side by side, and
logits that are scaled."""

from typing import Any

from jax_massact.families import decoder, gguf, llama
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.families.rope import rope_fields
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    **{name: value for name, value in llama.DEFAULTS.items() if name != "rms_norm_eps"},
    "vocab_size": 256_000,
    "hidden_size": 8192,
    "intermediate_size": 22_528,
    "num_hidden_layers": 40,
    "num_attention_heads": 64,
    "max_position_embeddings": 8192,
    "layer_norm_eps": 1e-5,
    "logit_scale": 0.0625,
    "use_qk_norm": False,
    "tie_word_embeddings": True,
}
_BASE = 5e5
_ALWAYS = {
    **in_all_norms(kind="layer"), "block.parallel": True, "block.shared_norm": True,
}  # fmt: skip


def read_cohere(settings: Settings, **rope: Any) -> dict[str, Any]:
    """The fields that all of Cohere's models state; `rope` of `read_rope`."""
    bias = settings.flag("attention_bias", False)
    return {
        **decoder.read_decoder(settings, eps="layer_norm_eps", **rope),
        **_ALWAYS,
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
        "head.scale": settings.number("logit_scale"),
        "head.tied": settings.flag("tie_word_embeddings", True),
    }


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    normed = settings.flag("use_qk_norm", False)
    kind = {"block.attention.qk_norm": "per_head" if normed else "none"}
    return read_cohere(settings, base=_BASE) | kind


def write_cohere(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_cohere`."""
    return decoder.write_decoder(config, eps="layer_norm_eps") | {
        "attention_bias": config.block.attention.qkv_bias, "logit_scale": config.head.scale
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    normed = config.block.attention.qk_norm != "none"
    return write_cohere(config) | {"use_qk_norm": normed}


def read_gguf_cohere(settings: Settings, file: GgufFile) -> dict[str, Any]:
    """The fields that the GGUF files of all of Cohere's models state."""
    sizes = gguf.read_sizes(settings, file, known=("logit_scale",))
    rope = gguf.read_rope(settings, file, sizes["block.attention.head_dim"])
    has = file.tensors.__contains__
    return {
        **sizes,
        **rope_fields(rope),
        **_ALWAYS,
        **in_all_norms(eps=settings.number("attention.layer_norm_epsilon")),
        "block.attention.qkv_bias": has("blk.0.attn_q.bias"),
        "block.attention.out_bias": has("blk.0.attn_output.bias"),
        "head.scale": settings.number("logit_scale", 1.0),
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    normed = "blk.0.attn_q_norm.weight" in file.tensors
    kind = {"block.attention.qk_norm": "per_head" if normed else "none"}
    return read_gguf_cohere(settings, file) | kind


def with_pairs(names: Names) -> dict[str, Place]:
    """Names of a decoder whose rotary pairs lie side by side, and which has one norm a block."""
    start = names["blocks.attn.q"].template, names["blocks.attn.k"].template
    return {
        **{name: place for name, place in names.items() if name != "blocks.mlp_norm.scale"},
        "blocks.attn.q": Place(start[0], "(nij)d->dn(ji)"),
        "blocks.attn.k": Place(start[1], "(kij)d->dk(ji)"),
    }


def _norms(q: str, k: str) -> Names:
    return {"attn.q_norm.scales": Place(q, "n(ij)->n(ji)"),
            "attn.k_norm.scales": Place(k, "k(ij)->k(ji)")}


NAMES = with_pairs(decoder.NAMES) | in_blocks(
    "model.layers.{l}.self_attn.", _norms("q_norm.weight", "k_norm.weight")
)
GGUF_NAMES = with_pairs(gguf.NAMES) | in_blocks(
    "blk.{l}.", _norms("attn_q_norm.weight", "attn_k_norm.weight")
)

FAMILY = Family(
    model_type="cohere", about="Command R, Aya", architecture="CohereForCausalLM",
    base="CohereModel", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names, gguf=Gguf("command-r", read_gguf, always(GGUF_NAMES)),
    bos=True,
)  # fmt: skip
