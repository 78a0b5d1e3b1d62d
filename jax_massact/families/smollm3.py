"""SmolLM3 (2025): LLaMA without rotary positions in every fourth block."""

from typing import Any

from jax_massact.families import decoder, gemma2, llama
from jax_massact.families.decoder import FULL, SLIDING, read_layer_types
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, pattern, per_layer
from jax_massact.families.rope import turned_in
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 128_256,
    "hidden_size": 2048,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
    "max_position_embeddings": 32_768,
    "use_sliding_window": False,
    "sliding_window": None,
    "no_rope_layers": None,
    "no_rope_layer_interval": 4,
    "tie_word_embeddings": True,
}
_BASE, _INTERVAL = 2e6, 4


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    turned = _turned(settings, decoder.read_depth(settings, "num_hidden_layers"))
    windowed = settings.flag("use_sliding_window", False) and settings.has("sliding_window")
    types = read_layer_types(settings, [SLIDING if windowed and not t else FULL for t in turned])
    if SLIDING in types and not windowed:
        raise settings.error("layer_types", f"{FULL!r} alone where use_sliding_window is false")
    windows = [settings.size("sliding_window") if kind == SLIDING else None for kind in types]
    fields = llama.read(settings, base=_BASE)
    return {**fields, **pattern({**turned_in(fields, turned), "attention.window": windows})}


def _turned(settings: Settings, depth: int) -> list[bool]:
    """Whether each layer has rotary positions."""
    interval = settings.size("no_rope_layer_interval", _INTERVAL)
    usual = [int((layer + 1) % interval != 0) for layer in range(depth)]
    stated = settings.get("no_rope_layers", usual)
    if not isinstance(stated, list) or len(stated) < depth or not set(stated) <= {0, 1}:
        raise settings.error("no_rope_layers", f"{depth} times 0 (without) or 1 (with)")
    return [bool(x) for x in stated[:depth]]


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    positions, windows = per_layer(config, "attention.position"), gemma2.write_windows(config)
    return llama.write(config) | windows | {
        "use_sliding_window": "sliding_window" in windows,
        "no_rope_layers": [int(position == "rope") for position in positions],
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states; its readers know which blocks turn nothing."""
    fields = llama.read_gguf(settings, file)
    turned = [(layer + 1) % _INTERVAL != 0 for layer in range(fields["depth"])]
    return {**fields, **pattern(turned_in(fields, turned))}


FAMILY = Family(
    model_type="smollm3", about="SmolLM3", architecture="SmolLM3ForCausalLM", base="SmolLM3Model",
    defaults=DEFAULTS, read=read, write=write, names=always(decoder.NAMES),
    own_names=decoder.own_names, gguf=Gguf("smollm3", read_gguf, always(llama.GGUF_NAMES)),
    bos=False,
)  # fmt: skip
