"""Small odd models of every family, as `config.json` files; a family is one row.

`make_family_fixtures.py` has transformers compute them, `test_families.py` compares.
"""

from typing import Any, NamedTuple

VOCAB, TOKENS = 37, 16
# Larger than usual, so that random weights feel it; a float32 as well, which GGUF files hold.
EPS = 2.0**-10
Config = dict[str, Any]


class Family(NamedTuple):
    """The models of one family.

    Attributes:
      base: the settings of all.
      cases: what each has in place of them; ... leaves a setting out.
      attention: transformers' implementation that serves as the oracle.
    """

    base: Config
    cases: dict[str, Config]
    attention: str = "eager"

    def config(self, case: str) -> Config:
        """The `config.json` of one model."""
        changed = self.base | self.cases[case]
        return {name: value for name, value in changed.items() if value is not ...}


def decoder(model_type: str, architecture: str, **settings: Any) -> Config:
    """The settings of a small model in the words of LLaMA."""
    return {
        "architectures": [architecture], "model_type": model_type, "vocab_size": VOCAB,
        "hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 32, "rms_norm_eps": EPS, "rope_theta": 100.0,
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
        **settings,
    }  # fmt: skip


# Odd shapes that every family in the words of LLaMA can have.
SHAPES: dict[str, Config] = {
    "plain": {},
    "as many key heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "narrow heads": {"head_dim": 2},
    "wide heads": {"head_dim": 14, "num_attention_heads": 3, "num_key_value_heads": 3},
    "three to a group": {"num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 6},
    "tied": {"tie_word_embeddings": True},
    "one block": {"num_hidden_layers": 1},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.25, "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LOCAL, WHOLE = "sliding_attention", "full_attention"
# Gemma 2 and 3.
_CAPPED = {
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 8, "sliding_window": 5,
    "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0,
}  # fmt: skip
_CAPS: dict[str, Config] = {
    "no softcaps": {"attn_logit_softcapping": None, "final_logit_softcapping": None},
    "own scale": {"query_pre_attn_scalar": 6},
    "kinds of layers": {"layer_types": [WHOLE, LOCAL, WHOLE]},
    "windows alone": {"layer_types": [LOCAL] * 3, "sliding_window": 3},
    "untied": {"tie_word_embeddings": False},
    "two periods and a part": {"num_hidden_layers": 5},
}

FAMILIES: dict[str, Family] = {
    "gemma": Family(
        decoder(
            "gemma", "GemmaForCausalLM", hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True,
        ),
        SHAPES | {
            "untied": {"tie_word_embeddings": False},
            "gelu means tanh": {"hidden_act": "gelu"},
            "biases": {"attention_bias": True},
            "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
            "by default": {
                "rope_theta": ..., "rms_norm_eps": ..., "tie_word_embeddings": ...,
                "hidden_act": ...,
            },
        },
    ),
    "gemma2": Family(decoder("gemma2", "Gemma2ForCausalLM", **_CAPPED), SHAPES | _CAPS),
    "gemma3_text": Family(
        decoder(
            "gemma3_text", "Gemma3ForCausalLM",
            **_CAPPED | {"attn_logit_softcapping": None, "rope_local_base_freq": 10_000.0},
        ),
        SHAPES | _CAPS | {
            "two periods and a part": {"num_hidden_layers": 8},
            "scaled where all is seen": {
                "num_hidden_layers": 6, "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            "a softcap that is not used": {"attn_logit_softcapping": 2.0},
            "local base": {"rope_local_base_freq": 20.0},
            "period of two": {"sliding_window_pattern": 2, "num_hidden_layers": 3},
            "groups": {
                "rope_theta": ..., "rope_local_base_freq": ..., "rope_parameters": {
                    WHOLE: {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
                    LOCAL: {"rope_type": "default", "rope_theta": 30.0},
                },
            },
        },
    ),
    "qwen3": Family(
        decoder("qwen3", "Qwen3ForCausalLM"),
        SHAPES | {
            "biases": {"attention_bias": True},
            "yarn": {"rope_scaling": YARN},
            "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
            "windows": {
                "use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1,
            },
            "windows in every layer": {
                "use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0,
            },
            "by default": {
                "rope_theta": ..., "rms_norm_eps": ..., "tie_word_embeddings": ...,
                "hidden_act": ...,
            },
        },
    ),
}
