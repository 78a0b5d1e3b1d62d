"""Falcon and Falcon 2 (Almazrouei et al. 2023): one key head, or one for each group.

Falcon-RW (Penedo et al. 2023) has ALiBi, and blocks and heads as in GPT-3. The code that was
published with its weights, and transformers, add slope x position of the key to q.k before both are
divided by sqrt(H), so that slopes are those of Press et al. over sqrt(H); and they round slope and
product to bfloat16. Behind a thousand tokens the product has steps of 4 to 8, half a logit to a
whole one, so nearby keys share a bias in heads with large slopes. How its training rounded is not
published; what is computed here is the published code's reading in every compute dtype, because all
that is known of these models was measured with it. GGUF files have no place for it.
"""

from typing import Any

from jax_massact.families import decoder, gguf
from jax_massact.families.decoder import read_activation, read_depth, write_activation
from jax_massact.families.family import Family, Gguf
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.families.rope import read_rope, rope_fields, write_rope
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.positions import alibi_slopes
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    "vocab_size": 65_024,
    "hidden_size": 4544,
    "num_hidden_layers": 32,
    "num_attention_heads": 71,
    "num_kv_heads": None,
    "ffn_hidden_size": None,
    "activation": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_epsilon": 1e-5,
    "alibi": False,
    "bias": False,
    "multi_query": True,
    "new_decoder_architecture": False,
    "num_ln_in_parallel_attn": None,
    "parallel_attn": True,
    "tie_word_embeddings": True,
}
_ALWAYS = {**in_all_norms(kind="layer", bias=True), "block.mlp.gated": False}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    width, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    head_dim = max(width // heads, 1)
    new = settings.flag("new_decoder_architecture", False)
    parallel = settings.flag("parallel_attn", True)
    norms = settings.one_of("num_ln_in_parallel_attn", (1, 2), 2 if new else 1)
    if new and not parallel and norms == 1:
        raise settings.error("parallel_attn", "True in the new architecture with one norm")
    # Before the new architecture, transformers has one key head or as many as query heads.
    groups = 1 if settings.flag("multi_query", True) else heads
    return {
        **_ALWAYS,
        **_positions(settings, heads, head_dim),
        **in_all_norms(eps=settings.number("layer_norm_epsilon")),
        "embed.vocab_size": settings.size("vocab_size"),
        "depth": read_depth(settings, "num_hidden_layers"),
        "width": width,
        "context_length": settings.size("max_position_embeddings"),
        "block.parallel": parallel or new,
        "block.shared_norm": (parallel or new) and not (new and norms == 2),
        "block.attention.heads": heads,
        "block.attention.kv_heads": settings.size("num_kv_heads", heads) if new else groups,
        "block.attention.head_dim": head_dim,
        "block.attention.qkv_bias": settings.flag("bias", False),
        "block.attention.out_bias": settings.flag("bias", False),
        "block.mlp.hidden": settings.size("ffn_hidden_size", 4 * width),
        "block.mlp.activation": read_activation(settings, "activation"),
        "block.mlp.bias": settings.flag("bias", False),
        "head.tied": settings.flag("tie_word_embeddings", True),
    }


def _positions(settings: Settings, heads: int, head_dim: int) -> Fields:
    if settings.flag("alibi", False):
        return {
            "block.attention.position": "alibi_rounded",
            "block.attention.slopes": alibi_slopes(heads),
        }
    return rope_fields(read_rope(settings, head_dim, settings.size("max_position_embeddings")))


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    block, attention = config.block, config.block.attention
    new = block.parallel and (not block.shared_norm or attention.kv_heads != 1)
    return {
        "vocab_size": config.embed.vocab_size,
        "hidden_size": config.width,
        "ffn_hidden_size": block.mlp.hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": attention.heads,
        "num_kv_heads": attention.kv_heads,
        "max_position_embeddings": config.context_length,
        "activation": write_activation(config),
        "layer_norm_epsilon": block.norm.eps,
        "bias": block.mlp.bias,
        "multi_query": attention.kv_heads == 1,
        "new_decoder_architecture": new,
        "num_ln_in_parallel_attn": 1 if block.shared_norm else 2,
        "parallel_attn": block.parallel,
        "alibi": attention.position == "alibi_rounded",
        **write_rope(attention, config.context_length),
        "tie_word_embeddings": config.head.tied,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    sizes = gguf.read_sizes(settings, file)
    rope = gguf.read_rope(settings, file, sizes["block.attention.head_dim"])
    return {
        **sizes, **_ALWAYS, **rope_fields(rope),
        **in_all_norms(eps=settings.number("attention.layer_norm_epsilon")),
        "block.mlp.activation": "gelu",
        "block.parallel": True,
        "block.shared_norm": "blk.0.attn_norm_2.weight" not in file.tensors,
    }


def names(config: ModelConfig) -> Names:
    """Where parameters lie: norms have other names where attention and MLP have one each."""
    block = config.block
    two = block.parallel and not block.shared_norm
    norms = ("ln_attn", "ln_mlp") if two else ("input_layernorm", "post_attention_layernorm")
    rows = {
        "attn_norm.scale": Place(f"{norms[0]}.weight", "d->d"),
        **{
            f"attn.{x}": Place("self_attention.query_key_value.weight", layout)
            for x, layout in _ROWS.items()
        },
        "attn.out": Place("self_attention.dense.weight", "d(nh)->nhd"),
        "mlp_norm.scale": Place(f"{norms[1]}.weight", "d->d"),
        "mlp.up": Place("mlp.dense_h_to_4h.weight", "fd->df"),
        "mlp.down": Place("mlp.dense_4h_to_h.weight", "df->fd"),
    }
    return {
        "embed": Place("transformer.word_embeddings.weight", "vd->vd"),
        "final_norm.scale": Place("transformer.ln_f.weight", "d->d"),
        "head": Place("lm_head.weight", "vd->dv"),
        **in_blocks("transformer.h.{l}.", {n: p for n, p in rows.items() if _has(block, n)}),
    }


# Each key/value head follows the query heads that it serves, however many they are.
_ROWS = {"q": "(k[g]h)d->d(kg)h", "k": "(k[1]h)d->dkh", "v": "(k[1]h)d->dkh"}


def _has(block: Any, name: str) -> bool:
    return name != "mlp_norm.scale" or not block.shared_norm


def gguf_names(config: ModelConfig) -> Names:
    """Where parameters lie in GGUF files, in which the first norm is that of the MLP."""
    if config.block.shared_norm:
        return {n: p for n, p in gguf.FUSED_NAMES.items() if n != "blocks.mlp_norm.scale"}
    return gguf.FUSED_NAMES | in_blocks("blk.{l}.", {
        "attn_norm.scale": Place("attn_norm_2.weight", "d->d"),
        "mlp_norm.scale": Place("attn_norm.weight", "d->d"),
    })  # fmt: skip


FAMILY = Family(
    model_type="falcon", about="Falcon", architecture="FalconForCausalLM", base="FalconModel",
    defaults=DEFAULTS, read=read, write=write, names=names,
    own_names=decoder.own_names_behind("transformer.", "transformer.h.{l}."),
    gguf=Gguf("falcon", read_gguf, gguf_names),
    bos=False,
)  # fmt: skip
