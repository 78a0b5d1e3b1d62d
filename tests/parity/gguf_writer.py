"""GGUF files of the small models, written with the `gguf` package as llama.cpp's converter does.

What the converter changes in tensors and states in metadata is one row an architecture.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np
from parity.family_cases import FAMILIES

Arrays = Mapping[str, np.ndarray]
Config = Mapping[str, Any]


class Conversion(NamedTuple):
    """What llama.cpp makes of a family.

    Attributes:
      arch: `general.architecture`.
      metadata: writes what is stated beside the sizes.
      tensors: the tensors under Hugging Face's names, as the file has them.
    """

    arch: str
    metadata: Callable[[gguf.GGUFWriter, Config], None]
    tensors: Callable[[Config, Arrays], Arrays] = lambda config, arrays: arrays


def neighbours(x: np.ndarray, heads: int) -> np.ndarray:
    """Rows in which the two coordinates of a rotary pair lie side by side: the converter's
    `permute`."""
    return x.reshape(heads, 2, -1, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)


def decoder(writer: gguf.GGUFWriter, c: Config) -> None:
    """Sizes in the words of LLaMA, and what all models with RMSNorm state."""
    writer.add_context_length(c["max_position_embeddings"])
    writer.add_embedding_length(c["hidden_size"])
    writer.add_feed_forward_length(c["intermediate_size"])
    writer.add_block_count(c["num_hidden_layers"])
    writer.add_head_count(c["num_attention_heads"])
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_freq_base(c.get("rope_theta", 10_000.0))
    writer.add_layer_norm_rms_eps(c.get("rms_norm_eps", 1e-6))
    writer.add_key_length(c["head_dim"])
    writer.add_value_length(c["head_dim"])


def scaled(writer: gguf.GGUFWriter, c: Config) -> None:
    """As `decoder`, with the scaling of rotary positions."""
    decoder(writer, c)
    scaling = c.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(scaling["factor"])
        writer.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def windowed(writer: gguf.GGUFWriter, c: Config) -> None:
    """As `scaled`, with a window and softcaps."""
    scaled(writer, c)
    writer.add_sliding_window(c["sliding_window"])
    if c.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(c["attn_logit_softcapping"])
    if c.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(c["final_logit_softcapping"])


def plus_one(config: Config, arrays: Arrays) -> Arrays:
    """The scales of all norms with the 1 that Gemma adds."""
    del config
    return {name: x + 1 if name.endswith("norm.weight") else x for name, x in arrays.items()}


def layer_norm(writer: gguf.GGUFWriter, c: Config) -> None:
    """Sizes of models with LayerNorm, whatever they are called."""
    first = lambda *names: next(c[name] for name in names if name in c)
    width, heads = first("hidden_size", "d_model", "n_embed"), _heads(c)
    writer.add_context_length(first("max_position_embeddings", "seq_length", "max_seq_len"))
    writer.add_embedding_length(width)
    hidden = c.get("intermediate_size", c.get("ffn_hidden_size", 4 * width))
    writer.add_feed_forward_length(hidden)
    writer.add_block_count(first("num_hidden_layers", "n_layer", "n_layers"))
    writer.add_head_count(heads)
    writer.add_layer_norm_eps(c.get("layer_norm_eps", c.get("layer_norm_epsilon", 1e-5)))


def _heads(c: Config) -> int:
    return next(c[n] for n in ("num_attention_heads", "n_head", "n_heads") if n in c)


def neox(writer: gguf.GGUFWriter, c: Config) -> None:
    layer_norm(writer, c)
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    writer.add_rope_dimension_count(int(c.get("rotary_pct", 0.25) * head_dim))
    writer.add_parallel_residual(c.get("use_parallel_residual", True))


def phi(writer: gguf.GGUFWriter, c: Config) -> None:
    layer_norm(writer, c)
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_freq_base(c["rope_theta"])
    writer.add_rope_dimension_count(int(c["partial_rotary_factor"] * head_dim))


def phi3(writer: gguf.GGUFWriter, c: Config) -> None:
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    decoder(writer, {**c, "head_dim": head_dim})
    dims = int(c.get("partial_rotary_factor", 1.0) * head_dim)
    writer.add_rope_dimension_count(dims)
    writer.add_sliding_window(c["sliding_window"] or 0)
    original = c.get("original_max_position_embeddings", c["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(original)
    scaling = c.get("rope_scaling")
    if not scaling:
        return
    factor = c["max_position_embeddings"] / original
    writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(factor) / math.log(original)))
    for kind in ("long", "short"):
        factors = np.asarray(scaling[f"{kind}_factor"], np.float32)
        writer.add_tensor(f"rope_factors_{kind}.weight", factors)


def falcon(writer: gguf.GGUFWriter, c: Config) -> None:
    layer_norm(writer, c)
    writer.add_head_count_kv(_groups(c))
    writer.add_tensor_data_layout("jploski")
    if c["rope_theta"] != 10_000.0:
        writer.add_rope_freq_base(c["rope_theta"])


def _groups(c: Config) -> int:
    """The key/value heads of a Falcon."""
    return c.get("num_kv_heads", 1) if c["new_decoder_architecture"] or c["multi_query"] else (
        c["num_attention_heads"]
    )


def mpt(writer: gguf.GGUFWriter, c: Config) -> None:
    layer_norm(writer, c)
    attention = c.get("attn_config", {})
    if attention.get("clip_qkv"):
        writer.add_clamp_kqv(attention["clip_qkv"])
    writer.add_max_alibi_bias(attention.get("alibi_bias_max", 8))


def by_kind(groups: Callable[[Config], int]) -> Callable[[Config, Arrays], Arrays]:
    """Puts all queries before all keys before all values, where heads had them side by side."""

    def convert(c: Config, arrays: Arrays) -> Arrays:
        heads, found = _heads(c), {}
        for name, x in arrays.items():
            if "query_key_value" in name:
                count = groups(c)
                rows = x.reshape(count, heads // count + 2, -1, *x.shape[1:])
                parts = rows[:, :-2], rows[:, -2], rows[:, -1]
                x = np.concatenate([part.reshape(-1, *x.shape[1:]) for part in parts])
            found[name.removeprefix("transformer.") if "n_layer" in c else name] = x
        return found

    return convert


def of_whole_heads(writer: gguf.GGUFWriter, c: Config) -> None:
    scaled(writer, {**c, "head_dim": c["hidden_size"] // c["num_attention_heads"]})


def olmo(writer: gguf.GGUFWriter, c: Config) -> None:
    of_whole_heads(writer, c)
    writer.add_layer_norm_eps(1e-5)
    if c.get("clip_qkv"):
        writer.add_clamp_kqv(c["clip_qkv"])


def experts(writer: gguf.GGUFWriter, c: Config) -> None:
    scaled(writer, c)
    writer.add_expert_count(c.get("num_experts", c.get("num_local_experts")))
    writer.add_expert_used_count(c["num_experts_per_tok"])
    if "moe_intermediate_size" in c:
        writer.add_expert_feed_forward_length(c["moe_intermediate_size"])


def qwen2_moe(writer: gguf.GGUFWriter, c: Config) -> None:
    experts(writer, {**c, "head_dim": c["hidden_size"] // c["num_attention_heads"]})
    writer.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])


def factors(writer: gguf.GGUFWriter, c: Config) -> None:
    of_whole_heads(writer, c)
    for name, add in (
        ("attention_multiplier", writer.add_attention_scale),
        ("embedding_multiplier", writer.add_embedding_scale),
        ("residual_multiplier", writer.add_residual_scale),
        ("logits_scaling", writer.add_logit_scale),
    ):
        if name in c:
            add(c[name])


def stablelm(writer: gguf.GGUFWriter, c: Config) -> None:
    layer_norm(writer, c)
    head_dim = c["hidden_size"] // c["num_attention_heads"]
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_freq_base(c.get("rope_theta", 10_000.0))
    writer.add_rope_dimension_count(int(c.get("partial_rotary_factor", 0.25) * head_dim))
    writer.add_parallel_residual(c.get("use_parallel_residual", True))


def cohere(writer: gguf.GGUFWriter, c: Config) -> None:
    layer_norm(writer, c)
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_freq_base(c.get("rope_theta", 500_000.0))
    writer.add_logit_scale(c.get("logit_scale", 0.0625))
    writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)
    if "sliding_window" in c:
        writer.add_sliding_window(c["sliding_window"])
        writer.add_vocab_size(c["vocab_size"])
        writer.add_rope_dimension_count(c["hidden_size"] // c["num_attention_heads"])


def glm4(writer: gguf.GGUFWriter, c: Config) -> None:
    scaled(writer, {"rms_norm_eps": 0.00000015625, **c})
    writer.add_rope_dimension_count(int(c.get("partial_rotary_factor", 0.5) * c["head_dim"]))


def olmo3(writer: gguf.GGUFWriter, c: Config) -> None:
    of_whole_heads(writer, c)
    writer.add_sliding_window(c["sliding_window"])
    usual = ["full_attention" if n % 4 == 3 else "" for n in range(c["num_hidden_layers"])]
    types = c.get("layer_types", usual)
    writer.add_sliding_window_pattern([kind != "full_attention" for kind in types])


def starcoder2(writer: gguf.GGUFWriter, c: Config) -> None:
    layer_norm(writer, {**c, "layer_norm_eps": c.get("norm_epsilon", 1e-5)})
    writer.add_head_count_kv(c["num_key_value_heads"])
    writer.add_rope_freq_base(c.get("rope_theta", 10_000.0))


def olmoe(writer: gguf.GGUFWriter, c: Config) -> None:
    experts(writer, {**c, "head_dim": c["hidden_size"] // c["num_attention_heads"]})


def gpt2(writer: gguf.GGUFWriter, c: Config) -> None:
    writer.add_context_length(c["n_positions"])
    writer.add_embedding_length(c["n_embd"])
    writer.add_feed_forward_length(4 * c["n_embd"])
    writer.add_block_count(c["n_layer"])
    writer.add_head_count(c["n_head"])
    writer.add_layer_norm_eps(c.get("layer_norm_epsilon", 1e-5))


def outputs_first(c: Config, arrays: Arrays) -> Arrays:
    """Matrices that GPT-2 has with inputs first."""
    del c
    turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return {name: x.T if name.endswith(turned) else x for name, x in arrays.items()}


def gpt_oss(writer: gguf.GGUFWriter, c: Config) -> None:
    experts(writer, c)
    writer.add_sliding_window(c["sliding_window"])
    writer.add_expert_feed_forward_length(c["intermediate_size"])


def one_by_one(c: Config, arrays: Arrays) -> Arrays:
    """Gate and up, which alternate, by themselves, and outputs first."""
    del c
    found = {}
    for name, x in arrays.items():
        start, is_both, rest = name.partition("gate_up_proj")
        kind = ".bias" if rest or name.endswith("down_proj_bias") else ".weight"
        if is_both:
            x = x if rest else x.swapaxes(1, 2)
            found |= {f"{start}gate_proj{kind}": x[:, ::2], f"{start}up_proj{kind}": x[:, 1::2]}
        elif "down_proj" in name:
            x = x if name.endswith("bias") else x.swapaxes(1, 2)
            found[name.removesuffix("_bias") + kind] = x
        else:
            found[f"{name}.weight" if "sinks" in name else name] = x
    return found


def stacked(c: Config, arrays: Arrays) -> Arrays:
    """The scales of the heads' own norms in one tensor."""
    found = {name: x for name, x in arrays.items() if ".norms." not in name}
    for name in arrays:
        start, is_first, rest = name.partition("norms.0.")
        if is_first:
            count = sum(other.startswith(f"{start}norms.") for other in arrays)
            found[start + rest] = np.stack([arrays[f"{start}norms.{n}.{rest}"]
                                            for n in range(count)])
    return found


