"""StarCoder2 (Lozhkov et al. 2024): LayerNorm, an MLP without a gate, biases, and a window."""

from typing import Any

from jax_massact.families import decoder, gguf, llama
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Place, in_blocks
from jax_massact.families.rope import rope_fields
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    **{name: value for name, value in llama.DEFAULTS.items() if name != "rms_norm_eps"},
    "vocab_size": 49_152,
    "hidden_size": 3072,
    "intermediate_size": 12_288,
    "num_hidden_layers": 30,
    "num_attention_heads": 24,
    "num_key_value_heads": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "max_position_embeddings": 4096,
    "norm_epsilon": 1e-5,
    "use_bias": True,
    "sliding_window": None,
    "tie_word_embeddings": True,
}
_ALWAYS = {**in_all_norms(kind="layer", bias=True), "block.mlp.gated": False}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    bias = settings.flag("use_bias", True)
    window = settings.size("sliding_window") if settings.has("sliding_window") else None
    return decoder.read_decoder(settings, eps="norm_epsilon") | _ALWAYS | {
        "block.attention.window": window,
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
        "block.mlp.bias": bias,
        "head.tied": settings.flag("tie_word_embeddings", True),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    attention = config.block.attention
    return decoder.write_decoder(config, eps="norm_epsilon") | {
        "use_bias": attention.qkv_bias, "sliding_window": attention.window
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    sizes = gguf.read_sizes(settings, file)
    rope = gguf.read_rope(settings, file, sizes["block.attention.head_dim"])
    return {
        **sizes,
        **_ALWAYS,
        **rope_fields(rope),
        **in_all_norms(eps=settings.number("attention.layer_norm_epsilon")),
        "block.attention.qkv_bias": "blk.0.attn_q.bias" in file.tensors,
        "block.attention.out_bias": "blk.0.attn_output.bias" in file.tensors,
        "block.mlp.bias": "blk.0.ffn_up.bias" in file.tensors,
        "block.mlp.activation": "gelu_tanh",
    }


_GATE = "blocks.mlp.gate"
NAMES = {name: place for name, place in decoder.NAMES.items() if name != _GATE} | in_blocks(
    "model.layers.{l}.mlp.",
    {"mlp.up": Place("c_fc.weight", "fd->df"), "mlp.down": Place("c_proj.weight", "df->fd")},
)
GGUF_NAMES = {name: place for name, place in gguf.NAMES.items() if name != _GATE}

FAMILY = Family(
    model_type="starcoder2", about="StarCoder2", architecture="Starcoder2ForCausalLM",
    base="Starcoder2Model", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names_behind("model.", "model.layers.{l}."),
    gguf=Gguf("starcoder2", read_gguf, always(GGUF_NAMES)), bos=False,
)  # fmt: skip
