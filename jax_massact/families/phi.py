"""Phi-1.5 and Phi-2 (2023): one norm for attention and MLP, which work side by side; a head with a
bias."""

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
    "vocab_size": 51_200,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "hidden_act": "gelu_new",
    "max_position_embeddings": 2048,
    "layer_norm_eps": 1e-5,
    "qk_layernorm": False,
    "tie_word_embeddings": False,
}
_ALWAYS = {
    **in_all_norms(kind="layer", bias=True),
    "block.parallel": True,
    "block.shared_norm": True,
    "block.attention.qkv_bias": True,
    "block.attention.out_bias": True,
    "block.mlp.gated": False,
    "block.mlp.bias": True,
    "head.bias": True,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    settings.one_of("qk_layernorm", (False,), False)
    return read_decoder(settings, eps="layer_norm_eps", partial=0.5) | _ALWAYS


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    written = write_decoder(config, eps="layer_norm_eps")
    return {"partial_rotary_factor": 1.0} | written


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    sizes = gguf.read_sizes(settings, file)
    rope = gguf.read_rope(settings, file, sizes["block.attention.head_dim"], partial=True)
    eps = in_all_norms(eps=settings.number("attention.layer_norm_epsilon"))
    return sizes | _ALWAYS | rope_fields(rope) | eps | {"block.mlp.activation": "gelu_tanh"}


_OF_BLOCKS = {
    "attn.out": Place("self_attn.dense.weight", "d(nh)->nhd"),
    "mlp.up": Place("mlp.fc1.weight", "fd->df"),
    "mlp.down": Place("mlp.fc2.weight", "df->fd"),
}
_ABSENT = ("blocks.mlp.gate", "blocks.mlp_norm.scale")
NAMES = {
    **{name: place for name, place in decoder.NAMES.items() if name not in _ABSENT},
    "final_norm.scale": Place("model.final_layernorm.weight", "d->d"),
    **in_blocks("model.layers.{l}.", _OF_BLOCKS),
}
GGUF_NAMES = {name: place for name, place in gguf.NAMES.items() if name not in _ABSENT}

FAMILY = Family(
    model_type="phi", about="Phi-1.5 and Phi-2", architecture="PhiForCausalLM", base="PhiModel",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names_behind("model.", "model.layers.{l}."),
    gguf=Gguf("phi2", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
