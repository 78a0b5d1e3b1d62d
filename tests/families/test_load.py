"""From a name to a decoder: finding the checkpoint, tying the head, placing the weights."""

import gc
import json
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import gguf
import huggingface_hub
import jax
import numpy as np
import pytest
from gguf.constants import GGMLQuantizationType as Type
from huggingface_hub import errors
from weight_files import (
    BLOCK,
    CONFIG,
    U32,
    gguf_bytes,
    hf_arrays,
    metadata,
    tensors,
    value,
    write_folder,
)

from jax_massact import loading, resources
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import ConfigError, DataError, WeightsError
from jax_massact.families import placing
from jax_massact.loading import load, open_checkpoint
from jax_massact.measure.magnitudes import residual_streams
from jax_massact.mesh import make_mesh, parameter_sharding
from jax_massact.nn.config import HeadConfig
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.transformer import Transformer, parameters
from jax_massact.saving import save
from jax_massact.studies.fold.settings import FoldConfig
from jax_massact.studies.settings import InterveneConfig

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


def fails(source, *said):
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(source)
    for words in said:
        assert words in str(caught.value)


# Finding it


def test_load_gives_a_decoder_and_its_tokenizer():
    model, tokenizer = load(FIXTURES / "gguf" / "smollm2.gguf")
    assert isinstance(model, Transformer) and isinstance(tokenizer, Tokenizer)
    assert tokenizer.vocab_size == model.config.embed.vocab_size


def test_a_folder_without_a_tokenizer_still_has_weights(tmp_path):
    checkpoint = open_checkpoint(write_folder(tmp_path))
    checkpoint.load_model()
    with pytest.raises(DataError, match="tokenizer.json"):
        checkpoint.load_tokenizer()


def test_a_named_resource(monkeypatch):
    path = FIXTURES / "gguf" / "smollm2.gguf"
    monkeypatch.setattr(loading, "fetch", {"smollm2-135m": path}.get)
    assert "smollm2-135m" in resources.RESOURCES
    assert open_checkpoint("smollm2-135m").path == path


def test_names_that_nothing_has(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fails("smolm2-135", "Did you mean 'smollm2-135m'?", "organisation/model")
    fails("shakespeare", "no model is called 'shakespeare'")
    fails("", "no model is called ''")
    fails("model.gguf", "model.gguf does not exist")
    fails("./org/model", "./org/model does not exist; expected: a .gguf file, a folder")
    fails(Path("org/model"), "does not exist")
    fails("a/b/c", "a/b/c does not exist")
    fails("x" * 5000, "no model is called")
    (tmp_path / "org").mkdir()
    fails("org/model", "there is no 'model' in the folder org")


def test_what_is_no_checkpoint(tmp_path):
    fails(tmp_path, "has no config.json")
    (tmp_path / "a.gguf").write_bytes(gguf_bytes())
    fails(tmp_path, "has no config.json", "It holds a.gguf")
    weights = write_folder(tmp_path) / "model.safetensors"
    fails(weights, "is one file of a model", "its folder")
    fails("/dev/null", "/dev/null is not a plain file")


def hub_raises(monkeypatch, error):
    def snapshot_download(name, **patterns):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)


