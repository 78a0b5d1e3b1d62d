"""StableLM (2023): LLaMA with LayerNorm; its largest model norms every head by itself and has
attention and MLP side by side."""

from typing import Any

from jax_massact.families import decoder, gguf, llama
from jax_massact.families.family import Family, Gguf
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.families.rope import rope_fields
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings

DEFAULTS = {
    **{name: value for name, value in llama.DEFAULTS.items() if name != "rms_norm_eps"},
    "vocab_size": 50_304,
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "layer_norm_eps": 1e-5,
    "use_qkv_bias": False,
    "qk_layernorm": False,
    "use_parallel_residual": False,
}


def _fields(*, bias: bool, normed: bool, parallel: bool) -> dict[str, Any]:
    return {
        **in_all_norms(kind="layer", bias=True),
        "block.attention.qkv_bias": bias,
        "block.attention.qk_norm": "per_head" if normed else "none",
        "block.parallel": parallel,
        "block.shared_norm": parallel,
    }


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    width, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    if settings.size("head_dim", width // heads) != width // heads:
        raise settings.error("head_dim", f"{width // heads}, hidden_size / num_attention_heads")
    return decoder.read_decoder(settings, eps="layer_norm_eps", partial=0.25) | _fields(
        bias=settings.flag("use_qkv_bias", False),
        normed=settings.flag("qk_layernorm", False),
        parallel=settings.flag("use_parallel_residual", False),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    attention, written = config.block.attention, decoder.write_decoder(config, eps="layer_norm_eps")
    return {"partial_rotary_factor": 1.0} | written | {
        "use_qkv_bias": attention.qkv_bias,
        "qk_layernorm": attention.qk_norm != "none",
        "use_parallel_residual": config.block.parallel,
    }


def read_gguf(settings: Settings, file: GgufFile) -> Fields:
    """The fields that a GGUF file states."""
    sizes = gguf.read_sizes(settings, file, known=("use_parallel_residual",))
    rope = gguf.read_rope(settings, file, sizes["block.attention.head_dim"], partial=True)
    has = file.tensors.__contains__
    return {
        **sizes,
        **rope_fields(rope),
        # llama.cpp goes by the tensors.
        **_fields(
            bias=has("blk.0.attn_q.bias"), normed=has("blk.0.attn_q_norm.weight"),
            parallel=not has("blk.0.ffn_norm.weight"),
        ),
        **in_all_norms(eps=settings.number("attention.layer_norm_epsilon")),
    }


def _of(config: ModelConfig, names: Names, rows: Names) -> Names:
    """These names, of which a model may have some only."""
    absent = {"blocks.mlp_norm.scale"} if config.block.shared_norm else set[str]()
    return {name: place for name, place in {**names, **rows}.items() if name not in absent}


_NORMS = in_blocks("model.layers.{l}.self_attn.", {
    "attn.q_norm.scales": Place("q_layernorm.norms.{n}.weight", "nh->nh"),
    "attn.k_norm.scales": Place("k_layernorm.norms.{k}.weight", "kh->kh"),
})  # fmt: skip
_GGUF_NORMS = in_blocks("blk.{l}.", {
    "attn.q_norm.scales": Place("attn_q_norm.weight", "nh->nh"),
    "attn.k_norm.scales": Place("attn_k_norm.weight", "kh->kh"),
})  # fmt: skip

FAMILY = Family(
    model_type="stablelm", about="StableLM 3B, 1.6B and 12B", architecture="StableLmForCausalLM",
    base="StableLmModel", defaults=DEFAULTS, read=read, write=write,
    names=lambda config: _of(config, decoder.NAMES, _NORMS), own_names=decoder.own_names,
    gguf=Gguf("stablelm", read_gguf, lambda config: _of(config, gguf.NAMES, _GGUF_NORMS)),
    bos=False,
)  # fmt: skip