def interleaved(c: Config, arrays: Arrays) -> Arrays:
    """Queries and keys with the coordinates of a pair side by side."""
    heads = {"q_proj": c["num_attention_heads"], "k_proj": c["num_key_value_heads"]}
    return {
        name: next((neighbours(x, n) for key, n in heads.items() if key in name), x)
        for name, x in arrays.items()
    }


def merged(c: Config, arrays: Arrays) -> Arrays:
    """The matrices of all experts of a block in one tensor."""
    count, found = c.get("num_experts", c.get("num_local_experts")), {}
    for name, x in arrays.items():
        start, is_one, rest = name.partition("experts.0.")
        if is_one:
            all_of = [arrays[f"{start}experts.{e}.{rest}"] for e in range(count)]
            found[f"{start}experts.{rest}"] = np.stack(all_of)
        elif ".experts." not in name:
            found[name] = x
    return found


CONVERSIONS = {
    "llama": Conversion("llama", scaled, interleaved),
    "qwen2": Conversion("qwen2", of_whole_heads),
    "gpt2": Conversion("gpt2", gpt2, outputs_first),
    "gpt_oss": Conversion("gpt-oss", gpt_oss, one_by_one),
    "smollm3": Conversion("smollm3", of_whole_heads, interleaved),
    "granite": Conversion("granite", factors, interleaved),
    "stablelm": Conversion("stablelm", stablelm, stacked),
    "cohere": Conversion("command-r", cohere),
    "cohere2": Conversion("cohere2", cohere),
    "glm4": Conversion("glm4", glm4),
    "olmo3": Conversion("olmo2", olmo3),
    "olmoe": Conversion("olmoe", olmoe, merged),
    "starcoder2": Conversion("starcoder2", starcoder2),
    "olmo": Conversion("olmo", olmo, interleaved),
    "olmo2": Conversion("olmo2", of_whole_heads),
    "mixtral": Conversion("llama", experts, lambda c, x: merged(c, interleaved(c, x))),
    "qwen3_moe": Conversion("qwen3moe", experts, merged),
    "qwen2_moe": Conversion("qwen2moe", qwen2_moe, merged),
    "gpt_neox": Conversion("gptneox", neox, by_kind(_heads)),
    "phi3": Conversion("phi3", phi3),
    "phi": Conversion("phi2", phi),
    "falcon": Conversion("falcon", falcon, by_kind(_groups)),
    "bloom": Conversion("bloom", layer_norm, by_kind(_heads)),
    "mpt": Conversion("mpt", mpt),
    "gemma": Conversion("gemma", scaled, plus_one),
    "gemma2": Conversion("gemma2", windowed, plus_one),
    "gemma3_text": Conversion("gemma3", windowed, plus_one),
    "qwen3": Conversion("qwen3", scaled),
}
# Scaled by another number than the size of their heads, which the metadata does not say.
_OTHER_SCALES = ("narrow heads", "wide heads", "three to a group")
# Models that the converter refuses, or whose metadata leave out what llama.cpp does not have.
UNSTATED = {
    "llama": (
        "linear beside the new group", "yarn beside the new group", "empty scaling", "yarn",
        "theta of the group that is used", "yarn, two scales", "yarn, as it is stated",
        "yarn, original context of the model", "yarn, one band", "llama3", "longrope",
        "by default",
    ),
    "qwen2": ("windows from a layer on", "windows in some layers"),
    "gpt2": ("erf", "relu", "wide", "scaled by layer", "not scaled", "scaled by layer alone"),
    "gpt_oss": ("kinds of layers", "truncated"),
    "smollm3": ("every second", "chosen", "windows", "biases", "by default"),
    "granite": ("biases", "llama3", "no factors"),
    "cohere": ("linear", "untied"),
    "cohere2": ("untied", "biases", "kinds of layers", "period of two"),
    "olmo3": ("groups",),
    "olmoe": ("renormalized", "biases"),
    "starcoder2": ("window", "erf"),
    "qwen2_moe": ("renormalized", "no biases"),
    "olmo": ("biases",),
    "olmo2": ("biases", "llama3"),
    "mixtral": ("by default", "window"),
    "qwen3_moe": ("biases", "not renormalized", "one of three"),
    "gpt_neox": ("another base", "tanh", "yarn of a part", "no biases"),
    "phi": ("erf", "linear", "yarn", "by default"),
    "falcon": (
        "biases", "one after the other", "tanh", "as many key heads",
        *(case for case in FAMILIES["falcon"].cases if case.startswith("RW")),
    ),
    "bloom": ("old names", "by default"),
    "mpt": ("scaled",),
    "gemma": ("biases", "untied"),
    "gemma2": ("own scale", "kinds of layers", "windows alone", "untied", *_OTHER_SCALES),
    "gemma3_text": (
        "own scale", "kinds of layers", "windows alone", "untied", "period of two", "groups",
        "local base", "a softcap that is not used", *_OTHER_SCALES,
    ),
    "qwen3": ("biases", "windows", "windows in every layer"),
}


def write(
    config: Config,
    arrays: Arrays,
    path: Path,
    quantized: Callable[[str, np.ndarray], Any] = lambda name, x: None,
) -> Path:
    """The GGUF file of a model.

    Args:
      quantized: the type of a tensor of this name; None: float32.
    """
    conversion = CONVERSIONS[config["model_type"]]
    writer = gguf.GGUFWriter(path, conversion.arch)
    conversion.metadata(writer, config)
    for name, array in _named(conversion, config, arrays):
        array, kind = np.ascontiguousarray(array, np.float32), quantized(name, array)
        array = array if kind is None else gguf.quantize(array, kind)
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _named(
    conversion: Conversion, config: Config, arrays: Arrays
) -> Iterator[tuple[str, np.ndarray]]:
    archs = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    depth = next(config[n] for n in ("num_hidden_layers", "n_layer", "n_layers") if n in config)
    names = gguf.get_tensor_name_map(archs[conversion.arch], depth)
    for name, array in conversion.tensors(config, arrays).items():
        found = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert found is not None, f"llama.cpp has no name for {name}"
        yield found, array
