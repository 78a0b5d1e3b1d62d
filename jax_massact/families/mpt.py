"""MPT (MosaicML 2023): ALiBi, LayerNorm without biases, and clipped queries, keys and values."""

from typing import Any

from jax_massact.families import decoder, gguf
from jax_massact.families.decoder import read_depth
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Place, in_blocks
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.positions import alibi_slopes
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    "vocab_size": 50_368,
    "d_model": 2048,
    "n_heads": 16,
    "n_layers": 24,
    "max_seq_len": 2048,
    "layer_norm_epsilon": 1e-5,
    "logit_scale": None,
    "tie_word_embeddings": True,
}
_ALWAYS = {
    **in_all_norms(kind="layer"),
    "block.attention.position": "alibi",
    "block.mlp.activation": "gelu",
    "block.mlp.gated": False,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    width, heads = settings.size("d_model"), settings.size("n_heads")
    stated = settings.get("attn_config", {})
    if not isinstance(stated, dict):
        raise settings.error("attn_config", "an object")
    prefixed = {f"attn_config.{name}": value for name, value in stated.items()}
    inner = Settings(prefixed, settings.file, "attn_config.")
    inner.one_of("alibi", (True,), True)
    inner.one_of("qk_ln", (False,), False)
    inner.one_of("prefix_lm", (False,), False)
    settings.one_of("no_bias", (True,), True)
    # transformers has 4 D units, whatever is stated.
    settings.one_of("expansion_ratio", (4,), 4)
    # The only one that transformers computes.
    inner.one_of("alibi_bias_max", (8, 8.0), 8)
    return {
        **_ALWAYS,
        **in_all_norms(eps=settings.number("layer_norm_epsilon")),
        "embed.vocab_size": settings.size("vocab_size"),
        "depth": read_depth(settings, "n_layers"),
        "width": width,
        "context_length": settings.size("max_seq_len"),
        "block.attention.heads": heads,
        "block.attention.kv_heads": heads,
        "block.attention.head_dim": max(width // heads, 1),
        "block.attention.scale": inner.number("softmax_scale") if inner.has("softmax_scale")
        else None,
        "block.attention.clip": inner.number("clip_qkv") if inner.has("clip_qkv") else None,
        "block.attention.slopes": alibi_slopes(heads),
        "block.mlp.hidden": 4 * width,
        "head.tied": settings.flag("tie_word_embeddings", True),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    attention = config.block.attention
    return {
        "vocab_size": config.embed.vocab_size,
        "d_model": config.width,
        "n_heads": attention.heads,
        "n_layers": config.depth,
        "max_seq_len": config.context_length,
        "layer_norm_epsilon": config.block.norm.eps,
        "attn_config": {
            "alibi": True,
            "clip_qkv": attention.clip,
            "softmax_scale": attention.scale,
        },
        "tie_word_embeddings": config.head.tied,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    known = ("attention.clamp_kqv", "attention.max_alibi_bias")
    sizes = gguf.read_sizes(settings, file, known=known)
    clip = settings.get("attention.clamp_kqv", 0.0)
    largest = settings.number("attention.max_alibi_bias", 8.0)
    return {
        **sizes,
        **_ALWAYS,
        **in_all_norms(eps=settings.number("attention.layer_norm_epsilon")),
        "block.attention.clip": settings.number("attention.clamp_kqv") if clip else None,
        "block.attention.slopes": alibi_slopes(sizes["block.attention.heads"], largest),
    }


NAMES = {
    "embed": Place("transformer.wte.weight", "vd->vd"),
    "final_norm.scale": Place("transformer.norm_f.weight", "d->d"),
    "head": Place("lm_head.weight", "vd->dv"),
    **in_blocks("transformer.blocks.{l}.", {
        "attn_norm.scale": Place("norm_1.weight", "d->d"),
        **{f"attn.{x}": Place("attn.Wqkv.weight", "([1]nh)d->dnh") for x in "qkv"},
        "attn.out": Place("attn.out_proj.weight", "d(nh)->nhd"),
        "mlp_norm.scale": Place("norm_2.weight", "d->d"),
        "mlp.up": Place("ffn.up_proj.weight", "fd->df"),
        "mlp.down": Place("ffn.down_proj.weight", "df->fd"),
    }),
}  # fmt: skip

FAMILY = Family(
    model_type="mpt", about="MPT", architecture="MptForCausalLM", base="MptModel",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names_behind("transformer.", "transformer.blocks.{l}."),
    gguf=Gguf("mpt", read_gguf, always(gguf.FUSED_NAMES)),
    bos=False,
)  # fmt: skip
