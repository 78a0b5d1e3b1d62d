"""A Hugging Face `config.json` as a model's configuration.

Defaults are those of transformers where a published file may leave a setting out. A file that this
package wrote may hold settings of the group `massact`, for models that transformers does not have.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jax_massact.errors import ConfigError, WeightsError
from jax_massact.families.group import group_of, model_config
from jax_massact.nn.config import ActivationKind, ModelConfig, RopeConfig
from jax_massact.nn.layers import llama3_factors
from jax_massact.weights.safetensors import parse_json
from jax_massact.weights.settings import Settings
from jax_massact.weights.tensors import check_digest, reading

# Family -> architecture, and `model_type` -> architecture with the models of this package's own.
ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
OWN = "massact-"
_MODEL_TYPES = ARCHITECTURES | {f"{OWN}{f}": f"Massact{a}" for f, a in ARCHITECTURES.items()}
_ACTIVATIONS: dict[str, ActivationKind] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
}


def hf_config(path: Path) -> ModelConfig:
    """The configuration that a `config.json` states, with float32 as its compute dtype.

    Raises:
      WeightsError: the architecture or a setting is not supported, or one is missing or wrong.
    """
    check_digest(path)
    with reading(path) as file:
        settings = Settings(parse_json(file.read(), str(path)), path)
    model_type = _model_type(settings)
    if settings.has("quantization_config"):
        raise settings.error("quantization_config", "nothing; quantized weights only as GGUF")
    try:
        group = group_of(settings, required=model_type.startswith(OWN))
        return model_config(hf_fields(model_type.removeprefix(OWN), settings), group)
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def hf_fields(family: str, settings: Settings) -> dict[str, Any]:
    """The fields of `ModelConfig` that the settings with Hugging Face's names state.

    Raises:
      WeightsError, ConfigError: a setting is not supported, or one is missing or wrong.
    """
    return _READERS[family](settings)


def _model_type(settings: Settings) -> str:
    architectures = settings.get("architectures", [])
    if not architectures:
        return settings.one_of("model_type", tuple(_MODEL_TYPES))
    known = {architecture: model_type for model_type, architecture in _MODEL_TYPES.items()}
    if not isinstance(architectures, list) or str(architectures[0]) not in known:
        raise settings.error("architectures", f"one of {', '.join(known)}")
    model_type = known[architectures[0]]
    return settings.one_of("model_type", (model_type,), model_type)


def _activation(settings: Settings, name: str, default: str) -> ActivationKind:
    return _ACTIVATIONS[settings.one_of(name, tuple(_ACTIVATIONS), default)]


def _rope_decoder(
    settings: Settings,
    *,
    family: str,
    kv_heads: int | None = None,
    window: int | None = None,
    qkv_bias: bool = False,
    other_biases: bool = False,
) -> dict[str, Any]:
    """The settings that LLaMA, Mistral and Qwen2 have in common."""
    width, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    head_dim = settings.size("head_dim", max(width // heads, 1))
    return dict(
        family=family,
        vocab_size=settings.size("vocab_size"),
        depth=settings.size("num_hidden_layers"),
        width=width,
        num_heads=heads,
        num_kv_heads=settings.size("num_key_value_heads", kv_heads or heads),
        head_dim=head_dim,
        mlp_dim=settings.size("intermediate_size"),
        context_length=settings.size("max_position_embeddings"),
        norm="rms",
        norm_eps=settings.number("rms_norm_eps"),
        rope=_rope(settings, head_dim),
        activation=_activation(settings, "hidden_act", "silu"),
        gated_mlp=True,
        qkv_bias=qkv_bias,
        attn_out_bias=qkv_bias and other_biases,
        mlp_bias=other_biases and settings.flag("mlp_bias", False),
        sliding_window=window,
        tied_head=settings.flag("tie_word_embeddings", False),
    )


def _llama(settings: Settings) -> dict[str, Any]:
    bias = settings.flag("attention_bias", False)
    return _rope_decoder(settings, family="llama", qkv_bias=bias, other_biases=True)


def _mistral(settings: Settings) -> dict[str, Any]:
    # Absent and null differ: a file that does not say has transformers' window.
    absent = "sliding_window" not in settings.values
    window = 4096 if absent else settings.get("sliding_window")
    if window is not None and not absent:
        window = settings.size("sliding_window")
    _only_layers(settings, "full_attention" if window is None else "sliding_attention")
    return _rope_decoder(settings, family="mistral", window=window)


def _qwen2(settings: Settings) -> dict[str, Any]:
    window = None
    if settings.flag("use_sliding_window", False) and settings.has("sliding_window"):
        first = settings.get("max_window_layers", 28)
        depth = settings.size("num_hidden_layers")
        types = settings.get("layer_types")
        if types is not None:
            _only_layers(settings, types[0] if isinstance(types, list) and types else None)
            window = settings.size("sliding_window") if types[0] != "full_attention" else None
        elif first == 0:
            window = settings.size("sliding_window")
        elif not isinstance(first, int) or first < depth:
            raise settings.error(
                "max_window_layers", f"0 or at least {depth}; a window in some layers only"
            )
    else:
        _only_layers(settings, "full_attention")
    return _rope_decoder(settings, family="qwen2", window=window, qkv_bias=True)


def _only_layers(settings: Settings, kind: str | None) -> None:
    """Newer files state the kind of every layer's attention; all must agree here."""
    types = settings.get("layer_types")
    if types is None:
        return
    depth = settings.size("num_hidden_layers")
    if kind not in ("full_attention", "sliding_attention") or types != [kind] * depth:
        raise settings.error("layer_types", f"{depth} times the same, as sliding_window says")


