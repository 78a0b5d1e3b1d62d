"""Command R7B and A (Cohere 2024): three blocks with a window and rotary positions before each that
has neither."""

from typing import Any

from jax_massact.families import cohere, decoder, gemma2, gguf
from jax_massact.families.decoder import FULL, SLIDING, read_layer_types
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, pattern
from jax_massact.families.rope import turned_in
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    **{name: value for name, value in cohere.DEFAULTS.items() if name != "use_qk_norm"},
    "sliding_window": 4096,
}
_PERIOD = 4


def _types(depth: int, period: int) -> list[str]:
    return [SLIDING if (layer + 1) % period else FULL for layer in range(depth)]


def _with_layers(fields: Fields, types: list[str], window: int | None) -> Fields:
    local = [kind == SLIDING for kind in types]
    windows = {"attention.window": [window if here else None for here in local]}
    return {**fields, **pattern({**turned_in(fields, local), **windows})}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    depth = decoder.read_depth(settings, "num_hidden_layers")
    period = settings.size("sliding_window_pattern", _PERIOD)
    types = read_layer_types(settings, _types(depth, period))
    # Whatever is stated: transformers divides the width by the heads.
    own = Settings({**settings.values, "head_dim": None}, settings.file)
    return _with_layers(cohere.read_cohere(own), types, settings.size("sliding_window"))


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    return cohere.write_cohere(config) | gemma2.write_windows(config)


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states; the pattern is a constant of its readers."""
    fields = cohere.read_gguf_cohere(settings, file)
    return _with_layers(fields, _types(fields["depth"], _PERIOD), gguf.read_window(settings))


FAMILY = Family(
    model_type="cohere2", about="Command R7B, Command A", architecture="Cohere2ForCausalLM",
    base="Cohere2Model", defaults=DEFAULTS, read=read, write=write,
    names=always(cohere.with_pairs(decoder.NAMES)), own_names=decoder.own_names,
    gguf=Gguf("cohere2", read_gguf, always(cohere.with_pairs(gguf.NAMES))),
    bos=True,
)  # fmt: skip
