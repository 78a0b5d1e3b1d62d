"""BLOOM (Le Scao et al. 2022): ALiBi, and a norm behind the embedding."""

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
    "vocab_size": 250_880,
    "hidden_size": 64,
    "n_layer": 2,
    "n_head": 8,
    "layer_norm_epsilon": 1e-5,
    "seq_length": 2048,
    "apply_residual_connection_post_layernorm": False,
    "tie_word_embeddings": True,
}
_ALWAYS = {
    **in_all_norms(kind="layer", bias=True),
    "embed.norm": True,
    "block.attention.position": "alibi",
    "block.attention.qkv_bias": True,
    "block.attention.out_bias": True,
    "block.mlp.activation": "gelu_tanh",
    "block.mlp.gated": False,
    "block.mlp.bias": True,
}
# What files before transformers 4.20 called them.
_OLD = {"n_embed": "hidden_size", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    stated = {_OLD[n]: v for n, v in settings.values.items() if n in _OLD and v is not None}
    settings = Settings({**settings.values, **stated}, settings.file)
    settings.one_of("apply_residual_connection_post_layernorm", (False,), False)
    width, heads = settings.size("hidden_size"), settings.size("n_head")
    return {
        **_ALWAYS,
        **in_all_norms(eps=settings.number("layer_norm_epsilon")),
        "embed.vocab_size": settings.size("vocab_size"),
        "depth": read_depth(settings, "n_layer"),
        "width": width,
        "context_length": settings.size("seq_length"),
        "block.attention.heads": heads,
        "block.attention.kv_heads": heads,
        "block.attention.head_dim": max(width // heads, 1),
        "block.attention.slopes": alibi_slopes(heads),
        "block.mlp.hidden": 4 * width,
        "head.tied": settings.flag("tie_word_embeddings", True),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    return {
        "vocab_size": config.embed.vocab_size,
        "hidden_size": config.width,
        "n_layer": config.depth,
        "n_head": config.block.attention.heads,
        "seq_length": config.context_length,
        "layer_norm_epsilon": config.block.norm.eps,
        "tie_word_embeddings": config.head.tied,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    sizes = gguf.read_sizes(settings, file)
    eps = in_all_norms(eps=settings.number("attention.layer_norm_epsilon"))
    slopes = alibi_slopes(sizes["block.attention.heads"])
    return {**sizes, **_ALWAYS, **eps, "block.attention.slopes": slopes}


NAMES = {
    "embed": Place("transformer.word_embeddings.weight", "vd->vd"),
    "embed_norm.scale": Place("transformer.word_embeddings_layernorm.weight", "d->d"),
    "final_norm.scale": Place("transformer.ln_f.weight", "d->d"),
    "head": Place("lm_head.weight", "vd->dv"),
    **in_blocks("transformer.h.{l}.", {
        "attn_norm.scale": Place("input_layernorm.weight", "d->d"),
        **{
            f"attn.{x}": Place("self_attention.query_key_value.weight", "(n[1]h)d->dnh")
            for x in "qkv"
        },
        "attn.out": Place("self_attention.dense.weight", "d(nh)->nhd"),
        "mlp_norm.scale": Place("post_attention_layernorm.weight", "d->d"),
        "mlp.up": Place("mlp.dense_h_to_4h.weight", "fd->df"),
        "mlp.down": Place("mlp.dense_4h_to_h.weight", "df->fd"),
    }),
}  # fmt: skip
GGUF_NAMES = gguf.FUSED_NAMES | {"embed_norm.scale": Place("token_embd_norm.weight", "d->d")}

FAMILY = Family(
    model_type="bloom", about="BLOOM and BLOOMZ", architecture="BloomForCausalLM",
    base="BloomModel", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names_behind("transformer.", "transformer.h.{l}."),
    gguf=Gguf("bloom", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
