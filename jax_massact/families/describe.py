"""A model's configuration as a Hugging Face `config.json`: the inverse of `hf_config`."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_massact.errors import WeightsError
from jax_massact.families.group import GROUP, group_for
from jax_massact.families.hf_config import ARCHITECTURES, OWN, hf_fields
from jax_massact.nn.config import ModelConfig, RopeConfig
from jax_massact.nn.layers import llama3_factors
from jax_massact.weights.settings import Settings

_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new"}
# What every published model with this extension has, and the contexts that it may have extended.
_LLAMA3 = {"low": 1.0, "high": 4.0}
_LLAMA3_CONTEXTS = tuple(1 << n for n in range(10, 18))
# Within the rounding of files that hold the factors themselves, in float32.
_LLAMA3_ERROR = 1e-6


def describe(config: ModelConfig) -> dict[str, Any]:
    """The settings that make transformers, or this package alone, run the same model.

    A model that transformers has no code for gets a `model_type` that it does not know, lest it run
    another model under these weights. Left out is what no file of weights decides: the compute
    dtype.

    Raises:
      WeightsError: no file format has such a family, or its rotary pairs are interleaved.
    """
    if config.family not in ARCHITECTURES:
        raise WeightsError(
            f"a model of family {config.family!r} cannot be saved; expected: "
            f"{', '.join(ARCHITECTURES)}"
        )
    if config.position == "rope" and config.rope.pairs != "halves":
        raise WeightsError("rope.pairs is 'interleaved'; expected: 'halves', as in such files")
    settings = _WRITERS[config.family](config)
    fields = hf_fields(config.family, Settings(settings, Path("config.json")))
    group = settings.get(GROUP, {}) | group_for(fields, readable(config))
    architecture = ARCHITECTURES[config.family]
    if not group:
        return {"architectures": [architecture], "model_type": config.family, **settings}
    return {
        "architectures": [f"Massact{architecture}"],
        "model_type": f"{OWN}{config.family}",
        **settings,
        GROUP: group,
    }


def readable(config: ModelConfig) -> ModelConfig:
    """The configuration as it will be read again.

    The compute dtype is float32, as for every file, rotary settings of a model without rotary
    positions are the defaults, and Llama 3's factors are exactly those of its formula.
    """
    rope = RopeConfig() if config.position != "rope" else config.rope
    scaling = _llama3(rope, config.head_dim)
    if scaling is not None:
        rope = dataclasses.replace(rope, factors=_factors_of(rope, config.head_dim, scaling))
    return dataclasses.replace(config, rope=rope, dtype="float32", implementation=None)


def _rope_decoder(config: ModelConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": _ACTIVATIONS[config.activation],
        "max_position_embeddings": config.context_length,
        "rms_norm_eps": config.norm_eps,
        # transformers 4 and 5 both read these two.
        "rope_theta": config.rope.base,
        "rope_scaling": _rope_scaling(config),
        "tie_word_embeddings": config.tied_head,
    }


def _llama(config: ModelConfig) -> dict[str, Any]:
    biases = {"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias}
    return _rope_decoder(config) | biases


def _mistral(config: ModelConfig) -> dict[str, Any]:
    # Absent and null differ: see its reader.
    return _rope_decoder(config) | {"sliding_window": config.sliding_window}


def _qwen2(config: ModelConfig) -> dict[str, Any]:
    if config.sliding_window is None:
        return _rope_decoder(config) | {"use_sliding_window": False}
    window = {"sliding_window": config.sliding_window, "max_window_layers": 0}
    return _rope_decoder(config) | {"use_sliding_window": True} | window


def _gpt2(config: ModelConfig) -> dict[str, Any]:
    settings = {
        "vocab_size": config.vocab_size,
        "n_embd": config.width,
        "n_inner": config.mlp_dim,
        "n_layer": config.depth,
        "n_head": config.num_heads,
        "n_positions": config.context_length,
        "activation_function": _ACTIVATIONS[config.activation],
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tied_head,
    }
    is_implied = config.num_heads * config.head_dim == config.width
    return settings if is_implied else settings | {GROUP: {"head_dim": config.head_dim}}


def _rope_scaling(config: ModelConfig) -> dict[str, Any] | None:
    factors = config.rope.factors
    if config.position != "rope" or factors is None:
        return None
    if len(set(factors)) == 1:
        return {"rope_type": "linear", "factor": factors[0]}
    return _llama3(config.rope, config.head_dim) or {
        # The one kind that states a factor for each pair; for sequences of any length the same.
        "rope_type": "longrope",
        "factor": 1.0,
        "short_factor": list(factors),
        "long_factor": list(factors),
        "attention_factor": 1.0,
        "original_max_position_embeddings": config.context_length,
    }


def _llama3(rope: RopeConfig, head_dim: int) -> dict[str, Any] | None:
    """Llama 3's settings, if they give these factors."""
    if rope.factors is None or max(rope.factors) < 1 or len(set(rope.factors)) == 1:
        return None
    for context in _LLAMA3_CONTEXTS:
        scaling = {
            "rope_type": "llama3",
            "factor": max(rope.factors),
            "low_freq_factor": _LLAMA3["low"],
            "high_freq_factor": _LLAMA3["high"],
            "original_max_position_embeddings": context,
        }
        found = _factors_of(rope, head_dim, scaling)
        if np.allclose(found, rope.factors, rtol=_LLAMA3_ERROR, atol=0):
            return scaling
    return None


def _factors_of(rope: RopeConfig, head_dim: int, scaling: Mapping[str, Any]) -> tuple[float, ...]:
    return llama3_factors(
        rope,
        head_dim,
        factor=scaling["factor"],
        context=scaling["original_max_position_embeddings"],
        **_LLAMA3,
    )


_WRITERS: Mapping[str, Callable[[ModelConfig], dict[str, Any]]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "gpt2": _gpt2,
}