def _rope(settings: Settings, head_dim: int) -> RopeConfig:
    """`rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`."""
    settings.one_of("rope_interleaved", (False,), False)
    new = settings.get("rope_parameters")
    scaling = settings.get("rope_scaling") if new is None else new
    name = "rope_scaling" if new is None else "rope_parameters"
    if scaling is not None and not isinstance(scaling, Mapping):
        raise settings.error(name, "an object or null")
    values = {f"{name}.{key}": value for key, value in (scaling or {}).items()}
    inner = Settings(values, settings.file, f"{name}.")
    for source in (settings, inner):
        if source.has("partial_rotary_factor") and source.get("partial_rotary_factor") != 1.0:
            raise source.error("partial_rotary_factor", "1.0, the whole head")
    theta = settings.number("rope_theta", 10_000.0)
    rope = RopeConfig(base=inner.number("rope_theta", theta), pairs="halves")
    factors = _factors(inner, rope, head_dim)
    return RopeConfig(base=rope.base, pairs="halves", factors=factors)


def _factors(scaling: Settings, rope: RopeConfig, head_dim: int) -> tuple[float, ...] | None:
    kinds = ("default", "linear", "llama3", "longrope")
    key = "type" if scaling.has("type") and not scaling.has("rope_type") else "rope_type"
    if not scaling.values:
        return None
    if any(isinstance(value, Mapping) for value in scaling.values.values()):
        raise scaling.error(key, "one kind for all layers")
    kind = scaling.one_of(key, kinds, "default")
    if kind == "default":
        return None
    if kind == "linear":
        return (scaling.number("factor"),) * (head_dim // 2)
    if kind == "longrope":
        factors = scaling.numbers("short_factor")
        if scaling.numbers("long_factor") != factors:
            raise scaling.error("long_factor", "short_factor's numbers, whatever the length")
        scaling.one_of("attention_factor", (1.0, 1))
        return factors
    return llama3_factors(
        rope,
        head_dim,
        factor=scaling.number("factor"),
        low=scaling.number("low_freq_factor"),
        high=scaling.number("high_freq_factor"),
        context=scaling.size("original_max_position_embeddings"),
    )


def _gpt2(settings: Settings) -> dict[str, Any]:
    width, heads = settings.size("n_embd"), settings.size("n_head")
    if width % heads and not group_of(settings).has("head_dim"):
        raise settings.error("n_head", f"a divisor of n_embd, which is {width}")
    settings.one_of("scale_attn_weights", (True,), True)
    settings.one_of("scale_attn_by_inverse_layer_idx", (False,), False)
    settings.one_of("add_cross_attention", (False,), False)
    return dict(
        family="gpt2",
        vocab_size=settings.size("vocab_size"),
        depth=settings.size("n_layer"),
        width=width,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=width // heads,
        mlp_dim=settings.size("n_inner", 4 * width),
        context_length=settings.size("n_positions"),
        norm="layer",
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
        norm_bias=True,
        position="learned",
        activation=_activation(settings, "activation_function", "gelu_new"),
        gated_mlp=False,
        qkv_bias=True,
        attn_out_bias=True,
        mlp_bias=True,
        tied_head=settings.flag("tie_word_embeddings", True),
    )


_READERS: Mapping[str, Callable[[Settings], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gpt2": _gpt2,
}
