"""GPT-NeoX and Pythia (Black et al. 2022, Biderman et al. 2023): a part of each head is turned, and
attention and MLP work side by side."""

from typing import Any

from jax_massact.families import decoder, gguf
from jax_massact.families.decoder import read_decoder, write_decoder
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Place, in_blocks
from jax_massact.families.rope import rope_fields
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    "vocab_size": 50_432,
    "hidden_size": 6144,
    "intermediate_size": 24_576,
    "num_hidden_layers": 44,
    "num_attention_heads": 64,
    "hidden_act": "gelu",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "use_parallel_residual": True,
    "attention_bias": True,
    "tie_word_embeddings": False,
}
_ALWAYS = {
    **in_all_norms(kind="layer", bias=True), "block.mlp.gated": False, "block.mlp.bias": True
}
_OLD = {"rotary_pct": "partial_rotary_factor", "rotary_emb_base": "rope_theta"}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    values = {_OLD.get(name, name): value for name, value in settings.values.items()}
    fields = read_decoder(Settings(values, settings.file), eps="layer_norm_eps", partial=0.25)
    bias = settings.flag("attention_bias", True)
    return fields | _ALWAYS | {
        "block.attention.kv_heads": fields["block.attention.heads"],
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
        "block.parallel": settings.flag("use_parallel_residual", True),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    written = write_decoder(config, eps="layer_norm_eps")
    share = written.pop("partial_rotary_factor", 1.0)
    return written | {
        "rotary_pct": share,
        "rotary_emb_base": written["rope_theta"],
        "attention_bias": config.block.attention.qkv_bias,
        "use_parallel_residual": config.block.parallel,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    sizes = gguf.read_sizes(settings, file, known=("use_parallel_residual",))
    rope = gguf.read_rope(settings, file, sizes["block.attention.head_dim"], partial=True)
    return {
        **sizes, **_ALWAYS, **rope_fields(rope),
        **in_all_norms(eps=settings.number("attention.layer_norm_epsilon")),
        "block.mlp.activation": "gelu",
        "block.attention.qkv_bias": "blk.0.attn_qkv.bias" in file.tensors,
        "block.attention.out_bias": "blk.0.attn_output.bias" in file.tensors,
        "block.parallel": settings.flag("use_parallel_residual", True),
    }


NAMES = {
    "embed": Place("gpt_neox.embed_in.weight", "vd->vd"),
    "final_norm.scale": Place("gpt_neox.final_layer_norm.weight", "d->d"),
    "head": Place("embed_out.weight", "vd->dv"),
    **in_blocks("gpt_neox.layers.{l}.", {
        "attn_norm.scale": Place("input_layernorm.weight", "d->d"),
        **{
            f"attn.{x}": Place("attention.query_key_value.weight", "(n[1]h)d->dnh") for x in "qkv"
        },
        "attn.out": Place("attention.dense.weight", "d(nh)->nhd"),
        "mlp_norm.scale": Place("post_attention_layernorm.weight", "d->d"),
        "mlp.up": Place("mlp.dense_h_to_4h.weight", "fd->df"),
        "mlp.down": Place("mlp.dense_4h_to_h.weight", "df->fd"),
    }),
}  # fmt: skip

FAMILY = Family(
    model_type="gpt_neox", about="GPT-NeoX and Pythia", architecture="GPTNeoXForCausalLM",
    base="GPTNeoXModel", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names_behind("gpt_neox.", "gpt_neox.layers.{l}."),
    gguf=Gguf("gptneox", read_gguf, always(gguf.FUSED_NAMES)),
    bos=False,
)  # fmt: skip
