"""`config.json`: what is honoured, and what is refused because it would change the numbers."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from weight_files import CONFIG, GPT2_CONFIG, hf_arrays, write_folder

from jax_massact.errors import WeightsError
from jax_massact.families.config_files import read_config
from jax_massact.loading import open_checkpoint
from jax_massact.nn.block_config import AttentionConfig, BlockConfig, MLPConfig, NormConfig
from jax_massact.nn.config import EmbedConfig, ModelConfig
from jax_massact.nn.positions import llama3_factors

MISTRAL = CONFIG | {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
QWEN2 = CONFIG | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 2.0, 3.0, 4.0],
    "long_factor": [1.0, 2.0, 3.0, 4.0],
    "attention_factor": 1.0,
}


def read(tmp_path, config):
    path = tmp_path / "config.json"
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return read_config(path)[1]


REFUSED = {
    "architecture": (CONFIG | {"architectures": ["MambaForCausalLM"]}, ["architectures", "Mamba"]),
    "architectures": (CONFIG | {"architectures": "llama"}, ["architectures is 'llama'"]),
    "linear attention": (
        {"model_type": "qwen3_next"}, ["model_type is 'qwen3_next'", "missing: layers of Gated"]
    ),
    "latent attention": (
        {"model_type": "deepseek_v3", "architectures": ["DeepseekV3ForCausalLM"]},
        ["model_type is 'deepseek_v3'", "missing: multi-head latent attention"],
    ),
    "gemma4": ({"model_type": "gemma4"}, ["missing: embeddings for each layer"]),
    "opt-350m": (
        {"model_type": "opt", "do_layer_norm_before": False},
        ["do_layer_norm_before is False", "OPT-350M"],
    ),
    "opt-350m, width": (
        {"model_type": "opt", "word_embed_proj_dim": 512},
        ["word_embed_proj_dim is 512", "OPT-350M"],
    ),
    "sparse layers": (
        {"model_type": "qwen3_moe", "mlp_only_layers": [0]}, ["mlp_only_layers is [0]"]
    ),
    "layer types of gemma": (
        {"model_type": "gemma2", "layer_types": ["full_attention"]}, ["26 times 'full_attention'"]
    ),
    "no architecture": ({"hidden_size": 8}, ["model_type is missing"]),
    "contradiction": (CONFIG | {"model_type": "qwen2"}, ["model_type is 'qwen2'", "'llama'"]),
    "quantized": (CONFIG | {"quantization_config": {"bits": 4}}, ["quantization_config"]),
    "activation": (CONFIG | {"hidden_act": "tanh"}, ["hidden_act is 'tanh'", "'silu'"]),
    "no size": ({**CONFIG, "hidden_size": None}, ["hidden_size is missing"]),
    "text": (CONFIG | {"hidden_size": "32"}, ["hidden_size is '32'", "a whole number"]),
    "float": (CONFIG | {"num_hidden_layers": 2.0}, ["num_hidden_layers is 2.0"]),
    "negative": (CONFIG | {"vocab_size": -1}, ["vocab_size is -1"]),
    "deep": (CONFIG | {"num_hidden_layers": 10**9}, ["num_hidden_layers is 1000000000"]),
    "wild": (CONFIG | {"vocab_size": 10**30}, ["vocab_size is 1000000"]),
    "epsilon": (CONFIG | {"rms_norm_eps": 0}, ["rms_norm_eps is 0"]),
    "infinite": (CONFIG | {"rope_theta": float("inf")}, ["rope_theta is inf"]),
    "heads": (CONFIG | {"num_key_value_heads": 3}, ["kv_heads is 3", "a divisor of"]),
    "odd head": (CONFIG | {"head_dim": 7}, ["head_dim is 7", "an even number"]),
    "flag": (CONFIG | {"tie_word_embeddings": 1}, ["tie_word_embeddings is 1", "True or False"]),
    "of relatives": (
        CONFIG | {"attn_logit_softcapping": 50.0, "residual_multiplier": 1.0},
        ["attn_logit_softcapping is 50.0", "nothing in a llama model"],
    ),
    "multiplied": (CONFIG | {"logit_scale": 0.25}, ["logit_scale is 0.25", "1 in a llama model"]),
    "experts": (MISTRAL | {"num_local_experts": 8}, ["num_local_experts is 8", "0 in a mistral"]),
    "pairs": (CONFIG | {"rope_interleaved": True}, ["rope_interleaved is True"]),
    "partial": (CONFIG | {"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5"]),
    "new partial": (
        CONFIG | {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
        ["rope_parameters.partial_rotary_factor is 0.5"],
    ),
    "per layer": (
        CONFIG | {"rope_parameters": {"full_attention": {"rope_type": "default"}}},
        ["rope_parameters.rope_type", "one kind for all layers"],
    ),
    "no kind": (
        CONFIG | {"rope_scaling": {"type": None, "factor": 2}},
        ["rope_scaling.factor is 2", "nothing with rope_type 'default'"],
    ),
    "unknown kind": (
        CONFIG | {"rope_scaling": {"type": "mrope", "factor": 2.0}},
        ["rope_scaling.type is 'mrope'", "'default' or 'linear'", "'yarn'"],
    ),
    "unknown setting": (
        CONFIG | {"rope_scaling": LLAMA3 | {"mscale": 1.0}},
        ["rope_scaling.mscale is 1.0", "nothing with rope_type 'llama3'"],
    ),
    "scaling": (CONFIG | {"rope_scaling": 4}, ["rope_scaling is 4", "an object"]),
    "llama3": (
        CONFIG | {"rope_scaling": LLAMA3 | {"high_freq_factor": 0.5}}, ["high frequency factor"]
    ),
    "no factor": (
        CONFIG | {"rope_scaling": {"rope_type": "linear"}}, ["rope_scaling.factor is missing"]
    ),
    "layer types": (
        MISTRAL | {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        ["layer_types is ['sliding_attention', 'full_attention']"],
    ),
    "windowless": (
        QWEN2 | {"layer_types": ["sliding_attention"] * 2},
        ["layer_types", "2 times 'full_attention'"],
    ),
    "gpt2 cross": (GPT2_CONFIG | {"add_cross_attention": True}, ["add_cross_attention is True"]),
    "gpt2 heads": (GPT2_CONFIG | {"n_head": 5}, ["n_head is 5", "a divisor of n_embd"]),
    "gpt2 tanh": (GPT2_CONFIG | {"activation_function": "tanh"}, ["activation_function is 'tanh'"]),
    "not JSON": ("{'a': 1}", ["is not JSON"]),
    "a list": ("[]", ["'[]'", "a JSON object"]),
    "twice": ('{"a": 1, "a": 2}', ["has 'a' twice"]),
    "nested": ("[" * 100_000, ["is not JSON"]),
    "empty": ("", ["is not JSON"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(tmp_path, name):
    config, said = REFUSED[name]
    with pytest.raises(WeightsError) as caught:
        read(tmp_path, config)
    for words in (str(tmp_path / "config.json"), *said):
        assert words in str(caught.value)


def test_plain(tmp_path):
    config = read(tmp_path, CONFIG | {"torch_dtype": "float16", "use_cache": True})
    assert config == ModelConfig(
        depth=2, width=32, context_length=64, embed=EmbedConfig(vocab_size=40),
        block=BlockConfig(
            attention=AttentionConfig(heads=4, kv_heads=2, head_dim=8),
            mlp=MLPConfig(hidden=64),
            norm=NormConfig(eps=1e-5),
        ),
    )


def test_defaults_are_those_of_transformers(tmp_path):
    left_out = ("num_key_value_heads", "rope_theta", "hidden_act", "tie_word_embeddings")
    config = read(tmp_path, {k: v for k, v in CONFIG.items() if k not in left_out})
    assert config.block.attention.kv_heads == 4 and not config.head.tied
    assert config.block.attention.rope.base == 10_000
    gpt2 = read(tmp_path, GPT2_CONFIG)
    assert gpt2.head.tied and gpt2.embed.positions == "learned"
    assert gpt2.block.mlp == MLPConfig(hidden=128, activation="gelu_tanh", gated=False, bias=True)
    assert gpt2.block.norm == gpt2.final_norm == NormConfig(kind="layer", bias=True)
    assert read(tmp_path, MISTRAL).block.attention.window == 4096
    assert read(tmp_path, MISTRAL | {"sliding_window": None}).block.attention.window is None


def test_rotary_settings_old_and_new(tmp_path):
    rope = lambda config: read(tmp_path, config).block.attention.rope
    old = rope(CONFIG | {"rope_theta": 5e5, "rope_scaling": LLAMA3})
    new = rope(CONFIG | {"rope_parameters": LLAMA3 | {"rope_theta": 5e5}})
    assert old == new and old.base == 5e5
    limits = {"factor": 8.0, "low": 1.0, "high": 4.0, "context": 16}
    assert new.factors == llama3_factors(new, 8, **limits) != (8.0,) * 4
    linear = rope(CONFIG | {"rope_scaling": {"type": "linear", "factor": 2.0}})
    assert linear.factors == (2.0,) * 4
    assert rope(CONFIG | {"rope_scaling": LONGROPE}).factors == (1.0, 2.0, 3.0, 4.0)
    two = LONGROPE | {"long_factor": [2.0] * 4, "original_max_position_embeddings": 16}
    found = rope(CONFIG | {"rope_scaling": two})
    assert (found.at(16).factors, found.at(17).factors) == ((1.0, 2.0, 3.0, 4.0), (2.0,) * 4)


def test_windows(tmp_path):
    def windows(config):
        return [kind.attention.window for kind in read(tmp_path, config).pattern]

    on = QWEN2 | {"use_sliding_window": True, "sliding_window": 8}
    assert windows(MISTRAL | {"sliding_window": 8}) == [8]
    assert windows(on | {"max_window_layers": 0}) == [8]
    assert windows(on | {"max_window_layers": 1}) == [None, 8]
    assert windows(on | {"max_window_layers": 2}) == [None]
    assert windows(on | {"use_sliding_window": False}) == [None]
    sliding, full = "sliding_attention", "full_attention"
    assert windows(on | {"layer_types": [sliding] * 2}) == [8]
    assert windows(on | {"layer_types": [sliding, full]}) == [8, None]
    assert windows(MISTRAL | {"sliding_window": 8, "layer_types": [sliding] * 2}) == [8]


def test_biases_are_honoured(tmp_path):
    config = CONFIG | {"attention_bias": True, "mlp_bias": True}
    arrays = hf_arrays(config)
    model = open_checkpoint(write_folder(tmp_path, config, arrays)).load_model()
    block = "model.layers.1."
    mlp, attn = model.blocks.mlp, model.blocks.attn
    for ours, theirs in (
        (mlp.gate_bias, "mlp.gate_proj.bias"),
        (mlp.up_bias, "mlp.up_proj.bias"),
        (mlp.down_bias, "mlp.down_proj.bias"),
        (attn.out_bias, "self_attn.o_proj.bias"),
    ):
        np.testing.assert_array_equal(ours[1], arrays[block + theirs])
    np.testing.assert_array_equal(
        attn.k_bias[1], arrays[f"{block}self_attn.k_proj.bias"].reshape(2, 8)
    )
    run = jax.jit(lambda model: model(jnp.arange(6)[None])[0])
    logits = run(model)
    mlp.gate_bias[...] = mlp.gate_bias[...] + 1.0
    assert not np.allclose(run(model), logits)
