"""Makes models in files of every kind, and their reference numbers, with PyTorch and transformers.

What families have of their own is for `make_family_fixtures.py`.

    pip install -e '.[parity]'
    python tests/parity/make_fixtures.py

Writes under `fixtures/`, next to this file:

* `<case>/config.json`, `<case>/model*.safetensors`: a small random model as transformers saves it;
* `<case>/reference.npz`: `tokens` int32 [B, T], `logits` float32 [B, T, V], `hidden` float32
  [L+1, B, T, D] (what enters the first block, then the residual stream after each block, before the
  final norm) and `versions`, the libraries that computed them;
* `gguf/<case>.gguf`: the same weights under llama.cpp's names and conventions;
* `gguf/smollm2-q8.gguf` with `gguf/smollm2-q8.npz`: a quantized model, which has no folder because
  its reference is computed from the dequantized weights;
* `README.md`, the table of the cases.

Every file is read back by transformers and must give the stored logits, and every detail that a
case is there for must move the logits when it is got wrong. Two runs on one machine write the same
bytes; another kind of CPU may differ in the last bits.
"""

# Torch is installed only where fixtures are made.
# pyright: reportMissingImports=false

import argparse
import copy
import dataclasses
import datetime
import importlib.metadata
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
)

FIXTURES = Path(__file__).parent / "fixtures"
TORCH = "2.13.0"
VOCAB, DEPTH, BATCH, LENGTH = 97, 3, 2, 24
# Large enough for a wrong detail to stand far above float32 rounding, small enough for the softmax
# not to saturate.
WEIGHT_STD = 0.2
# A file that says the same in another way may be computed in another order, hence not zero.
SAME_WITHIN = 1e-5
# What a wrong detail must at least change in the logits, which are of order 1.
WRONG_MOVES = 1e-3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One model.

    Attributes:
      name: of its folder.
      config: its shape, as transformers states it.
      exercises: what a loader or a forward pass gets right only if it got this case right.
      wrong: (setting, value) pairs, each of which must change the logits.
      published: None, or settings to add to a `config.json` in the style of the folders that are
        published: `rope_theta`, `rope_scaling` and `torch_dtype` where transformers 5 writes
        `rope_parameters` and `dtype`, and nothing that follows from other settings.
      dtype: of the stored weights; the reference is computed in float32 from what is stored.
      shard_size: largest file of the folder.
      gguf: also write `gguf/<name>.gguf`.
      seed: of weights and tokens.
    """

    name: str
    config: Any
    exercises: str
    wrong: tuple[tuple[str, Any], ...] = ()
    published: Mapping[str, Any] | None = None
    dtype: torch.dtype = torch.float32
    shard_size: str = "1GB"
    gguf: bool = False
    seed: int = 0


def sizes(*, width: int = 32, heads: int = 4, kv_heads: int, **extra: Any) -> dict[str, Any]:
    """The settings that the configurations of LLaMA, Mistral and Qwen2 have in common."""
    return {
        "vocab_size": VOCAB,
        "hidden_size": width,
        "intermediate_size": 64,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "max_position_embeddings": 64,
        # Not the usual 1e-5, which random weights of this size would not feel.
        "rms_norm_eps": 1e-3,
        "initializer_range": WEIGHT_STD,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **extra,
    }


def rope(theta: float, **scaling: Any) -> dict[str, Any]:
    """Rotary settings: plain, or scaled when `rope_type` and its factors are given."""
    return {"rope_type": "default", "rope_theta": theta, **scaling}


WRONG_EPS = ("rms_norm_eps", 1e-5)
LLAMA2 = LlamaConfig(**sizes(kv_heads=4, rope_parameters=rope(1e4), tie_word_embeddings=False))
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    # Of the wavelengths of base 5e5 and head size 16 the first (6.3) is below 16/2 and kept, the
    # second (32) lies between, the others are above 16/0.25: all three bands.
    "low_freq_factor": 0.25,
    "high_freq_factor": 2.0,
    "original_max_position_embeddings": 16,
}
SMOLLM2 = {"tie_word_embeddings": True, "rope_parameters": rope(1e5)}

CASES = (
    Case(
        name="llama2",
        config=LLAMA2,
        exercises="RoPE base 1e4, as many KV heads as heads, untied head",
        wrong=(WRONG_EPS, ("rope_parameters", rope(2e4)), ("hidden_act", "gelu")),
    ),
    Case(
        name="llama3",
        config=LlamaConfig(
            **sizes(kv_heads=2, head_dim=16, rope_parameters=rope(5e5, **LLAMA3_SCALING))
        ),
        exercises="Llama 3's frequency scaling in all three bands of wavelength, more tokens than "
        "the original context, two heads to a KV head, a head size that is not D/N; "
        "`rope_freqs.weight` and `attention.key_length` in the GGUF file",
        wrong=(
            WRONG_EPS,
            ("rope_parameters", rope(5e5)),
            ("rope_parameters", rope(5e5, **{**LLAMA3_SCALING, "low_freq_factor": 1.0})),
            ("rope_parameters", rope(5e5, **{**LLAMA3_SCALING, "high_freq_factor": 4.0})),
        ),
        published={},
        gguf=True,
        seed=1,
    ),
    Case(
        name="smollm2",
        config=LlamaConfig(**sizes(width=48, heads=6, kv_heads=2, **SMOLLM2)),
        exercises="three heads to a KV head, tied head, RoPE base 1e5; in the GGUF file "
        "interleaved pairs and no `attention.key_length`",
        wrong=(WRONG_EPS, ("rope_parameters", rope(1e4))),
        published={"rope_interleaved": False},
        gguf=True,
        seed=2,
    ),
    Case(
        name="tinyllama",
        config=LlamaConfig(**sizes(heads=8, kv_heads=2, rope_parameters=rope(1e4))),
        exercises="four heads to a KV head, untied head",
        wrong=(WRONG_EPS, ("rope_parameters", rope(2e4))),
        published={},
        seed=3,
    ),
    Case(
        name="mistral",
        config=MistralConfig(
            **sizes(kv_heads=2, head_dim=12, sliding_window=8, rope_parameters=rope(1e4))
        ),
        exercises="a sliding window (8) shorter than the sequence, a head size that is not D/N",
        wrong=(WRONG_EPS, *(("sliding_window", window) for window in (7, 9, None))),
        published={},
        seed=4,
    ),
    Case(
        name="qwen2",
        config=Qwen2Config(
            **sizes(kv_heads=2, tie_word_embeddings=True, rope_parameters=rope(1e6))
        ),
        exercises="biases on q, k and v and nowhere else, tied head, RoPE base 1e6, a sliding "
        "window that is stated and switched off; pairs in halves in the GGUF file",
        wrong=(WRONG_EPS, ("rope_parameters", rope(1e4))),
        published={"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1},
        gguf=True,
        seed=5,
    ),
    Case(
        name="gpt2",
        config=GPT2Config(
            vocab_size=VOCAB,
            n_positions=32,
            n_embd=32,
            n_layer=DEPTH,
            n_head=4,
            layer_norm_epsilon=1e-3,
            activation_function="gelu_new",
            initializer_range=WEIGHT_STD,
            bos_token_id=0,
            eos_token_id=0,
        ),
        exercises="LayerNorm, learned positions, tanh GELU, biases everywhere, tied head, fused "
        "q, k and v, Conv1D matrices (transposed in the GGUF file)",
        wrong=(("layer_norm_epsilon", 1e-5), ("activation_function", "gelu")),
        gguf=True,
        seed=6,
    ),
    Case(
        name="llama_bf16",
        config=LLAMA2,
        exercises="weights stored in bfloat16, computed in float32",
        dtype=torch.bfloat16,
        seed=7,
    ),
    Case(
        name="llama_sharded",
        config=LLAMA2,
        exercises="several files and `model.safetensors.index.json`; the model of `llama2`",
        shard_size="50KB",
    ),
)
# Wider than `smollm2`, so that every row is a whole number of quantization blocks.
QUANTIZED = Case(
    name="smollm2-q8",
    config=LlamaConfig(**sizes(width=96, heads=12, kv_heads=4, **SMOLLM2)),
    exercises="matrices in Q8_0, vectors in float32, three heads to a KV head, tied head; "
    "reference computed from the dequantized weights",
    published={"rope_interleaved": False},
    seed=8,
)


# Models and their outputs.


def random_model(case: Case) -> Any:
    """A model of the case's shape in float32 whose norms and biases are random as well."""
    model = AutoModelForCausalLM.from_config(
        case.config, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    generator = torch.Generator().manual_seed(case.seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * WEIGHT_STD
            is_norm_scale = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + noise if is_norm_scale else noise)
    return model


def random_tokens(case: Case) -> np.ndarray:
    """Token ids, int32 [B, T]."""
    return np.random.default_rng(case.seed).integers(VOCAB, size=(BATCH, LENGTH), dtype=np.int32)


def blocks(model: Any) -> Any:
    """The transformer blocks, in order."""
    decoder = model.base_model
    return decoder.h if hasattr(decoder, "h") else decoder.layers


@torch.no_grad()
def run(model: Any, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits [B, T, V] and the residual stream [L+1, B, T, D].

    Hooks on the blocks, because the last entry of transformers' `output_hidden_states` has been
    through the final norm.
    """
    stream: list[torch.Tensor] = []
    first = blocks(model)[0]
    handles = [first.register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0]))]
    for block in blocks(model):
        handles.append(block.register_forward_hook(lambda *call: stream.append(call[-1])))
    logits = model(torch.from_numpy(tokens).long(), use_cache=False).logits
    for handle in handles:
        handle.remove()
    hidden = torch.stack(stream)
    if hidden.shape != (DEPTH + 1, *tokens.shape, model.config.hidden_size):
        raise AssertionError(f"the hooks saw arrays of shape {tuple(hidden.shape)}")
    final_norm = getattr(model.base_model, "ln_f", None) or model.base_model.norm
    if not torch.equal(model.lm_head(final_norm(hidden[-1])), logits):
        raise AssertionError("the last residual stream does not lead to the logits")
    return logits.numpy(), hidden.numpy()


def check_same(what: str, logits: np.ndarray, reference: np.ndarray) -> None:
    """Raises unless another way to the same numbers gives the reference."""
    difference = float(np.abs(logits - reference).max())
    print(f"{what}: logits within {difference:.1e}")
    if not difference <= SAME_WITHIN:
        raise AssertionError(f"{what}: logits differ by {difference:g}")


def check_rounding(case: Case, folder: Path, tokens: np.ndarray, reference: np.ndarray) -> None:
    """Raises unless float64 gives the same: the tolerance that tests can ask for."""
    logits, _ = run(read_folder(folder, torch.float64), tokens)
    check_same(f"{case.name} in float64", logits, reference)


def check_wrong_details(case: Case, model: Any, tokens: np.ndarray, reference: np.ndarray) -> None:
    """Raises unless each of the case's wrong settings moves the logits."""
    for setting, value in case.wrong:
        config = copy.deepcopy(case.config)
        setattr(config, setting, value)
        wrong = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
        wrong.load_state_dict(model.state_dict())
        difference = float(np.abs(run(wrong, tokens)[0] - reference).max())
        print(f"{case.name}: {setting}={value} moves the logits by {difference:.1e}")
        if difference < WRONG_MOVES:
            raise AssertionError(f"{case.name} does not notice {setting}={value}")


# Folders.


def published_config(config: dict[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """A `config.json` of transformers 5 in the words of the folders published before it."""
    config = dict(config)
    scaling = dict(config.pop("rope_parameters"))
    config["rope_theta"] = scaling.pop("rope_theta")
    config["rope_scaling"] = None if scaling == {"rope_type": "default"} else scaling
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    if config.get("head_dim") == config["hidden_size"] // config["num_attention_heads"]:
        del config["head_dim"]
    return config | dict(extra)


def write_folder(case: Case, folder: Path, model: Any) -> None:
    """Saves the model as a Hugging Face folder."""
    stored = copy.deepcopy(model).to(case.dtype)
    stored.save_pretrained(folder, max_shard_size=case.shard_size)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config.pop("_name_or_path", None)
    if case.published is not None:
        config = published_config(config, case.published)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def read_folder(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """The folder's model."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager"
    ).eval()


# GGUF files, as llama.cpp's converter writes them.


def interleave_pairs(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a q or k matrix [heads * H, D] from pairs (i, i + H/2) to pairs (2i, 2i + 1)."""
    halves = weight.reshape(heads, 2, -1, weight.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(weight.shape)


def rope_factors(config: Mapping[str, Any]) -> np.ndarray:
    """What each rotary frequency is divided by under Llama 3's scaling: float32 [H/2]."""
    scaling, head_dim = config["rope_scaling"], config["head_dim"]
    wavelength = 2 * np.pi * config["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    low, high, factor = (scaling[f"{k}factor"] for k in ("low_freq_", "high_freq_", ""))
    # 0 at the longest wavelength of the band between, 1 at the shortest.
    turns = scaling["original_max_position_embeddings"] / wavelength
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - kept) / factor + kept)).astype(np.float32)


def add_metadata(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Writes the shape of the model."""
    if config["model_type"] == "gpt2":
        writer.add_context_length(config["n_positions"])
        writer.add_embedding_length(config["n_embd"])
        writer.add_feed_forward_length(4 * config["n_embd"])
        writer.add_block_count(config["n_layer"])
        writer.add_head_count(config["n_head"])
        writer.add_layer_norm_eps(config["layer_norm_epsilon"])
        return
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    if config["model_type"] == "llama":
        default = config["hidden_size"] // config["num_attention_heads"]
        writer.add_vocab_size(config["vocab_size"])
        writer.add_rope_dimension_count(config.get("head_dim", default))


TOKENIZER_PRE = {"llama": "smollm", "qwen2": "qwen2", "gpt2": "gpt-2"}
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (
    "Ġ t", "h e", "Ġt he", "i n", "e r", "a n", "Ġ a", "r e", "o n", "Ġ s", "n d", "Ġ w", "a t",
    "e s", "o r", "Ġa nd", "e n", "i s", "i t",
)  # fmt: skip


def add_tokenizer(writer: gguf.GGUFWriter, config: Mapping[str, Any]) -> None:
    """Writes a small byte-level BPE of VOCAB tokens: letters, digits, a few marks and merges."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    characters = "ĠĊ" + letters + letters.upper() + "0123456789" + ".,;:!?'-\"()"
    tokens = [*SPECIAL_TOKENS, *characters, *(merge.replace(" ", "") for merge in MERGES)]
    if len(set(tokens)) != VOCAB:
        raise AssertionError(f"the vocabulary has {len(set(tokens))} tokens, not {VOCAB}")
    kinds = [gguf.TokenType.CONTROL] * len(SPECIAL_TOKENS)
    kinds += [gguf.TokenType.NORMAL] * (VOCAB - len(SPECIAL_TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(TOKENIZER_PRE[config["model_type"]])
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(False)


def gguf_from_folder(folder: Path, path: Path, *, quantize: bool = False) -> None:
    """Writes a one-file float32 Hugging Face folder as a GGUF file.

    Args:
      folder: a LLaMA, Qwen2 or GPT-2 model; LLaMA and Qwen2 with a published-style `config.json`.
      path: the file to write.
      quantize: store every matrix in Q8_0.
    """
    config = json.loads((folder / "config.json").read_text())
    arch = config["model_type"]
    names = gguf.get_tensor_name_map(
        {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[arch], DEPTH
    )
    writer = gguf.GGUFWriter(path, arch)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(path.stem)
    kind = gguf.LlamaFileType.MOSTLY_Q8_0 if quantize else gguf.LlamaFileType.ALL_F32
    writer.add_file_type(kind)
    add_metadata(writer, config)
    add_tokenizer(writer, config)
    for name, weight in sorted(load_file(folder / "model.safetensors").items()):
        if arch == "llama" and "q_proj" in name:
            weight = interleave_pairs(weight, config["num_attention_heads"])
        elif arch == "llama" and "k_proj" in name:
            weight = interleave_pairs(weight, config["num_key_value_heads"])
        elif arch == "gpt2" and name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            weight = np.ascontiguousarray(weight.T)
        gguf_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if gguf_name is None:
            raise AssertionError(f"llama.cpp has no name for {name}")
        if quantize and weight.ndim == 2:
            q8 = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(gguf_name, gguf.quantize(weight, q8), raw_dtype=q8)
        else:
            writer.add_tensor(gguf_name, weight)
    if config.get("rope_scaling"):
        writer.add_tensor("rope_freqs.weight", rope_factors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, case: Case) -> Any:
    """The file's model in float32, as transformers reads it.

    Two things that it does not read are taken from the case: GPT-2's number of positions, and Llama
    3's scaling, whose factors in the file are therefore compared here.
    """
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    if config.model_type == "gpt2":
        config.n_positions = case.config.n_positions
    elif case.config.rope_parameters["rope_type"] != "default":
        config.rope_parameters = case.config.rope_parameters
    model = AutoModelForCausalLM.from_pretrained(
        path.parent,
        gguf_file=path.name,
        config=config,
        dtype=torch.float32,
        attn_implementation="eager",
    ).eval()
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.name == "rope_freqs.weight":
            head_dim, base = config.head_dim, config.rope_parameters["rope_theta"]
            frequency = base ** -(np.arange(0, head_dim, 2) / head_dim) / tensor.data
            expected = model.base_model.rotary_emb.inv_freq.numpy()
            np.testing.assert_allclose(frequency, expected, rtol=1e-6)
    return model


# The fixtures.


def save_reference(path: Path, tokens: np.ndarray, logits: np.ndarray, hidden: np.ndarray) -> None:
    """Writes `tokens`, `logits`, `hidden` and `versions`."""
    np.savez_compressed(
        path, tokens=tokens, logits=logits, hidden=hidden, versions=np.array(versions())
    )


def versions() -> str:
    """The libraries that compute the reference."""
    return f"torch {torch.__version__}, transformers {transformers.__version__}"


def make_case(case: Case, out: Path) -> None:
    """Writes one folder, its reference and its GGUF file, and checks all three."""
    folder = out / case.name
    write_folder(case, folder, random_model(case))
    if case.shard_size != "1GB" and len(list(folder.glob("model-*.safetensors"))) < 3:
        raise AssertionError(f"{case.name} has fewer than three shards")
    tokens = random_tokens(case)
    # bfloat16 rounds the weights, so the reference comes from the folder, not from what was saved.
    model = read_folder(folder)
    logits, hidden = run(model, tokens)
    save_reference(folder / "reference.npz", tokens, logits, hidden)
    if case.dtype == torch.float32:
        check_same(case.name, logits, run(random_model(case), tokens)[0])
    check_rounding(case, folder, tokens, logits)
    check_wrong_details(case, model, tokens, logits)
    if case.gguf:
        path = out / "gguf" / f"{case.name}.gguf"
        gguf_from_folder(folder, path)
        check_same(path.name, run(read_gguf(path, case), tokens)[0], logits)


def make_quantized(case: Case, out: Path) -> None:
    """Writes the quantized GGUF file and the reference of its dequantized weights."""
    tokens = random_tokens(case)
    original = random_model(case)
    path = out / "gguf" / f"{case.name}.gguf"
    with tempfile.TemporaryDirectory() as folder:
        write_folder(case, Path(folder), original)
        gguf_from_folder(Path(folder), path, quantize=True)
    model = read_gguf(path, case)
    logits, hidden = run(model, tokens)
    save_reference(path.with_suffix(".npz"), tokens, logits, hidden)
    for (name, read), written in zip(model.named_parameters(), original.parameters(), strict=True):
        # Half a step of a block of Q8_0, whose 255 steps span twice its largest magnitude.
        largest = float(written.detach().abs().max())
        limit = 1.01 * largest / 254 if written.ndim == 2 else 0.0
        difference = float((read - written).detach().abs().max())
        if difference > limit:
            raise AssertionError(f"{path.name}: {name} is off by {difference:g}")


README = """\
# Reference numbers

Made by

    pip install -e '.[parity]'
    python tests/parity/make_fixtures.py

with {versions}, gguf {gguf} and NumPy {numpy},
in float32 on the CPU, on {date}. Random models of {vocab} tokens and {depth} blocks; the script's
docstring says what each file holds. The tests only read them. The `logits` are within {same:g} of
the same in float64; a wrong setting moves them by {wrong:g} or more.

| case | what it exercises | config.json in the words of | GGUF |
|---|---|---|---|
{rows}
"""


def write_readme(out: Path, date: str) -> None:
    """Writes the table of the cases."""
    rows = []
    for case in CASES:
        style = "transformers 5" if case.published is None else "published folders"
        file = f"`gguf/{case.name}.gguf`" if case.gguf else ""
        rows.append(f"| `{case.name}` | {case.exercises} | {style} | {file} |")
    rows.append(f"| | {QUANTIZED.exercises} | | `gguf/{QUANTIZED.name}.gguf` |")
    text = README.format(
        versions=versions(),
        gguf=importlib.metadata.version("gguf"),
        numpy=np.__version__,
        date=date,
        vocab=VOCAB,
        depth=DEPTH,
        same=SAME_WITHIN,
        wrong=WRONG_MOVES,
        rows="\n".join(rows),
    )
    (out / "README.md").write_text(text)


def main() -> None:
    """Makes every fixture anew."""
    parser = argparse.ArgumentParser(description="Makes every fixture anew.")
    parser.add_argument("--out", type=Path, default=FIXTURES, help="default: next to this file")
    parser.add_argument("--date", default=datetime.date.today().isoformat(), help="for README.md")
    args = parser.parse_args()
    if torch.__version__.split("+")[0] != TORCH:
        raise SystemExit(f"torch is {torch.__version__}; the reference is made with {TORCH}")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    if args.out.exists():
        shutil.rmtree(args.out)
    (args.out / "gguf").mkdir(parents=True)
    for case in CASES:
        make_case(case, args.out)
    make_quantized(QUANTIZED, args.out)
    write_readme(args.out, args.date)


if __name__ == "__main__":
    main()
