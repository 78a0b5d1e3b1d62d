"""Gemma 3 (2025): queries and keys are normed, and five blocks with a window and a rotary base of
their own come before each that sees everything."""

import dataclasses
from typing import Any

from jax_massact.families import decoder, gemma, gemma2, gguf
from jax_massact.families.decoder import FULL, SLIDING, read_layer_types
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, pattern
from jax_massact.families.places import Place, in_blocks
from jax_massact.families.rope import read_rope, write_scaling
from jax_massact.nn.block_config import RopeConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = gemma2.DEFAULTS | {
    "vocab_size": 262_208,
    "max_position_embeddings": 131_072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
_BASE, _LOCAL_BASE, _PERIOD = 1e6, 1e4, 6
_BLOCKS_OF_27B = 62


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    depth = decoder.read_depth(settings, "num_hidden_layers")
    period = settings.size("sliding_window_pattern", _PERIOD)
    types = read_layer_types(settings, _types(depth, period))
    fields = gemma2.read_scales(settings, base=_BASE, layers=FULL)
    sizes = fields["block.attention.head_dim"], fields["context_length"]
    rope = read_rope(settings, *sizes, base=_BASE, layers=FULL)
    return {
        **fields,
        "block.attention.qk_norm": "head",
        "block.attention.softcap": None,  # whatever is stated: transformers does not use it
        **layers_of(types, settings.size("sliding_window"), rope, _local(settings, sizes)),
    }


def _types(depth: int, period: int) -> list[str]:
    return [SLIDING if (layer + 1) % period else FULL for layer in range(depth)]


def _local(settings: Settings, sizes: tuple[int, int]) -> RopeConfig:
    """The rotary settings of blocks with a window: a base alone, or a group of their own."""
    if not isinstance(settings.get("rope_parameters"), dict):
        return RopeConfig(base=settings.number("rope_local_base_freq", _LOCAL_BASE))
    local = {n: v for n, v in settings.values.items() if n not in ("rope_theta", "rope_scaling")}
    return read_rope(Settings(local, settings.file), *sizes, base=_LOCAL_BASE, layers=SLIDING)


def layers_of(
    types: list[str], window: int | None, full: RopeConfig, local: RopeConfig
) -> Fields:
    """The windows and rotary settings of layers of these kinds."""
    ropes = [full if kind == FULL else local for kind in types]
    return pattern({
        "attention.window": [window if kind == SLIDING else None for kind in types],
        **{
            f"attention.rope.{field.name}": [getattr(rope, field.name) for rope in ropes]
            for field in dataclasses.fields(RopeConfig)
        },
    })  # fmt: skip


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    kinds = {kind.attention.window is None: kind.attention for kind in config.pattern}
    full, local = kinds.get(True), kinds.get(False)
    ropes = {
        "rope_theta": _BASE if full is None else full.rope.base,
        "rope_scaling": None if full is None else write_scaling(full, config.context_length),
        "rope_local_base_freq": _LOCAL_BASE if local is None else local.rope.base,
    }
    return gemma2.write_scales(config) | gemma2.write_windows(config) | ropes


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states; pattern and local base are constants of its readers."""
    fields = gemma.read_gguf(settings, file, known=("final_logit_softcapping",))
    rope = gguf.read_rope(settings, file, fields["block.attention.head_dim"])
    if not settings.has("rope.freq_base"):
        rope = dataclasses.replace(rope, base=_BASE)
    types, window = _types(fields["depth"], _PERIOD), fields["block.attention.window"]
    cap = settings.get("final_logit_softcapping", 0.0)
    return {
        **fields, **layers_of(types, window, rope, RopeConfig(base=_LOCAL_BASE)),
        "block.norms": "both",
        "block.attention.qk_norm": "head",
        "block.attention.scale": gemma2.largest_scale(fields, _BLOCKS_OF_27B),
        "head.softcap": settings.number("final_logit_softcapping") if cap else None,
    }


NAMES = gemma2.NAMES | in_blocks("model.layers.{l}.self_attn.", {
    "attn.q_norm.scale": Place("q_norm.weight", "h->h"),
    "attn.k_norm.scale": Place("k_norm.weight", "h->h"),
})  # fmt: skip
GGUF_NAMES = gemma2.GGUF_NAMES | gemma.with_one(in_blocks("blk.{l}.", {
    "attn.q_norm.scale": Place("attn_q_norm.weight", "h->h"),
    "attn.k_norm.scale": Place("attn_k_norm.weight", "h->h"),
}))  # fmt: skip

FAMILY = Family(
    model_type="gemma3_text", about="Gemma 3", architecture="Gemma3ForCausalLM",
    base="Gemma3TextModel", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names, gguf=Gguf("gemma3", read_gguf, always(GGUF_NAMES)),
    bos=True,
)  # fmt: skip
