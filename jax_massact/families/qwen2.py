"""Qwen2 and Qwen2.5 (Yang et al. 2024): LLaMA with biases of queries, keys and values."""

from typing import Any

from jax_massact.families import decoder, gguf, llama
from jax_massact.families.decoder import read_decoder, read_depth, write_decoder
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, pattern, per_layer
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 151_936,
    "intermediate_size": 22_016,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
_FULL, _SLIDING = "full_attention", "sliding_attention"


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    return {
        **read_decoder(settings), **read_windows(settings), "block.attention.qkv_bias": True
    }


def read_windows(settings: Settings) -> Fields:
    """The window of every layer."""
    windows = [
        settings.size("sliding_window") if kind == _SLIDING else None
        for kind in layer_types(settings)
    ]
    return pattern({"attention.window": windows})


def layer_types(settings: Settings) -> list[str]:
    """The kind of every layer's attention: stated, or a window from one layer on."""
    depth = read_depth(settings, "num_hidden_layers")
    has_window = settings.flag("use_sliding_window", False) and settings.has("sliding_window")
    first = settings.count("max_window_layers") if has_window else depth
    types = settings.get("layer_types")
    if types is None:
        return [_FULL if layer < first else _SLIDING for layer in range(depth)]
    allowed = (_FULL, _SLIDING) if has_window else (_FULL,)
    if not isinstance(types, list) or len(types) != depth or not set(types) <= set(allowed):
        raise settings.error("layer_types", f"{depth} times {' or '.join(map(repr, allowed))}")
    return types


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    return write_decoder(config) | write_windows(config)


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_windows`."""
    windows = per_layer(config, "attention.window")
    window = next((window for window in windows if window is not None), None)
    if window is None:
        return {"use_sliding_window": False}
    settings = {"use_sliding_window": True, "sliding_window": window, "max_window_layers": 0}
    if None in windows:
        settings["layer_types"] = [_FULL if w is None else _SLIDING for w in windows]
    return settings


def read_gguf(settings: Settings, file: GgufFile, **options: Any) -> Fields:
    """The fields that a GGUF file states; `options` of `gguf.read_decoder`."""
    return gguf.read_decoder(settings, file, **options) | {"block.attention.qkv_bias": True}


FAMILY = Family(
    model_type="qwen2", about="Qwen2 and Qwen2.5", architecture="Qwen2ForCausalLM",
    base="Qwen2Model", defaults=DEFAULTS, read=read, write=write, names=always(decoder.NAMES),
    own_names=decoder.own_names, gguf=Gguf("qwen2", read_gguf, always(gguf.NAMES)),
    bos=False,
)  # fmt: skip
