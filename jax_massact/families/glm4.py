"""GLM-4-0414 (2025): GLM-4-9B with norms behind attention and MLP, too."""

from jax_massact.families import decoder, gguf, glm
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields
from jax_massact.families.phi3 import fused
from jax_massact.families.places import Place, in_blocks
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

_ALWAYS = {"block.norms": "both"}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    return {**glm.read(settings), **_ALWAYS}


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    return gguf.read_decoder(settings, file, partial=True) | _ALWAYS


NAMES = glm.NAMES | in_blocks("model.layers.{l}.", {
    "attn_out_norm.scale": Place("post_self_attn_layernorm.weight", "d->d"),
    "mlp_out_norm.scale": Place("post_mlp_layernorm.weight", "d->d"),
})  # fmt: skip
GGUF_NAMES = fused(glm.with_pairs(gguf.NAMES), up="blk.{l}.ffn_up.weight") | in_blocks("blk.{l}.", {
    "attn_out_norm.scale": Place("post_attention_norm.weight", "d->d"),
    "mlp_out_norm.scale": Place("post_ffw_norm.weight", "d->d"),
})  # fmt: skip

FAMILY = Family(
    model_type="glm4", about="GLM-4-0414", architecture="Glm4ForCausalLM", base="Glm4Model",
    defaults=glm.DEFAULTS, read=read, write=glm.write, names=always(NAMES),
    own_names=decoder.own_names, gguf=Gguf("glm4", read_gguf, always(GGUF_NAMES)),
)  # fmt: skip
