"""Small model files for the tests, written byte by byte so that any of them can be made to lie."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGMLQuantizationType as Type

WIDTH, HEADS, KV_HEADS, HEAD, HIDDEN, DEPTH, VOCAB = 32, 4, 2, 8, 64, 2, 40

STRING, ARRAY, U32, I32, F32, BOOL, U64 = 8, 9, 4, 5, 6, 7, 10
_PACK = {U32: "<I", I32: "<i", F32: "<f", BOOL: "<?", U64: "<Q"}

# Name, NumPy shape and type of each tensor of a block.
BLOCK = {
    "attn_norm": ((WIDTH,), Type.F32),
    "attn_q": ((HEADS * HEAD, WIDTH), Type.Q4_1),
    "attn_k": ((KV_HEADS * HEAD, WIDTH), Type.Q8_0),
    "attn_v": ((KV_HEADS * HEAD, WIDTH), Type.BF16),
    "attn_output": ((WIDTH, HEADS * HEAD), Type.F16),
    "ffn_norm": ((WIDTH,), Type.F32),
    "ffn_gate": ((HIDDEN, WIDTH), Type.Q5_0),
    "ffn_up": ((HIDDEN, WIDTH), Type.Q4_0),
    "ffn_down": ((WIDTH, HIDDEN), Type.Q5_1),
}


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value(kind: int, content: Any) -> bytes:
    """The bytes of a metadata value, its type first."""
    if kind == STRING:
        return struct.pack("<I", kind) + string(content)
    return struct.pack("<I", kind) + struct.pack(_PACK[kind], content)


def strings(texts: Sequence[str]) -> bytes:
    return struct.pack("<IIQ", ARRAY, STRING, len(texts)) + b"".join(map(string, texts))


def metadata(**changes: bytes | None) -> dict[str, bytes]:
    """What describes the small LLaMA; a change of None leaves a key out, `__` stands for a dot."""
    pairs = {
        "general.architecture": value(STRING, "llama"),
        "general.name": value(STRING, "small"),
        "llama.context_length": value(U32, 64),
        "llama.embedding_length": value(U32, WIDTH),
        "llama.block_count": value(U32, DEPTH),
        "llama.feed_forward_length": value(U32, HIDDEN),
        "llama.attention.head_count": value(U32, HEADS),
        "llama.attention.head_count_kv": value(U32, KV_HEADS),
        "llama.attention.layer_norm_rms_epsilon": value(F32, 1e-5),
        "tokenizer.ggml.tokens": strings([f"token {i}" for i in range(VOCAB)]),
    }
    for name, content in changes.items():
        key = name.replace("__", ".")
        if content is None:
            del pairs[key]
        else:
            pairs[key] = content
    return pairs


def tensors(seed: int = 0) -> dict[str, tuple[tuple[int, ...], int, bytes]]:
    """(shape, type, bytes) of the small LLaMA's tensors."""
    shapes: dict[str, tuple[tuple[int, ...], Type]] = {}
    shapes["token_embd.weight"] = ((VOCAB, WIDTH), Type.Q8_0)
    for layer in range(DEPTH):
        shapes |= {f"blk.{layer}.{name}.weight": row for name, row in BLOCK.items()}
    shapes["output_norm.weight"] = ((WIDTH,), Type.F32)
    rng = np.random.default_rng(seed)
    return {
        name: (shape, kind, gguf.quantize(rng.normal(size=shape).astype("f4"), kind).tobytes())
        for name, (shape, kind) in shapes.items()
    }


