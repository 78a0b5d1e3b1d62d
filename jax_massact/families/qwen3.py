"""Qwen3 (Yang et al. 2025): queries and keys are normed by head, and there are no biases."""

from typing import Any

from jax_massact.families import decoder, gguf, qwen2
from jax_massact.families.decoder import read_decoder, write_decoder
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields
from jax_massact.families.places import Place, in_blocks
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = qwen2.DEFAULTS | {"head_dim": 128, "sliding_window": None}
_ALWAYS = {"block.attention.qk_norm": "head"}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    bias = settings.flag("attention_bias", False)
    return {
        **read_decoder(settings),
        **qwen2.read_windows(settings),
        **_ALWAYS,
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    bias = {"attention_bias": config.block.attention.qkv_bias}
    return write_decoder(config) | qwen2.write_windows(config) | bias


def read_gguf(settings: Settings, file: GgufFile, **options: Any) -> Fields:
    """The fields that a GGUF file states; `options` of `gguf.read_decoder`."""
    return gguf.read_decoder(settings, file, **options) | _ALWAYS


NAMES = decoder.NAMES | in_blocks("model.layers.{l}.self_attn.", {
    "attn.q_norm.scale": Place("q_norm.weight", "h->h"),
    "attn.k_norm.scale": Place("k_norm.weight", "h->h"),
})  # fmt: skip
GGUF_NAMES = gguf.NAMES | in_blocks("blk.{l}.", {
    "attn.q_norm.scale": Place("attn_q_norm.weight", "h->h"),
    "attn.k_norm.scale": Place("attn_k_norm.weight", "h->h"),
})  # fmt: skip

FAMILY = Family(
    model_type="qwen3", about="Qwen3", architecture="Qwen3ForCausalLM", base="Qwen3Model",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES), own_names=decoder.own_names,
    gguf=Gguf("qwen3", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
