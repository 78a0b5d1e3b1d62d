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
      cases: what each has in place of them; None leaves a setting out.
      attention: transformers' implementation that serves as the oracle.
    """

    base: Config
    cases: dict[str, Config]
    attention: str = "eager"

    def config(self, case: str) -> Config:
        """The `config.json` of one model."""
        changed = self.base | self.cases[case]
        return {name: value for name, value in changed.items() if value is not None}


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

FAMILIES: dict[str, Family] = {
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
                "rope_theta": None, "rms_norm_eps": None, "tie_word_embeddings": None,
                "hidden_act": None,
            },
        },
    ),
}
