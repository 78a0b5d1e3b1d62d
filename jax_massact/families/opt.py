"""OPT (Zhang et al. 2022): LayerNorm, learned positions, ReLU, biases everywhere."""

from typing import Any

from jax_massact.families import decoder
from jax_massact.families.decoder import read_activation, read_depth, write_activation
from jax_massact.families.family import Family, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Place, in_blocks
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

DEFAULTS = {
    "vocab_size": 50_272,
    "hidden_size": 768,
    "ffn_dim": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 2048,
    "activation_function": "relu",
    "enable_bias": True,
    "tie_word_embeddings": True,
}
# The row of position 0; what is before it was padding.
_FIRST = 2


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    width, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    if not settings.flag("do_layer_norm_before", True):
        raise settings.error("do_layer_norm_before", "True: norms after the addition, as OPT-350M "
                             "has them, are not computed")
    if settings.size("word_embed_proj_dim", width) != width:
        raise settings.error("word_embed_proj_dim", f"hidden_size, {width}: embeddings of another "
                             "width, as OPT-350M has them, are not computed")
    settings.one_of("_remove_final_layer_norm", (False,), False)
    bias, affine = (
        settings.flag(name, True) for name in ("enable_bias", "layer_norm_elementwise_affine")
    )
    return {
        **in_all_norms(kind="layer", eps=1e-5, scale=affine, bias=affine),
        "embed.vocab_size": settings.size("vocab_size"),
        "embed.positions": "learned",
        "depth": read_depth(settings, "num_hidden_layers"),
        "width": width,
        "context_length": settings.size("max_position_embeddings") + _FIRST,
        "first_position": _FIRST,
        "block.attention.heads": heads,
        "block.attention.kv_heads": heads,
        "block.attention.head_dim": max(width // heads, 1),
        "block.attention.position": "none",
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
        "block.mlp.hidden": settings.size("ffn_dim"),
        "block.mlp.activation": read_activation(settings, "activation_function"),
        "block.mlp.gated": False,
        "block.mlp.bias": bias,
        "head.tied": settings.flag("tie_word_embeddings", True),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    return {
        "vocab_size": config.embed.vocab_size,
        "hidden_size": config.width,
        "word_embed_proj_dim": config.width,
        "ffn_dim": config.block.mlp.hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.block.attention.heads,
        "max_position_embeddings": max(config.context_length - _FIRST, 1),
        "activation_function": write_activation(config),
        "enable_bias": config.block.mlp.bias,
        "layer_norm_elementwise_affine": config.block.norm.scale,
        "tie_word_embeddings": config.head.tied,
    }


NAMES = {
    "embed": Place("model.decoder.embed_tokens.weight", "vd->vd"),
    "positions": Place("model.decoder.embed_positions.weight", "pd->pd"),
    "final_norm.scale": Place("model.decoder.final_layer_norm.weight", "d->d"),
    "head": Place("lm_head.weight", "vd->dv"),
    **in_blocks("model.decoder.layers.{l}.", {
        "attn_norm.scale": Place("self_attn_layer_norm.weight", "d->d"),
        "attn.q": Place("self_attn.q_proj.weight", "(nh)d->dnh"),
        "attn.k": Place("self_attn.k_proj.weight", "(kh)d->dkh"),
        "attn.v": Place("self_attn.v_proj.weight", "(kh)d->dkh"),
        "attn.out": Place("self_attn.out_proj.weight", "d(nh)->nhd"),
        "mlp_norm.scale": Place("final_layer_norm.weight", "d->d"),
        "mlp.up": Place("fc1.weight", "fd->df"),
        "mlp.down": Place("fc2.weight", "df->fd"),
    }),
}  # fmt: skip

FAMILY = Family(
    model_type="opt", about="OPT, but for OPT-350M", architecture="OPTForCausalLM",
    base="OPTModel", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names_behind("model.decoder.", "model.decoder.layers.{l}."), gguf=None,
    bos=True,
)  # fmt: skip
