"""gpt-oss (OpenAI 2025): a learned sink logit for each head, windows in every second block, and a
mixture of experts with biases."""

from typing import Any

from jax_massact.families import decoder, experts, gemma2, gguf, llama
from jax_massact.families.decoder import FULL, SLIDING, read_layer_types
from jax_massact.families.family import Family, Gguf, always
from jax_massact.families.fields import Fields, in_all_norms, pattern
from jax_massact.families.places import Place, in_blocks
from jax_massact.families.rope import rope_fields
from jax_massact.nn.block_config import MoEConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = llama.DEFAULTS | {
    "vocab_size": 201_088,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "num_hidden_layers": 36,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "max_position_embeddings": 131_072,
    "rms_norm_eps": 1e-5,
    "attention_bias": True,
    "sliding_window": 128,
    "num_local_experts": 128,
    "num_experts_per_tok": 4,
}
_BASE = 150_000.0
_ALWAYS = {
    **in_all_norms(wide=True),
    "block.attention.variant": "sink_logit",
    "block.mlp.activation": "clamped_swiglu",
    "block.mlp.bias": True,
    "block.mlp.moe.score": "top_softmax",
    "block.mlp.moe.router_bias": True,
}


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    if not settings.has("rope_scaling") and not settings.has("rope_parameters"):
        raise settings.error("rope_scaling", "YaRN's settings, as in every published file")
    settings.one_of("swiglu_limit", (7.0, 7), 7.0)
    settings.one_of("swiglu_alpha", (1.702,), 1.702)
    depth = decoder.read_depth(settings, "num_hidden_layers")
    types = read_layer_types(settings, [(SLIDING, FULL)[layer % 2] for layer in range(depth)])
    window, bias = settings.size("sliding_window"), settings.flag("attention_bias", True)
    return {
        **decoder.read_decoder(settings, base=_BASE),
        **_windows([window if kind == SLIDING else None for kind in types]),
        **experts.fields(MoEConfig(
            experts=settings.size("num_local_experts"),
            active=settings.size("num_experts_per_tok"),
        )),
        **_ALWAYS,
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": bias,
    }


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    moe, written = config.block.mlp.moe, decoder.write_decoder(config)
    return written | gemma2.write_windows(config) | {
        "rope_scaling": written["rope_scaling"] or {"rope_type": "default"},
        "attention_bias": config.block.attention.qkv_bias,
        "num_local_experts": max(moe.experts, 1),
        "num_experts_per_tok": moe.active,
    }


def _windows(windows: list[int | None]) -> dict[str, Any]:
    return pattern({"attention.window": windows})


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states; every second window is a constant of its readers."""
    fields = gguf.read_decoder(settings, file, known=experts.GGUF_KNOWN)
    window, head_dim = fields["block.attention.window"], fields["block.attention.head_dim"]
    return {
        **fields,
        **experts.read_gguf(settings, renormalize=True),
        **_windows([None if layer % 2 else window for layer in range(fields["depth"])]),
        **rope_fields(gguf.read_rope(settings, file, head_dim, truncate=False)),
        **_ALWAYS,
    }


# Gate and up alternate.
_BOTH = ("gate", "up")
NAMES = experts.instead(decoder.NAMES, in_blocks("model.layers.{l}.", {
    "attn.variant.logit": Place("self_attn.sinks", "n->n"),
    "mlp.router": Place("mlp.router.weight", "ed->de"),
    **{f"mlp.experts.{x}": Place("mlp.experts.gate_up_proj", "ed(f[1])->edf") for x in _BOTH},
    **{
        f"mlp.experts.{x}_bias": Place("mlp.experts.gate_up_proj_bias", "e(f[1])->ef")
        for x in _BOTH
    },
    "mlp.experts.down": Place("mlp.experts.down_proj", "efd->efd"),
    "mlp.experts.down_bias": Place("mlp.experts.down_proj_bias", "ed->ed"),
}))  # fmt: skip

GGUF_NAMES = experts.instead(gguf.NAMES, experts.GGUF_ROWS | in_blocks("blk.{l}.", {
    "attn.variant.logit": Place("attn_sinks.weight", "n->n"),
    "mlp_norm.scale": Place("post_attention_norm.weight", "d->d"),
    "mlp.experts.gate_bias": Place("ffn_gate_exps.bias", "ef->ef"),
    "mlp.experts.up_bias": Place("ffn_up_exps.bias", "ef->ef"),
    "mlp.experts.down_bias": Place("ffn_down_exps.bias", "ed->ed"),
}))  # fmt: skip

FAMILY = Family(
    model_type="gpt_oss", about="gpt-oss, in bfloat16 or MXFP4", architecture="GptOssForCausalLM",
    base="GptOssModel", defaults=DEFAULTS, read=read, write=write, names=always(NAMES),
    own_names=decoder.own_names, gguf=Gguf("gpt-oss", read_gguf, always(GGUF_NAMES)),
    bos=False,
)  # fmt: skip