REFUSAL = {"response": SimpleNamespace(headers={}, request=None)}


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (errors.LocalEntryNotFoundError("Cannot reach it"), "Cannot reach it. Check the network"),
        (errors.OfflineModeIsEnabled("Offline"), "HF_HUB_OFFLINE"),
        (ConnectionError("Name or service not known"), "not in this machine's Hugging Face"),
        (TimeoutError("timed out"), "timed out. Check the network"),
        (
            errors.GatedRepoError("no", **REFUSAL),
            "ask for consent first",
        ),
        (
            errors.RepositoryNotFoundError("no", **REFUSAL),
            "has no such model, or it is private",
        ),
        (errors.HFValidationError("Repo id must not"), "org/model: Repo id must not"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_hub_that_says_no(monkeypatch, error, said):
    hub_raises(monkeypatch, error)
    fails("org/model", "org/model", said)


def test_a_model_on_the_hub(tmp_path, monkeypatch):
    asked = {}

    def snapshot_download(name, **patterns):
        asked.update(patterns, name=name)
        return str(write_folder(tmp_path))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert open_checkpoint("org/model").path == tmp_path
    assert asked["name"] == "org/model"
    wanted = huggingface_hub.utils.filter_repo_objects(
        [
            *("config.json", "tokenizer.json", "model.safetensors", "pytorch_model.bin"),
            *("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
            *("original/model.safetensors", "consolidated.safetensors", "tf_model.h5"),
        ],
        allow_patterns=asked["allow_patterns"],
        ignore_patterns=asked["ignore_patterns"],
    )
    assert list(wanted) == [
        *("config.json", "tokenizer.json", "model.safetensors"),
        *("model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    ]


# The head


def test_a_tied_head_that_is_stored_as_well(tmp_path):
    config = CONFIG | {"tie_word_embeddings": True}
    arrays = hf_arrays(config)
    same = {"lm_head.weight": arrays["model.embed_tokens.weight"]}
    model = open_checkpoint(write_folder(tmp_path, config, arrays | same)).load_model()
    assert model.head is None
    write_folder(tmp_path, config, arrays | {"lm_head.weight": same["lm_head.weight"] + 1})
    fails(tmp_path, "'lm_head.weight' differs from the embedding", "tie_word_embeddings true")


def test_an_untied_head_that_is_missing(tmp_path):
    arrays = hf_arrays()
    del arrays["lm_head.weight"]
    write_folder(tmp_path, CONFIG, arrays)
    fails(tmp_path, "'lm_head.weight' is missing", "expected: shape [40, 32]")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module."])
def test_names_of_a_model_that_was_wrapped(tmp_path, prefix):
    arrays = hf_arrays()
    write_folder(tmp_path, CONFIG, {prefix + name: x for name, x in arrays.items()})
    head = open_checkpoint(tmp_path).load_model().head
    np.testing.assert_array_equal(head, arrays["lm_head.weight"].T)


def test_names_of_blocks_that_were_compiled_alone(tmp_path):
    arrays = hf_arrays()
    blocks = {name.replace("layers.1.", "layers.1._orig_mod."): x for name, x in arrays.items()}
    write_folder(tmp_path, CONFIG, blocks)
    open_checkpoint(tmp_path)
    twice = {"module.lm_head.weight": arrays["lm_head.weight"]}
    write_folder(tmp_path, CONFIG, blocks | twice)
    fails(tmp_path, "'module.lm_head.weight' has the same place as 'lm_head.weight'")


def test_a_tied_model_stored_with_its_head_alone(tmp_path):
    config = CONFIG | {"tie_word_embeddings": True}
    arrays = hf_arrays(config)
    embed = arrays.pop("model.embed_tokens.weight")
    model = open_checkpoint(write_folder(tmp_path, config, arrays | {"lm_head.weight": embed}))
    np.testing.assert_array_equal(model.load_model().embed, embed)


def test_a_model_without_a_head_has_streams_and_no_logits(tmp_path):
    arrays = hf_arrays()
    bare = {name.removeprefix("model."): x for name, x in arrays.items() if "lm_head" not in name}
    write_folder(tmp_path, CONFIG | {"architectures": ["LlamaModel"]}, bare)
    model, tokens = open_checkpoint(tmp_path).load_model(), np.arange(6)[None]
    whole = open_checkpoint(write_folder(tmp_path / "whole", CONFIG, arrays)).load_model()
    np.testing.assert_array_equal(
        residual_streams(model, tokens), residual_streams(whole, tokens)
    )
    with pytest.raises(WeightsError, match="without its head.*no logits and no loss; expected"):
        model(tokens)
    for settings in (InterveneConfig(), FoldConfig()):  # before any weight is read
        with pytest.raises(WeightsError, match="without its head"):
            settings.check(model.config)
    save(model, tmp_path / "again")
    assert open_checkpoint(tmp_path / "again").config == model.config
    # The class does not say that there is none.
    write_folder(tmp_path, CONFIG | {"architectures": ["LlamaModel"]}, arrays)
    assert open_checkpoint(tmp_path).config == whole.config
    # A tied head is never stored, so the class is of no importance.
    tied = CONFIG | {"architectures": ["LlamaModel"], "tie_word_embeddings": True}
    assert open_checkpoint(write_folder(tmp_path, tied, bare)).config.head == HeadConfig(tied=True)


# Placing the weights


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_every_parameter_is_the_files_numbers(tmp_path, monkeypatch, platform):
    monkeypatch.setattr(placing, "platform", lambda: platform)
    arrays = hf_arrays()
    found = parameters(open_checkpoint(write_folder(tmp_path)).load_model())
    for layer in range(2):
        block = f"model.layers.{layer}."
        q = arrays[f"{block}self_attn.q_proj.weight"]
        out = arrays[f"{block}self_attn.o_proj.weight"]
        np.testing.assert_array_equal(found["blocks.attn.q"][layer], q.T.reshape(32, 4, 8))
        np.testing.assert_array_equal(found["blocks.attn.out"][layer], out.T.reshape(4, 8, 32))
        down = arrays[f"{block}mlp.down_proj.weight"]
        np.testing.assert_array_equal(found["blocks.mlp.down"][layer], down.T)
    np.testing.assert_array_equal(found["head"], arrays["lm_head.weight"].T)
    assert sum(a.size for a in found.values()) == sum(a.size for a in arrays.values())


def test_on_a_cpu_parameters_are_not_copied():
    destination = placing.Destination("head", (300, 500), "float32", None)
    destination.put(np.ones((300, 500)), 0)
    there = destination._numbers.ctypes.data
    assert destination.array.unsafe_buffer_pointer() == there and destination.array.all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", ["llama3", "gpt2", "llama_sharded", "gguf/smollm2-q8.gguf"])
def test_sharded_onto_a_mesh(source, dtype):
    checkpoint = open_checkpoint(FIXTURES / source)
    mesh = make_mesh(2, 2, 2)
    whole = parameters(checkpoint.load_model(dtype))
    sharded = parameters(checkpoint.load_model(dtype, mesh))
    assert sharded.keys() == whole.keys()
    split = 0
    for name, array in sharded.items():
        letters, stacked = parameter(name).letters, is_stacked(name)
        expected = parameter_sharding(mesh, letters, array.shape, stacked=stacked)
        assert array.sharding.is_equivalent_to(expected, array.ndim), name
        assert array.dtype == dtype
        np.testing.assert_array_equal(array, whole[name])
        split += not array.is_fully_replicated
    assert split >= 7


def test_dtype_is_checked():
    with pytest.raises(ConfigError, match="dtype is 'float16'; expected: 'float32', 'bfloat16'"):
        open_checkpoint(FIXTURES / "llama2").load_model("float16")  # pyright: ignore


def test_host_memory_stays_near_one_tensor(tmp_path):
    """tracemalloc sees NumPy's memory, where the tensors are read, and not that of the devices."""
    depth, width, hidden = 6, 256, 2048
    sizes = {32: width, 64: hidden, 16: width // 2}
    rng = np.random.default_rng(0)
    shapes = {"token_embd.weight": ((40, width), Type.Q8_0)}
    for layer in range(depth):
        for name, (shape, kind) in BLOCK.items():
            shapes[f"blk.{layer}.{name}.weight"] = tuple(sizes[s] for s in shape), kind
    shapes["output_norm.weight"] = ((width,), Type.F32)
    contents = {
        name: (shape, kind, gguf.quantize(rng.normal(size=shape).astype("f4"), kind).tobytes())
        for name, (shape, kind) in shapes.items()
    }
    changes = {
        "llama__embedding_length": value(U32, width),
        "llama__feed_forward_length": value(U32, hidden),
        "llama__block_count": value(U32, depth),
    }
    path = tmp_path / "wide.gguf"
    path.write_bytes(gguf_bytes(metadata(**changes), contents))
    checkpoint = open_checkpoint(path)
    mesh = make_mesh(1, 4, 2)
    checkpoint.load_model(mesh=mesh)  # compiles
    gc.collect()
    largest = 4 * width * hidden
    model_bytes = 4 * sum(int(np.prod(shape)) for shape, _ in shapes.values())
    assert model_bytes > 10 * largest
    tracemalloc.start()
    try:
        model = checkpoint.load_model(mesh=mesh)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    jax.block_until_ready(model)
    # The tensor, its shards on their way to the devices, its bytes in the file, and scratch space.
    assert largest < peak < 3 * largest


def test_the_configuration_is_there_before_the_weights(tmp_path):
    path = tmp_path / "a.gguf"
    contents = tensors()
    contents["output_norm.weight"] = ((32,), Type.F32, np.full(32, np.nan, "f4").tobytes())
    path.write_bytes(gguf_bytes(contents=contents))
    checkpoint = open_checkpoint(path)
    assert checkpoint.config.depth == 2
    assert checkpoint.stored_dtypes[-1] == "F32" and "Q4_1" in checkpoint.stored_dtypes


def test_a_config_that_states_other_sizes(tmp_path):
    write_folder(tmp_path, CONFIG | {"num_attention_heads": 8, "head_dim": 8}, hf_arrays())
    fails(tmp_path, "'model.layers.0.self_attn.q_proj.weight' has shape [32, 32]", "[64, 32]")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG | {"num_hidden_layers": 3}))
    fails(tmp_path, "config.json states 3 blocks; expected: 2")
