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
# The same for families whose heads share the width.
_WHOLE_HEADS: dict[str, Config] = {
    "plain": {},
    "as many key heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "narrow heads": {"num_attention_heads": 8},
    "three to a group": {"num_attention_heads": 6, "hidden_size": 36},
    "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
    "tied": {"tie_word_embeddings": True},
    "one block": {"num_hidden_layers": 1},
}
# GLM: a part of each head is turned.
_PARTS_OF_HEADS: dict[str, Config] = {
    "plain": {},
    "as many key heads": {"num_key_value_heads": 4},
    "one key head": {"num_key_value_heads": 1},
    "a quarter": {"partial_rotary_factor": 0.25},
    "whole heads": {"partial_rotary_factor": 1.0},
    "narrow heads": {"head_dim": 4},
    "wide heads": {"head_dim": 16, "num_attention_heads": 3, "num_key_value_heads": 3},
    "no biases": {"attention_bias": False},
    "tied": {"tie_word_embeddings": True},
    "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
    "one block": {"num_hidden_layers": 1},
    "by default": {"partial_rotary_factor": ..., "rms_norm_eps": ..., "rope_theta": ...},
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 0.25, "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LOCAL, WHOLE = "sliding_attention", "full_attention"
# Phi-3.
_LONGROPE: Config = {
    "rope_scaling": {
        "type": "longrope", "short_factor": [1.0, 1.1, 1.5, 2.0],
        "long_factor": [1.0, 2.0, 4.0, 9.0],
    },
    "original_max_position_embeddings": 8,
}  # fmt: skip
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

# YaRN as a file may state it.
_BANDS = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8}
# Falcon-RW; some slopes of twelve heads have no bfloat16.
_RW: Config = {
    "alibi": True, "bias": True, "multi_query": False, "parallel_attn": False,
    "num_attention_heads": 12,
}  # fmt: skip


def _group(**settings: Any) -> Config:
    """Rotary settings in the words of transformers 5."""
    return {"rope_theta": ..., "rope_parameters": {"rope_theta": 100.0, **settings}}


