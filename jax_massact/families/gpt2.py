"""GPT-2 (Radford et al. 2019): LayerNorm, learned positions, biases everywhere."""

from pathlib import Path
from typing import Any

from jax_massact.families import gguf
from jax_massact.families.decoder import read_activation, read_depth, write_activation
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms, pattern, per_layer
from jax_massact.families.own import GROUP
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    "vocab_size": 50_257,
    "n_positions": 1024,
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
_ALWAYS = {
    "embed.positions": "learned",
    "block.attention.position": "none",
    "block.attention.qkv_bias": True,
    "block.attention.out_bias": True,
    "block.mlp.gated": False,
    "block.mlp.bias": True,
    **in_all_norms(kind="layer", bias=True),
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    width, heads = settings.size("n_embd"), settings.size("n_head")
    if width % heads and not settings.has(GROUP):
        raise settings.error("n_head", f"a divisor of n_embd, which is {width}")
    settings.one_of("add_cross_attention", (False,), False)
    depth, eps = read_depth(settings, "n_layer"), settings.number("layer_norm_epsilon")
    # Only the group can state the size of heads that do not share the width among them.
    head_dim = None if width % heads else width // heads
    return {
        **_ALWAYS,
        "embed.vocab_size": settings.size("vocab_size"),
        "depth": depth,
        "width": width,
        "context_length": settings.size("n_positions"),
        "block.attention.heads": heads,
        "block.attention.kv_heads": heads,
        "block.attention.head_dim": head_dim,
        **pattern({"attention.scale": _scales(settings, depth, head_dim)}),
        "block.mlp.hidden": settings.size("n_inner", 4 * width),
        "block.mlp.activation": read_activation(settings, "activation_function"),
        **in_all_norms(eps=eps),
        "head.tied": settings.flag("tie_word_embeddings", True),
    }


def _scales(settings: Settings, depth: int, head_dim: int | None) -> list[float | None]:
    """The scale of every layer's logits; None: the usual one."""
    scaled = settings.flag("scale_attn_weights", True)
    if not settings.flag("scale_attn_by_inverse_layer_idx", False):
        return [None if scaled else 1.0] * depth
    if head_dim is None:
        raise settings.error("scale_attn_by_inverse_layer_idx", "False with such a head_dim")
    first = head_dim**-0.5 if scaled else 1.0
    return [first / (layer + 1) for layer in range(depth)]


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    attention = config.block.attention
    return {
        "vocab_size": config.embed.vocab_size,
        "n_embd": config.width,
        "n_inner": config.block.mlp.hidden,
        "n_layer": config.depth,
        "n_head": attention.heads,
        "n_positions": config.context_length,
        "activation_function": write_activation(config),
        "layer_norm_epsilon": config.block.norm.eps,
        "tie_word_embeddings": config.head.tied,
        **_write_scales(per_layer(config, "attention.scale"), attention.head_dim),
    }


def _write_scales(scales: list[float | None], head_dim: int) -> dict[str, bool]:
    """The settings of these scales, if there are any: no others are stated."""
    unusual = {"scale_attn_weights": False}, {"scale_attn_by_inverse_layer_idx": True}
    for stated in ({}, *unusual, unusual[0] | unusual[1]):
        if _scales(Settings(stated, Path("config.json")), len(scales), head_dim) == scales:
            return stated
    return {}


# Conv1D: matrices stand the other way round than in a Linear.
NAMES = {
    "embed": Place("transformer.wte.weight", "vd->vd"),
    "positions": Place("transformer.wpe.weight", "pd->pd"),
    "final_norm.scale": Place("transformer.ln_f.weight", "d->d"),
    "head": Place("lm_head.weight", "vd->dv"),
    **in_blocks(
        "transformer.h.{l}.",
        {
            "attn_norm.scale": Place("ln_1.weight", "d->d"),
            "attn.q": Place("attn.c_attn.weight", "d([1]nh)->dnh"),
            "attn.k": Place("attn.c_attn.weight", "d([1]nh)->dnh"),
            "attn.v": Place("attn.c_attn.weight", "d([1]nh)->dnh"),
            "attn.out": Place("attn.c_proj.weight", "(nh)d->nhd"),
            "mlp_norm.scale": Place("ln_2.weight", "d->d"),
            "mlp.up": Place("mlp.c_fc.weight", "df->df"),
            "mlp.down": Place("mlp.c_proj.weight", "fd->fd"),
        },
    ),
}
# The one tensor for queries, keys and values takes as many key/value heads as query heads.
_GROUPED = in_blocks(
    "transformer.h.{l}.",
    {
        "attn.q": Place("attn.c_attn_q.weight", "d(nh)->dnh"),
        "attn.k": Place("attn.c_attn_k.weight", "d(kh)->dkh"),
        "attn.v": Place("attn.c_attn_v.weight", "d(kh)->dkh"),
    },
)


def own_names(config: ModelConfig) -> Names:
    """Places for what such a model has in this package alone."""
    attention = config.block.attention
    return {
        "prefix": Place("transformer.front.weight", "sd->sd"),
        **in_blocks("transformer.h.{l}.", {"mlp.gate": Place("mlp.c_gate.weight", "df->df")}),
        **(_GROUPED if attention.kv_heads < attention.heads else {}),
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    eps = settings.number("attention.layer_norm_epsilon")
    return {
        **_ALWAYS,
        **gguf.read_sizes(settings, file),
        "block.mlp.activation": "gelu_tanh",
        **in_all_norms(eps=eps),
    }


GGUF_NAMES = {
    "positions": Place("position_embd.weight", "pd->pd"),
    **{name: place for name, place in gguf.NAMES.items() if name != "blocks.mlp.gate"},
    **in_blocks(
        "blk.{l}.",
        {f"attn.{x}": Place("attn_qkv.weight", "([1]nh)d->dnh") for x in ("q", "k", "v")},
    ),
}

FAMILY = Family(
    model_type="gpt2", about="GPT-2", architecture="GPT2LMHeadModel", base="GPT2Model",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES), own_names=own_names,
    gguf=Gguf("gpt2", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
