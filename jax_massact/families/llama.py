"""LLaMA 1, 2 and 3 (Touvron et al. 2023), and all that is published in its format."""

from typing import Any

from jax_massact.families import decoder, experts, gguf
from jax_massact.families.decoder import read_decoder, write_decoder
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.places import Place
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    "vocab_size": 32_000,
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": None,
    "head_dim": None,
    "hidden_act": "silu",
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}


def read(settings: Settings, **rope: Any) -> dict[str, Any]:
    """The fields that a `config.json` states; `rope` of `read_rope`."""
    bias = settings.flag("attention_bias", False)
    return read_decoder(settings, **rope) | {
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
        "block.mlp.bias": settings.flag("mlp_bias", False),
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    biases = {
        "attention_bias": config.block.attention.qkv_bias,
        "mlp_bias": config.block.mlp.bias,
    }
    return write_decoder(config) | biases


def read_gguf(
    settings: Settings, file: GgufFile, *, known: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The fields that a GGUF file states; Mixtral has the name of LLaMA there.

    Args:
      known: of `gguf.read_decoder`.
    """
    fields = gguf.read_decoder(settings, file, known=(*experts.GGUF_KNOWN, *known))
    if not settings.get("expert_count", 0):
        return fields
    return fields | experts.read_gguf(settings, renormalize=True)


# The two coordinates of a rotary pair lie side by side.
GGUF_NAMES = gguf.NAMES | {
    "blocks.attn.q": Place("blk.{l}.attn_q.weight", "(nij)d->dn(ji)"),
    "blocks.attn.k": Place("blk.{l}.attn_k.weight", "(kij)d->dk(ji)"),
}
MOE_NAMES = experts.instead(GGUF_NAMES, experts.GGUF_ROWS)

FAMILY = Family(
    model_type="llama", about="LLaMA 1, 2 and 3, SmolLM2", architecture="LlamaForCausalLM",
    base="LlamaModel", defaults=DEFAULTS, read=read, write=write, names=always(decoder.NAMES),
    own_names=decoder.own_names,
    gguf=Gguf("llama", read_gguf, experts.dense_or(GGUF_NAMES, MOE_NAMES)),
)  # fmt: skip