FAMILIES: dict[str, Family] = {
    "llama": Family(
        decoder("llama", "LlamaForCausalLM", num_hidden_layers=2),
        SHAPES | {
            "biases": {"attention_bias": True, "mlp_bias": True},
            "linear beside the new group": _group(rope_type="default") | {
                "rope_scaling": {"type": "linear", "factor": 4.0},
            },
            "yarn beside the new group": _group(rope_type="default") | {
                "rope_scaling": {"type": "yarn"} | _BANDS,
            },
            "theta of the group that is used": _group(rope_type="default") | {
                "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 3000.0,
            },
            "empty scaling": _group(rope_type="linear", factor=3.0) | {"rope_scaling": {}},
            "yarn": {"rope_scaling": _BANDS | {
                "beta_fast": 4.0, "beta_slow": 0.5, "finetuned": True,
            }},
            "yarn, two scales": _group(**_BANDS, mscale=0.7, mscale_all_dim=0.4),
            "yarn, as it is stated": _group(**_BANDS, attention_factor=1.3, truncate=False),
            "yarn, original context of the model": _group(**_BANDS) | {
                "original_max_position_embeddings": 16,
            },
            "yarn, one band": _group(rope_type="yarn", factor=2.0) | {"num_hidden_layers": 1},
            "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 4.0}},
            "llama3": {"rope_scaling": LLAMA3},
            "longrope": {"rope_scaling": {
                "type": "longrope", "short_factor": [1.0, 1.5, 2.0, 3.0],
                "long_factor": [1.0, 1.5, 2.0, 3.0], "original_max_position_embeddings": 16,
            }},
            "by default": {
                "rope_theta": ..., "rms_norm_eps": ..., "tie_word_embeddings": ..., "head_dim": ...,
                "num_key_value_heads": ...,
            },
        },
    ),
    "mistral": Family(
        decoder("mistral", "MistralForCausalLM", num_hidden_layers=2, sliding_window=5),
        SHAPES | {
            "no window": {"sliding_window": None},
            "a window of one": {"sliding_window": 1},
            "yarn": {"rope_scaling": YARN},
            "by default": {
                "rope_theta": ..., "rms_norm_eps": ..., "tie_word_embeddings": ...,
                "sliding_window": ..., "max_position_embeddings": 64,
            },
        },
    ),
    "qwen2": Family(
        decoder(
            "qwen2", "Qwen2ForCausalLM", hidden_size=32, head_dim=..., num_hidden_layers=2,
            use_sliding_window=False, sliding_window=5, max_window_layers=1,
        ),
        _WHOLE_HEADS | {
            "windows from a layer on": {"use_sliding_window": True},
            "windows in some layers": {
                "use_sliding_window": True, "num_hidden_layers": 3,
                "layer_types": [LOCAL, WHOLE, LOCAL],
            },
            "yarn": {"rope_scaling": YARN},
            "by default": {
                "rope_theta": ..., "rms_norm_eps": ..., "tie_word_embeddings": ...,
                "use_sliding_window": ..., "sliding_window": ..., "max_window_layers": ...,
            },
        },
    ),
    "gpt2": Family(
        {
            "architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "vocab_size": VOCAB,
            "n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 32, "layer_norm_epsilon": EPS,
            "activation_function": "gelu_new", "bos_token_id": 1, "eos_token_id": 2,
        },
        {
            "plain": {},
            "one head": {"n_head": 1},
            "narrow heads": {"n_head": 12},
            "uneven heads": {"n_head": 8},
            "untied": {"tie_word_embeddings": False},
            "erf": {"activation_function": "gelu"},
            "relu": {"activation_function": "relu"},
            "one block": {"n_layer": 1},
            "five blocks": {"n_layer": 5},
            "as long as the context": {"n_positions": 16},
            "wide": {"n_inner": 50},
            "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
            "not scaled": {"scale_attn_weights": False},
            "scaled by layer alone": {
                "scale_attn_weights": False, "scale_attn_by_inverse_layer_idx": True,
            },
            "by default": {"layer_norm_epsilon": ..., "activation_function": ...},
        },
    ),
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
    "gpt_neox": Family(
        {
            "architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "vocab_size": VOCAB,
            "hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 3,
            "num_attention_heads": 3, "max_position_embeddings": 32, "layer_norm_eps": EPS,
            "rotary_pct": 0.25, "rotary_emb_base": 10_000.0, "tie_word_embeddings": False,
            "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "gelu",
        },
        {
            "plain": {},
            "one after the other": {"use_parallel_residual": False},
            "half of a head": {"rotary_pct": 0.5},
            "whole heads": {"rotary_pct": 1.0},
            "three quarters": {"rotary_pct": 0.75},
            "another base": {"rotary_emb_base": 50.0},
            "one head": {"num_attention_heads": 1},
            "narrow heads": {"num_attention_heads": 6, "rotary_pct": 0.5},
            "tied": {"tie_word_embeddings": True},
            "no biases": {"attention_bias": False},
            "tanh": {"hidden_act": "gelu_new"},
            "one block": {"num_hidden_layers": 1},
            "wide": {"intermediate_size": 50},
            "yarn of a part": {"rope_scaling": YARN, "rotary_pct": 0.5},
            "by default": {"rotary_pct": ..., "rotary_emb_base": ..., "use_parallel_residual": ...},
        },
    ),
    "opt": Family(
        {
            "architectures": ["OPTForCausalLM"], "model_type": "opt", "vocab_size": VOCAB,
            "hidden_size": 24, "word_embed_proj_dim": 24, "ffn_dim": 28, "num_hidden_layers": 3,
            "num_attention_heads": 3, "max_position_embeddings": 20, "activation_function": "relu",
            "do_layer_norm_before": True, "tie_word_embeddings": True, "bos_token_id": 2,
            "eos_token_id": 2, "pad_token_id": 1, "_remove_final_layer_norm": False,
        },
        {
            "plain": {},
            "one head": {"num_attention_heads": 1},
            "narrow heads": {"num_attention_heads": 12},
            "uneven heads": {"num_attention_heads": 8},
            "untied": {"tie_word_embeddings": False},
            "no biases": {"enable_bias": False},
            "norms without scales": {"layer_norm_elementwise_affine": False},
            "gelu": {"activation_function": "gelu"},
            "one block": {"num_hidden_layers": 1},
            "four blocks": {"num_hidden_layers": 4},
            "as long as the context": {"max_position_embeddings": 16},
            "wide": {"ffn_dim": 50},
            "by default": {"do_layer_norm_before": ..., "word_embed_proj_dim": 24},
        },
    ),
    "phi3": Family(
        # transformers checks the factors of LongRoPE against D / N, whatever head_dim says.
        decoder("phi3", "Phi3ForCausalLM", hidden_size=32, head_dim=..., sliding_window=None),
        {
            "plain": {},
            "as many key heads": {"num_key_value_heads": 4},
            "one key head": {"num_key_value_heads": 1},
            "window": {"sliding_window": 5},
            "part of a head": {"partial_rotary_factor": 0.75},
            "half of a head": {"partial_rotary_factor": 0.5, "sliding_window": 7},
            "tied": {"tie_word_embeddings": True},
            "one block": {"num_hidden_layers": 1},
            "three to a group": {"num_attention_heads": 6, "hidden_size": 48},
            "beyond the original context": _LONGROPE,
            "within the original context": _LONGROPE | {"original_max_position_embeddings": 16},
            "a part, far": _LONGROPE | {
                "partial_rotary_factor": 0.5, "rope_scaling": {
                    "type": "longrope", "short_factor": [1.0, 1.5], "long_factor": [2.0, 5.0],
                },
            },
            "another base": {"rope_theta": 10_000.0, "intermediate_size": 50},
        },
    ),
    "phi": Family(
        decoder(
            "phi", "PhiForCausalLM", hidden_size=32, head_dim=..., hidden_act="gelu_new",
            layer_norm_eps=EPS, num_key_value_heads=4, partial_rotary_factor=0.5,
        ),
        {
            "plain": {},
            "grouped": {"num_key_value_heads": 2},
            "one key head": {"num_key_value_heads": 1},
            "a quarter": {"partial_rotary_factor": 0.25},
            "three quarters": {"partial_rotary_factor": 0.75},
            "whole heads": {"partial_rotary_factor": 1.0},
            "one head": {"num_attention_heads": 1, "num_key_value_heads": 1},
            "erf": {"hidden_act": "gelu"},
            "one block": {"num_hidden_layers": 1},
            "wide": {"intermediate_size": 50},
            "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
            "yarn": {"rope_scaling": YARN},
            "by default": {
                "rope_theta": ..., "layer_norm_eps": ..., "hidden_act": ...,
                "partial_rotary_factor": ..., "tie_word_embeddings": ...,
                "num_key_value_heads": ...,
            },
        },
    ),
    "falcon": Family(
        {
            "architectures": ["FalconForCausalLM"], "model_type": "falcon", "vocab_size": VOCAB,
            "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 6,
            "layer_norm_epsilon": EPS, "max_position_embeddings": 2048, "multi_query": True,
            "new_decoder_architecture": False, "parallel_attn": True, "bias": False,
            "alibi": False, "bos_token_id": 1, "eos_token_id": 2, "rope_theta": 10_000.0,
        },
        {
            "7B": {},
            "40B": {"new_decoder_architecture": True, "num_kv_heads": 2},
            "40B, three groups": {"new_decoder_architecture": True, "num_kv_heads": 3},
            "11B": {
                "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1,
            },
            "180B": {
                "new_decoder_architecture": True, "num_kv_heads": 1, "num_ln_in_parallel_attn": 2,
            },
            "as many key heads": {"multi_query": False, "num_kv_heads": 6},
            "one after the other": {"parallel_attn": False},
            "biases": {"bias": True},
            "untied": {"tie_word_embeddings": False},
            "another base": {"rope_theta": 50.0},
            "one block": {"num_hidden_layers": 1},
            "narrow": {"ffn_hidden_size": 28},
            "tanh": {"activation": "gelu_new"},
            "RW": _RW,
            "RW, twenty heads, untied": _RW | {
                "num_attention_heads": 20, "hidden_size": 20, "tie_word_embeddings": False,
            },
            "RW, three heads, no biases": _RW | {"num_attention_heads": 3, "bias": False},
            "RW, one key head, side by side": _RW | {"multi_query": True, "parallel_attn": True},
            "RW, new architecture": _RW | {
                "new_decoder_architecture": True, "num_kv_heads": 4, "parallel_attn": True,
            },
        },
        # Its ALiBi is added twice by "eager".
        attention="sdpa",
    ),
    "bloom": Family(
        {
            "architectures": ["BloomForCausalLM"], "model_type": "bloom", "vocab_size": VOCAB,
            "hidden_size": 24, "n_layer": 3, "n_head": 3, "layer_norm_epsilon": EPS,
            "seq_length": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3,
        },
        {
            "plain": {},
            "one head": {"n_head": 1},
            "two heads": {"n_head": 2},
            "four heads": {"n_head": 4},
            "six heads": {"n_head": 6},
            "twelve heads": {"n_head": 12},
            "untied": {"tie_word_embeddings": False},
            "one block": {"n_layer": 1},
            "five blocks": {"n_layer": 5},
            "narrow": {"hidden_size": 12},
            "wide": {"hidden_size": 30, "n_head": 5},
            "old names": {"hidden_size": ..., "n_embed": 24},
            "by default": {"layer_norm_epsilon": ..., "seq_length": ...},
        },
    ),
    "mpt": Family(
        {
            "architectures": ["MptForCausalLM"], "model_type": "mpt", "vocab_size": VOCAB,
            "d_model": 24, "n_layers": 3, "n_heads": 3, "max_seq_len": 32, "no_bias": True,
            "layer_norm_epsilon": EPS, "expansion_ratio": 4,
            "attn_config": {"alibi": True, "clip_qkv": None, "alibi_bias_max": 8},
        },
        {
            "plain": {},
            "one head": {"n_heads": 1},
            "two heads": {"n_heads": 2},
            "six heads": {"n_heads": 6},
            "twelve heads": {"n_heads": 12},
            "clipped": {"attn_config": {"alibi": True, "clip_qkv": 0.5}},
            "clipped hard": {"attn_config": {"alibi": True, "clip_qkv": 0.1}, "n_heads": 4},
            "scaled": {"attn_config": {"alibi": True, "softmax_scale": 0.3}},
            "untied": {"tie_word_embeddings": False},
            "one block": {"n_layers": 1},
            "five blocks": {"n_layers": 5},
            "wide": {"d_model": 30, "n_heads": 5},
            "by default": {
                "attn_config": ..., "layer_norm_epsilon": ..., "no_bias": ..., "max_seq_len": 32,
            },
        },
    ),
    "olmo": Family(
        # The size of a head is not stated.
        decoder("olmo", "OlmoForCausalLM", hidden_size=32, head_dim=..., rms_norm_eps=...),
        _WHOLE_HEADS | {
            "clipped": {"clip_qkv": 0.4},
            "clipped and grouped": {"clip_qkv": 0.2, "num_key_value_heads": 1},
            "another base": {"rope_theta": 10_000.0},
            "biases": {"attention_bias": True},
        },
    ),
    "olmo2": Family(
        decoder("olmo2", "Olmo2ForCausalLM", hidden_size=32, head_dim=...),
        _WHOLE_HEADS | {
            "yarn": {"rope_scaling": YARN},
            "llama3": {"rope_scaling": LLAMA3},
            "another base": {"rope_theta": 10_000.0},
            "biases": {"attention_bias": True},
        },
    ),
    "olmo3": Family(
        decoder(
            "olmo3", "Olmo3ForCausalLM", hidden_size=32, head_dim=..., sliding_window=5,
            rope_theta=500_000.0, num_hidden_layers=4,
        ),
        _WHOLE_HEADS | {
            "yarn where all is seen": {"rope_scaling": YARN},
            "two periods": {"num_hidden_layers": 6},
            "kinds of layers": {
                "num_hidden_layers": 3, "layer_types": [WHOLE, LOCAL, LOCAL], "sliding_window": 3,
            },
            "groups": {
                "rope_theta": ..., "rope_parameters": {
                    WHOLE: {"rope_type": "linear", "factor": 2.0, "rope_theta": 300.0},
                    LOCAL: {"rope_type": "default", "rope_theta": 300.0},
                },
            },
        },
    ),
    "mixtral": Family(
        decoder(
            "mixtral", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2,
            sliding_window=None,
        ),
        SHAPES | {
            "all experts": {"num_experts_per_tok": 4},
            "one of three": {"num_local_experts": 3, "num_experts_per_tok": 1},
            "window": {"sliding_window": 5},
            "by default": {
                "rope_theta": ..., "rms_norm_eps": ..., "hidden_act": ..., "num_local_experts": 3,
            },
        },
    ),
    "qwen3_moe": Family(
        decoder(
            "qwen3_moe", "Qwen3MoeForCausalLM", num_experts=4, num_experts_per_tok=2,
            moe_intermediate_size=12, norm_topk_prob=True, decoder_sparse_step=1,
            mlp_only_layers=[],
        ),
        SHAPES | {
            "not renormalized": {"norm_topk_prob": False},
            "all experts": {"num_experts_per_tok": 4},
            "one of three": {"num_experts": 3, "num_experts_per_tok": 1, "norm_topk_prob": False},
            "biases": {"attention_bias": True},
            "yarn": {"rope_scaling": YARN},
        },
    ),
    "qwen2_moe": Family(
        decoder(
            "qwen2_moe", "Qwen2MoeForCausalLM", hidden_size=32, head_dim=..., num_experts=4,
            num_experts_per_tok=2, moe_intermediate_size=12, shared_expert_intermediate_size=20,
            norm_topk_prob=False, decoder_sparse_step=1, mlp_only_layers=[],
        ),
        _WHOLE_HEADS | {
            "renormalized": {"norm_topk_prob": True},
            "all experts": {"num_experts_per_tok": 4},
            "one of three": {"num_experts": 3, "num_experts_per_tok": 1},
            "no biases": {"qkv_bias": False},
            "a small shared expert": {"shared_expert_intermediate_size": 5},
        },
    ),
    "gpt_oss": Family(
        decoder(
            "gpt_oss", "GptOssForCausalLM", num_local_experts=4, num_experts_per_tok=2,
            intermediate_size=12, sliding_window=5, attention_bias=True,
            rope_scaling=YARN | {"truncate": False},
        ),
        SHAPES | {
            "all experts": {"num_experts_per_tok": 4},
            "one of three": {"num_local_experts": 3, "num_experts_per_tok": 1},
            "no biases": {"attention_bias": False},
            "kinds of layers": {"layer_types": [WHOLE, WHOLE, LOCAL]},
            "truncated": {"rope_scaling": YARN},
        },
    ),
    "smollm3": Family(
        # The size of a head is not stated.
        decoder("smollm3", "SmolLM3ForCausalLM", hidden_size=32, head_dim=..., num_hidden_layers=4),
        _WHOLE_HEADS | {
            "every second": {"no_rope_layer_interval": 2},
            "chosen": {"no_rope_layers": [0, 1, 0, 1]},
            "windows": {"use_sliding_window": True, "sliding_window": 5, "num_hidden_layers": 5},
            "biases": {"attention_bias": True, "mlp_bias": True},
            "yarn": {"rope_scaling": YARN},
            "by default": {"rope_theta": ..., "rms_norm_eps": ..., "tie_word_embeddings": ...},
        },
    ),
    "granite": Family(
        decoder(
            "granite", "GraniteForCausalLM", hidden_size=32, head_dim=..., embedding_multiplier=3.0,
            attention_multiplier=0.25, residual_multiplier=0.5, logits_scaling=4.0,
        ),
        _WHOLE_HEADS | {
            "other factors": {
                "embedding_multiplier": 0.5, "attention_multiplier": 1.0, "logits_scaling": 3.0,
                "residual_multiplier": 1.5,
            },
            "no factors": {
                "embedding_multiplier": ..., "attention_multiplier": ..., "logits_scaling": ...,
                "residual_multiplier": ...,
            },
            "biases": {"attention_bias": True, "mlp_bias": True},
            "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
            "llama3": {"rope_scaling": LLAMA3},
        },
    ),
    "stablelm": Family(
        decoder(
            "stablelm", "StableLmForCausalLM", hidden_size=32, head_dim=..., rms_norm_eps=...,
            layer_norm_eps=EPS, use_qkv_bias=False, partial_rotary_factor=0.25,
        ),
        _WHOLE_HEADS | {
            "narrow heads": {"num_attention_heads": 8, "partial_rotary_factor": 0.5},
            "three to a group": {
                "num_attention_heads": 6, "hidden_size": 36, "partial_rotary_factor": 0.34,
            },
            "biases": {"use_qkv_bias": True},
            "12B": {"qk_layernorm": True, "use_parallel_residual": True},
            "normed heads": {"qk_layernorm": True},
            "whole heads": {"partial_rotary_factor": 1.0},
            "by default": {"partial_rotary_factor": ..., "layer_norm_eps": ..., "rope_theta": ...},
        },
    ),
    "cohere": Family(
        decoder(
            "cohere", "CohereForCausalLM", hidden_size=32, head_dim=..., rms_norm_eps=...,
            layer_norm_eps=EPS, logit_scale=0.5, tie_word_embeddings=True,
        ),
        _WHOLE_HEADS | {
            "untied": {"tie_word_embeddings": False},
            "normed heads": {"use_qk_norm": True},
            "normed and grouped": {"use_qk_norm": True, "num_key_value_heads": 1},
            "biases": {"attention_bias": True},
            "linear": {"rope_scaling": {"type": "linear", "factor": 3.0}},
            "by default": {
                "rope_theta": ..., "layer_norm_eps": ..., "logit_scale": ...,
                "tie_word_embeddings": ...,
            },
        },
    ),
    "cohere2": Family(
        decoder(
            "cohere2", "Cohere2ForCausalLM", hidden_size=32, head_dim=..., rms_norm_eps=...,
            layer_norm_eps=EPS, logit_scale=0.5, tie_word_embeddings=True, sliding_window=5,
            num_hidden_layers=4,
        ),
        _WHOLE_HEADS | {
            "untied": {"tie_word_embeddings": False},
            "biases": {"attention_bias": True},
            "two periods": {"num_hidden_layers": 6},
            "kinds of layers": {
                "num_hidden_layers": 3, "layer_types": [WHOLE, LOCAL, LOCAL], "sliding_window": 3,
            },
            "period of two": {"sliding_window_pattern": 2},
        },
    ),
    "glm": Family(
        decoder("glm", "GlmForCausalLM", partial_rotary_factor=0.5),
        _PARTS_OF_HEADS,
    ),
    "glm4": Family(
        decoder("glm4", "Glm4ForCausalLM", partial_rotary_factor=0.5),
        _PARTS_OF_HEADS,
    ),
    "gptj": Family(
        {
            "architectures": ["GPTJForCausalLM"], "model_type": "gptj", "vocab_size": VOCAB,
            "n_embd": 24, "n_layer": 3, "n_head": 3, "n_positions": 32, "rotary_dim": 4,
            "n_inner": 28, "layer_norm_epsilon": EPS, "activation_function": "gelu_new",
            "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
        },
        {
            "plain": {},
            "whole heads": {"rotary_dim": 8},
            "one pair": {"rotary_dim": 2},
            "one head": {"n_head": 1, "rotary_dim": 8},
            "a third of a head": {"n_head": 2},
            "narrow heads": {"n_head": 12, "rotary_dim": 2},
            "erf": {"activation_function": "gelu"},
            "relu": {"activation_function": "relu"},
            "one block": {"n_layer": 1},
            "five blocks": {"n_layer": 5},
            "wide": {"n_inner": 50},
            "tied": {"tie_word_embeddings": True},
            "by default": {"n_inner": ..., "layer_norm_epsilon": ..., "activation_function": ...},
        },
    ),
    "olmoe": Family(
        decoder(
            "olmoe", "OlmoeForCausalLM", hidden_size=32, head_dim=..., num_experts=4,
            num_experts_per_tok=2, intermediate_size=12,
        ),
        _WHOLE_HEADS | {
            "renormalized": {"norm_topk_prob": True},
            "all experts": {"num_experts_per_tok": 4},
            "one of three": {"num_experts": 3, "num_experts_per_tok": 1},
            "biases": {"attention_bias": True},
            "yarn": {"rope_scaling": YARN},
        },
    ),
    "starcoder2": Family(
        decoder(
            "starcoder2", "Starcoder2ForCausalLM", hidden_size=32, head_dim=..., rms_norm_eps=...,
            norm_epsilon=EPS, num_hidden_layers=2, use_bias=True, tie_word_embeddings=True,
        ),
        _WHOLE_HEADS | {
            "untied": {"tie_word_embeddings": False},
            "no biases": {"use_bias": False},
            "window": {"sliding_window": 5},
            "erf": {"hidden_act": "gelu"},
            "by default": {
                "rope_theta": ..., "norm_epsilon": ..., "tie_word_embeddings": ..., "use_bias": ...,
            },
        },
    ),
}