def gguf_bytes(
    pairs: dict[str, bytes] | list[tuple[str, bytes]] | None = None,
    contents: dict[str, Any] | list[tuple[str, Any]] | None = None,
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int | None, int | None] = (None, None),
    offsets: Mapping[str, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file; `counts` (tensors, pairs) and `offsets` replace what is true."""
    pairs = metadata() if pairs is None else pairs
    pairs = pairs if isinstance(pairs, list) else list(pairs.items())
    items = tensors() if contents is None else contents
    items = items if isinstance(items, list) else list(items.items())
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(items) if counts[0] is None else counts[0],
        len(pairs) if counts[1] is None else counts[1],
    )
    head += b"".join(string(key) + content for key, content in pairs)
    data = b""
    for name, (shape, kind, raw) in items:
        offset = (offsets or {}).get(name, len(data))
        head += string(name) + struct.pack("<I", len(shape))
        head += b"".join(struct.pack("<Q", size) for size in shape[::-1])
        head += struct.pack("<IQ", kind, offset)
        data += raw + bytes(-len(raw) % alignment)
    return head + bytes(-len(head) % alignment) + data


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": HIDDEN,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "hidden_act": "silu",
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

GPT2_CONFIG: dict[str, Any] = {
    "architectures": ["GPT2LMHeadModel"],
    "vocab_size": VOCAB,
    "n_embd": WIDTH,
    "n_layer": DEPTH,
    "n_head": HEADS,
    "n_positions": 16,
}


def hf_arrays(config: Mapping[str, Any] = CONFIG, seed: int = 0) -> dict[str, np.ndarray]:
    """A small Hugging Face LLaMA, Mistral or Qwen2, float32."""
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, WIDTH)}
    for layer in range(DEPTH):
        block: dict[str, tuple[int, ...]] = {
            "input_layernorm.weight": (WIDTH,),
            "self_attn.q_proj.weight": (q, WIDTH),
            "self_attn.k_proj.weight": (kv, WIDTH),
            "self_attn.v_proj.weight": (kv, WIDTH),
            "self_attn.o_proj.weight": (WIDTH, q),
            "post_attention_layernorm.weight": (WIDTH,),
            "mlp.gate_proj.weight": (HIDDEN, WIDTH),
            "mlp.up_proj.weight": (HIDDEN, WIDTH),
            "mlp.down_proj.weight": (WIDTH, HIDDEN),
        }
        qkv = config["architectures"] == ["Qwen2ForCausalLM"] or config.get("attention_bias")
        if qkv:
            block |= {f"self_attn.{x}_proj.bias": (q if x == "q" else kv,) for x in "qkv"}
        if config.get("attention_bias"):
            block["self_attn.o_proj.bias"] = (WIDTH,)
        if config.get("mlp_bias"):
            block |= {"mlp.gate_proj.bias": (HIDDEN,), "mlp.up_proj.bias": (HIDDEN,)}
            block["mlp.down_proj.bias"] = (WIDTH,)
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in block.items()}
    shapes["model.norm.weight"] = (WIDTH,)
    if not config.get("tie_word_embeddings"):
        shapes["lm_head.weight"] = (VOCAB, WIDTH)
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=shape).astype("f4") for name, shape in shapes.items()}


_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "uint8": "U8"}


def safetensors_bytes(
    arrays: Mapping[str, np.ndarray], changes: Mapping[str, Any] | None = None, extra: bytes = b""
) -> bytes:
    """A safetensors file; `changes` replaces entries of its header (None leaves one out)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, array in arrays.items():
        raw = array.tobytes()
        header[name] = {
            "dtype": _DTYPES[array.dtype.name],
            "shape": list(array.shape),
            "data_offsets": [len(data), len(data) + len(raw)],
        }
        data += raw
    for name, entry in (changes or {}).items():
        if entry is None:
            del header[name]
        elif isinstance(entry, dict) and name in header:
            header[name] |= entry
        else:
            header[name] = entry
    raw = json.dumps(header).encode()
    return struct.pack("<Q", len(raw)) + raw + data + extra


def write_folder(
    folder: Path, config: Mapping[str, Any] = CONFIG, arrays: Mapping[str, np.ndarray] | None = None
) -> Path:
    """A Hugging Face folder with one file of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    raw = safetensors_bytes(hf_arrays(config) if arrays is None else arrays)
    (folder / "model.safetensors").write_bytes(raw)
    return folder


def write_shards(folder: Path, count: int = 3) -> Path:
    """The same model in several files with an index."""
    write_folder(folder)
    (folder / "model.safetensors").unlink()
    arrays = hf_arrays()
    names = sorted(arrays)
    places = {}
    for i in range(count):
        file = f"model-{i + 1:05d}-of-{count:05d}.safetensors"
        part = {name: arrays[name] for name in names[i::count]}
        (folder / file).write_bytes(safetensors_bytes(part))
        places |= dict.fromkeys(part, file)
    write_index(folder, places)
    return folder


def write_index(folder: Path, places: Any) -> None:
    index = {"metadata": {}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def read_index(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
