"""GPT-J (Wang and Komatsuzaki 2021): attention and MLP side by side after one norm, and rotary
positions for a part of each head."""

from typing import Any

from jax_massact.families import decoder
from jax_massact.families.decoder import read_activation, read_depth, write_activation
from jax_massact.families.family import Family, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Place, in_blocks
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

DEFAULTS = {
    "vocab_size": 50_400,
    "n_positions": 2048,
    "n_embd": 4096,
    "n_layer": 28,
    "n_head": 16,
    "rotary_dim": 64,
    "n_inner": None,
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "tie_word_embeddings": False,
}
_ALWAYS = {
    **in_all_norms(kind="layer", bias=True),
    "block.parallel": True,
    "block.shared_norm": True,
    "block.mlp.gated": False,
    "block.mlp.bias": True,
    "head.bias": True,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    width, heads = settings.size("n_embd"), settings.size("n_head")
    head_dim, dims = max(width // heads, 1), settings.size("rotary_dim")
    if head_dim % dims:
        raise settings.error("rotary_dim", f"a divisor of the size of a head, {head_dim}")
    return {
        **_ALWAYS,
        **in_all_norms(eps=settings.number("layer_norm_epsilon")),
        "embed.vocab_size": settings.size("vocab_size"),
        "depth": read_depth(settings, "n_layer"),
        "width": width,
        "context_length": settings.size("n_positions"),
        "block.attention.heads": heads,
        "block.attention.kv_heads": heads,
        "block.attention.head_dim": head_dim,
        "block.attention.rope.dims": None if dims == head_dim else dims,
        "block.mlp.hidden": settings.size("n_inner", 4 * width),
        "block.mlp.activation": read_activation(settings, "activation_function"),
        "head.tied": settings.flag("tie_word_embeddings", False),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    attention = config.block.attention
    return {
        "vocab_size": config.embed.vocab_size,
        "n_positions": config.context_length,
        "n_embd": config.width,
        "n_layer": config.depth,
        "n_head": attention.heads,
        "rotary_dim": attention.rope.turned(attention.head_dim),
        "n_inner": config.block.mlp.hidden,
        "activation_function": write_activation(config),
        "layer_norm_epsilon": config.block.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


NAMES = {
    "embed": Place("transformer.wte.weight", "vd->vd"),
    "final_norm.scale": Place("transformer.ln_f.weight", "d->d"),
    "head": Place("lm_head.weight", "vd->dv"),
    "head_bias": Place("lm_head.bias", "v->v"),
    **in_blocks(
        "transformer.h.{l}.",
        {
            "attn_norm.scale": Place("ln_1.weight", "d->d"),
            "attn.q": Place("attn.q_proj.weight", "(nwij)d->dn(wji)"),
            "attn.k": Place("attn.k_proj.weight", "(kwij)d->dk(wji)"),
            "attn.v": Place("attn.v_proj.weight", "(kh)d->dkh"),
            "attn.out": Place("attn.out_proj.weight", "d(nh)->nhd"),
            "mlp.up": Place("mlp.fc_in.weight", "fd->df"),
            "mlp.down": Place("mlp.fc_out.weight", "df->fd"),
        },
    ),
}

FAMILY = Family(
    model_type="gptj", about="GPT-J", architecture="GPTJForCausalLM", base="GPTJModel",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names_behind("transformer.", "transformer.h.{l}."), gguf=None,
    bos=False,
)  # fmt: skip
