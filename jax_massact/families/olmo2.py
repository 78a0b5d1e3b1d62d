"""OLMo 2 (2025): norms behind attention and MLP instead of before, and of all queries and keys."""

from typing import Any

from jax_massact.families import decoder, gguf, llama
from jax_massact.families.decoder import FULL, SLIDING
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.gemma3 import layers_of
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.families.rope import rope_in
from jax_massact.nn.block_config import RopeConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {"vocab_size": 50_304, "rms_norm_eps": 1e-5}
# Of OLMo 3: every so many blocks one has no window.
PERIOD = 4
ALWAYS = {**in_all_norms(wide=True), "block.norms": "out", "block.attention.qk_norm": "all"}


def read(settings: Settings, **rope: Any) -> dict[str, Any]:
    """The fields that a `config.json` states; `rope` of `read_rope`."""
    bias = settings.flag("attention_bias", False)
    biases = {"block.attention.qkv_bias": bias, "block.attention.out_bias": bias}
    return {**decoder.read_decoder(settings, **rope), **ALWAYS, **biases}


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    bias = {"attention_bias": config.block.attention.qkv_bias}
    return decoder.write_decoder(config) | bias


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states; OLMo 3, which has windows, has this name there."""
    fields = {**gguf.read_decoder(settings, file), **ALWAYS}
    window = fields["block.attention.window"]
    if window is None:
        return fields
    usual = [(layer + 1) % PERIOD != 0 for layer in range(fields["depth"])]
    local = settings.get("attention.sliding_window_pattern", usual)
    if not isinstance(local, list) or len(local) != fields["depth"]:
        raise settings.error("attention.sliding_window_pattern", f"{fields['depth']} flags")
    full = rope_in(fields)
    types = [SLIDING if here else FULL for here in local]
    return {**fields, **layers_of(types, window, full, RopeConfig(base=full.base))}


def _behind(names: Names, prefix: str, rows: dict[str, str]) -> dict[str, Place]:
    before = ("blocks.attn_norm.scale", "blocks.mlp_norm.scale")
    kept = {name: place for name, place in names.items() if name not in before}
    layouts = {"attn.q_norm.scales": "(nh)->nh", "attn.k_norm.scales": "(kh)->kh"}
    return kept | in_blocks(
        prefix, {n: Place(f"{row}.weight", layouts.get(n, "d->d")) for n, row in rows.items()}
    )


NAMES = _behind(decoder.NAMES, "model.layers.{l}.", {
    "attn_out_norm.scale": "post_attention_layernorm",
    "mlp_out_norm.scale": "post_feedforward_layernorm",
    "attn.q_norm.scales": "self_attn.q_norm",
    "attn.k_norm.scales": "self_attn.k_norm",
})  # fmt: skip
GGUF_NAMES = _behind(gguf.NAMES, "blk.{l}.", {
    "attn_out_norm.scale": "post_attention_norm",
    "mlp_out_norm.scale": "post_ffw_norm",
    "attn.q_norm.scales": "attn_q_norm",
    "attn.k_norm.scales": "attn_k_norm",
})  # fmt: skip

FAMILY = Family(
    model_type="olmo2", about="OLMo 2", architecture="Olmo2ForCausalLM", base="Olmo2Model",
    defaults=DEFAULTS, read=read, write=write, names=always(NAMES), own_names=decoder.own_names,
    gguf=Gguf("olmo2", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
