"""Gemma 2 (2024): norms before and behind, softcaps, and a window in every second block."""

from typing import Any

from jax_massact.families import decoder, gemma, gguf
from jax_massact.families.decoder import FULL, SLIDING, read_layer_types
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, pattern, per_layer
from jax_massact.families.places import Place, in_blocks
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = gemma.DEFAULTS | {
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
}
# The largest model alone scales its logits by D / N, which GGUF files do not say.
_BLOCKS_OF_27B = 46


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    depth = decoder.read_depth(settings, "num_hidden_layers")
    types = read_layer_types(settings, [(SLIDING, FULL)[layer % 2] for layer in range(depth)])
    window = settings.size("sliding_window")
    return {
        **read_scales(settings),
        **pattern({"attention.window": [window if t == SLIDING else None for t in types]}),
    }


def read_scales(settings: Settings, **rope: Any) -> dict[str, Any]:
    """The fields that Gemma 2 and 3 state alike."""
    fields = gemma.read_gemma(settings, activation="hidden_activation", **rope)
    squared = settings.number("query_pre_attn_scalar")
    usual = squared == fields["block.attention.head_dim"]
    cap = lambda name: settings.number(name) if settings.has(name) else None
    return fields | {
        "block.norms": "both",
        "block.attention.scale": None if usual else squared**-0.5,
        "block.attention.softcap": cap("attn_logit_softcapping"),
        "head.softcap": cap("final_logit_softcapping"),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    return write_scales(config) | write_windows(config)


def write_scales(config: ModelConfig) -> dict[str, Any]:
    """The inverse of `read_scales`."""
    attention = config.block.attention
    squared = attention.head_dim if attention.scale is None else attention.scale**-2
    whole = round(squared)
    return gemma.write_gemma(config, activation="hidden_activation") | {
        # Whole in every file; the scale of another number is stated as nearly as it can be.
        "query_pre_attn_scalar": whole if whole**-0.5 == attention.scale else squared,
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": config.head.softcap,
    }


def write_windows(config: ModelConfig) -> dict[str, Any]:
    """The kind of every layer, and the window of those that have one."""
    windows = per_layer(config, "attention.window")
    window = next((w for w in windows if w is not None), None)
    types = [FULL if w is None else SLIDING for w in windows]
    return {"layer_types": types} | ({} if window is None else {"sliding_window": window})


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    caps = {
        path: settings.number(name) if settings.get(name, 0.0) else None
        for path, name in (
            ("block.attention.softcap", "attn_logit_softcapping"),
            ("head.softcap", "final_logit_softcapping"),
        )
    }
    known = ("attn_logit_softcapping", "final_logit_softcapping")
    fields = gemma.read_gguf(settings, file, known=known)
    window = fields["block.attention.window"]
    windows = [None if layer % 2 else window for layer in range(fields["depth"])]
    return {
        **fields, **caps, "block.norms": "both", **pattern({"attention.window": windows}),
        "block.attention.scale": largest_scale(fields, _BLOCKS_OF_27B),
    }


def largest_scale(fields: Fields, depth: int) -> float | None:
    """The scale of logits of a model read from a GGUF file, if it is the largest of its family."""
    return (fields["width"] / fields["block.attention.heads"]) ** -0.5 if (
        fields["depth"] == depth
    ) else None


NAMES = decoder.NAMES | in_blocks("model.layers.{l}.", {
    "attn_out_norm.scale": Place("post_attention_layernorm.weight", "d->d"),
    "mlp_norm.scale": Place("pre_feedforward_layernorm.weight", "d->d"),
    "mlp_out_norm.scale": Place("post_feedforward_layernorm.weight", "d->d"),
})  # fmt: skip
GGUF_NAMES = gemma.with_one(gguf.NAMES | in_blocks("blk.{l}.", {
    "attn_out_norm.scale": Place("post_attention_norm.weight", "d->d"),
    "mlp_out_norm.scale": Place("post_ffw_norm.weight", "d->d"),
}))  # fmt: skip

FAMILY = Family(
    model_type="gemma2", about="Gemma 2", architecture="Gemma2ForCausalLM", base="Gemma2Model",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES), own_names=decoder.own_names,
    gguf=Gguf("gemma2", read_gguf, always(GGUF_NAMES)),
    bos=True,
)  # fmt: skip
