"""Folders that `save` writes: read again to the bit, and never as another model."""

import dataclasses
import json
from pathlib import Path

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS, LLAMA, decoder, ids, varied

from jax_massact import saving
from jax_massact.errors import WeightsError
from jax_massact.families.table import FAMILIES
from jax_massact.loading import load, open_checkpoint
from jax_massact.mesh import make_mesh
from jax_massact.nn.block_config import NormConfig, RopeConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.positions import llama3_factors
from jax_massact.nn.transformer import Transformer, from_parameters, parameters
from jax_massact.nn.variants import VARIANTS
from jax_massact.saving import save
from jax_massact.weights.folder import open_folder

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
HUGGING_FACE = sorted(path.parent.name for path in FIXTURES.glob("*/config.json"))
LLAMA3 = {"factor": 8.0, "low": 1.0, "high": 4.0, "context": 8192}


def changed(name: str, **changes) -> ModelConfig:
    return varied(CONFIGS[name], **changes)


def stated(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def write(folder: Path, config: ModelConfig) -> Path:
    save(decoder(config), folder)
    return folder


def same_bits(a: Transformer, b: Transformer) -> None:
    ours, theirs = parameters(a), parameters(b)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


@in_numpy.jit
def logits(model: Transformer, tokens: jax.Array) -> jax.Array:
    return model(tokens)[0]


# Round trips. Equal parameters and an equal configuration are an equal function of the tokens.


@pytest.mark.parametrize("attention", sorted(VARIANTS))
@pytest.mark.parametrize("family", [f.model_type for f in FAMILIES if f.model_type in CONFIGS])
def test_every_family_and_variant(tmp_path, family, attention):
    config = changed(family, variant=attention)
    model = decoder(config)
    written = save(model, tmp_path / "run" / "model")
    assert [path.name for path in written] == ["model.safetensors", "config.json"]
    read = open_checkpoint(tmp_path / "run" / "model")
    assert read.config == config
    same_bits(read.load_model(), model)
    # GPT-2's of the tiny models has a first position and wide heads.
    is_own = attention != "standard" or family == "gpt2"
    assert stated(written[-1].parent)["model_type"] == "massact-" * is_own + family
    assert stated(written[-1].parent)["architectures"][0].startswith("Massact") == is_own


@pytest.mark.parametrize(
    ("attention", "tensor", "shape"),
    [
        ("sink", "model.front.weight", (1, 16)),
        ("kv_bias", "model.layers.2.variant.v", (2, 8)),
        ("sink_logit", "model.layers.2.variant.logit", (4,)),
        ("gated", "model.layers.2.variant.gate.weight", (4, 16)),
    ],
)
def test_how_a_variant_lies_in_the_file(tmp_path, attention, tensor, shape):
    tensors = open_folder(write(tmp_path, changed("llama", variant=attention)))
    assert tensors[tensor].shape == shape


PLAIN = {"norm_kind": "rms", "norm_bias": False, "gated": True, "activation": "silu"}
LEARNED = {"position": "none", "positions": "learned"}


def kinds(config: ModelConfig, *changes: dict) -> ModelConfig:
    """`config` with further kinds of blocks, which differ from the first in attention."""
    others = tuple(varied(config, **change).block for change in changes)
    return dataclasses.replace(config, others=others)


# The family that each resembles most, and it.
UNUSUAL = {
    "window": ("mistral", changed("llama", window=4, variant="kv_bias", bias_position=3)),
    "several extra keys": ("llama", changed("llama", variant="kv_bias", extra_keys=3)),
    "some biases": ("llama", changed("llama", qkv_bias=True, mlp_bias=True)),
    "no biases": ("mistral", changed("qwen2", qkv_bias=False, window=4, first_position=5)),
    "learned positions": ("llama", changed("llama", **LEARNED, head_dim=3, variant="sink")),
    "both positions": ("llama", changed("llama", positions="learned")),
    "layer norm": ("qwen2", changed("qwen2", norm_kind="layer", norm_bias=True, gated=False)),
    "other final norm": (
        "llama", dataclasses.replace(LLAMA, final_norm=NormConfig(kind="layer", eps=1e-3))
    ),
    "sandwich norms": ("llama", changed("llama", norms="both", residual_scale=0.5, clip=2.0)),
    "qk norms": ("gpt2", changed("gpt2", qk_norm="per_head", embed_norm=True)),
    "no norms": (
        "llama", dataclasses.replace(
            changed("llama", norm_kind="dyt", norm_bias=True), final_norm=NormConfig(kind="dyt")
        )
    ),
    "bias-free gpt2": (
        "gpt2", changed("gpt2", norm_bias=False, qkv_bias=False, out_bias=False, mlp_bias=False)
    ),
    "modern gpt2": (
        "llama",
        changed(
            "gpt2", **PLAIN, kv_heads=2, position="rope", positions="none", variant="k_bias",
            rope=RopeConfig(base=2e4, factors=(1.0, 2.0, 3.0, 4.0)),
        ),
    ),
    "grouped gpt2": ("gpt2", changed("gpt2", kv_heads=2, head_dim=4)),
    "indivisible gpt2": ("gpt2", changed("gpt2", width=18, head_dim=4, first_position=0)),
    "gelu": ("gpt2", changed("gpt2", activation="gelu", tied=False)),
    "scaled logits": ("llama", changed("llama", scale=0.5, softcap=30.0)),
    "scaled rotary": ("llama", changed("llama", rope=RopeConfig(scale=1.5))),
    "windowed first": (
        "mistral", kinds(varied(LLAMA, window=5), {"window": None, "rope": RopeConfig(base=7.0)})
    ),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_transformers_has_no_name_for(tmp_path, name):
    family, config = UNUSUAL[name]
    model = decoder(config)
    save(model, tmp_path)
    read = open_checkpoint(tmp_path)
    assert read.config == config
    same_bits(read.load_model(), model)
    assert stated(tmp_path)["model_type"] == f"massact-{family}"


def test_only_what_has_no_name_is_in_the_group(tmp_path):
    config = changed("qwen2", window=4, first_position=5, variant="softmax1")
    group = stated(write(tmp_path, config))["massact"]
    assert group == {"attention": "softmax1", "first_position": 5}


# Of 32 frequencies some are kept, some slowed, some between.
FACTORS = llama3_factors(RopeConfig(base=5e5), 64, **LLAMA3)
LLAMA3_ROPE = RopeConfig(base=5e5, factors=FACTORS)
ALMOST = RopeConfig(base=5e5, factors=(*FACTORS[:15], FACTORS[15] * 1.00001, *FACTORS[16:]))
FAR = tuple(1 + 0.1 * i for i in range(4))
# The first family that can state each, and it.
STANDARD = {
    "all biases": ("smollm3", changed("mistral", qkv_bias=True, out_bias=True)),
    "no positions": ("smollm3", changed("llama", position="none")),
    "every second layer": ("smollm3", kinds(LLAMA, {"window": 5, "position": "none"})),
    "almost llama3": ("llama", changed("llama", rope=ALMOST, head_dim=64)),
    "llama biases": (
        "llama",
        changed("llama", qkv_bias=True, out_bias=True, mlp_bias=True, activation="gelu_tanh"),
    ),
    "llama3": ("llama", changed("llama", rope=LLAMA3_ROPE, head_dim=64)),
    "linear": ("llama", changed("llama", rope=RopeConfig(base=2e4, factors=(2.5,) * 4))),
    "factors": (
        "llama", changed("llama", rope=RopeConfig(base=3e5, factors=(1.0, 1.1, 3.0, 1 / 3)))
    ),
    "yarn": ("llama", changed("llama", rope=RopeConfig(factors=FAR, scale=1.2))),
    "windowless mistral": ("llama", changed("mistral", window=None)),
    "mistral": ("mistral", CONFIGS["mistral"]),
    "qwen2": ("qwen2", changed("qwen2", window=5, tied=False)),
    "some windows": ("qwen2", kinds(changed("qwen2", window=5), {}, {"window": None})),
    "gpt2": (
        "gpt2", changed("gpt2", head_dim=4, first_position=0, tied=False, activation="gelu")
    ),
    "unscaled gpt2": ("gpt2", changed("gpt2", head_dim=4, first_position=0, scale=1.0)),
    "scales": (
        "gpt2",
        kinds(
            changed("gpt2", head_dim=4, first_position=0, scale=0.5),
            {"scale": 0.5 / 2},
            {"scale": 0.5 / 3},
        ),
    ),
}


@pytest.mark.parametrize("name", STANDARD)
def test_what_transformers_has_a_name_for(tmp_path, name):
    family, config = STANDARD[name]
    model = decoder(config)
    save(model, tmp_path)
    read = open_checkpoint(tmp_path)
    assert read.config == config
    same_bits(read.load_model(), model)
    assert stated(tmp_path)["model_type"] == read.family == family
    assert "massact" not in stated(tmp_path)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_published_factors_keep_their_name(tmp_path, dtype):
    rounded = np.asarray(FACTORS, dtype).tolist()
    rope = dataclasses.replace(LLAMA3_ROPE, factors=tuple(rounded))
    assert stated(write(tmp_path, changed("llama", rope=rope, head_dim=64)))["rope_scaling"] == {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert open_checkpoint(tmp_path).config.block.attention.rope == LLAMA3_ROPE


@pytest.mark.parametrize("name", HUGGING_FACE)
def test_a_folder_of_transformers_keeps_its_tensors(tmp_path, name):
    checkpoint = open_checkpoint(FIXTURES / name)
    dtype = "bfloat16" if name == "llama_bf16" else "float32"
    save(checkpoint.load_model(dtype), tmp_path)
    before, after = open_folder(FIXTURES / name), open_folder(tmp_path)
    assert after.keys() == {n for n in before if n in checkpoint.tensors}
    for tensor in after.values():
        assert (tensor.shape, tensor.dtype) == (before[tensor.name].shape, dtype_name(dtype))
        np.testing.assert_array_equal(tensor.read(), before[tensor.name].read())
    assert open_checkpoint(tmp_path).config == checkpoint.config
    old = json.loads((FIXTURES / name / "config.json").read_text())
    assert all(stated(tmp_path)[key] == old[key] for key in ("architectures", "model_type"))


def dtype_name(dtype: str) -> str:
    return {"bfloat16": "BF16", "float32": "F32"}[dtype]


@pytest.mark.parametrize("name", sorted(path.name for path in FIXTURES.glob("gguf/*.gguf")))
def test_a_gguf_file_becomes_a_standard_folder(tmp_path, name):
    model, tokenizer = load(FIXTURES / "gguf" / name)
    save(model, tmp_path, tokenizer=tokenizer)
    again, its_tokenizer = load(tmp_path)
    assert stated(tmp_path)["model_type"] == open_checkpoint(FIXTURES / "gguf" / name).family
    tokens = ids(model.config, 1, 12)
    np.testing.assert_allclose(logits(again, tokens), logits(model, tokens), rtol=1e-4, atol=1e-5)
    text = "".join(tokenizer.token_strings(range(3, tokenizer.vocab_size)))[:200]
    np.testing.assert_array_equal(
        its_tokenizer.encode(text, bos=False), tokenizer.encode(text, bos=False)
    )
    assert its_tokenizer.resolve_bos("auto") == tokenizer.resolve_bos("auto")
    for key in ("bos_id", "eos_id"):
        assert getattr(its_tokenizer, key) == getattr(tokenizer, key)
    assert stated(tmp_path)["bos_token_id"] == tokenizer.bos_id


def test_rotary_settings_mean_nothing_without_rotary_positions(tmp_path):
    model = decoder(changed("gpt2", rope=RopeConfig(base=7.0)))
    save(model, tmp_path)
    read = open_checkpoint(tmp_path)
    assert read.config == CONFIGS["gpt2"]
    same_bits(read.load_model(), model)


def test_bfloat16_keeps_its_bits(tmp_path):
    arrays = parameters(decoder(LLAMA))
    # Norms in float32, as some train.
    rounded = {
        name: x if "norm" in name else x.astype(jnp.bfloat16) for name, x in arrays.items()
    }
    config = dataclasses.replace(LLAMA, dtype="bfloat16")
    save(from_parameters(config, rounded), tmp_path)
    read = open_checkpoint(tmp_path)
    assert read.stored_dtypes == ("BF16", "F32") and stated(tmp_path)["torch_dtype"] == "bfloat16"
    for name, x in parameters(read.load_model()).items():
        np.testing.assert_array_equal(x, rounded[name].astype(jnp.float32))
    assert read.load_model("bfloat16").config == config


def test_sharded_parameters(tmp_path):
    model = decoder(LLAMA)
    save(model, tmp_path / "one")
    mesh = make_mesh(fsdp=4, model=2)
    save(open_checkpoint(tmp_path / "one").load_model(mesh=mesh), tmp_path / "many")
    same_bits(open_checkpoint(tmp_path / "many").load_model(), model)


# Files


def test_shards(tmp_path, monkeypatch):
    write(tmp_path, LLAMA)
    monkeypatch.setattr(saving, "_SHARD_BYTES", 8000)
    model = decoder(LLAMA, seed=1)
    written = {path.name for path in save(model, tmp_path)}
    assert len(written) > 4 and "model.safetensors.index.json" in written
    assert written == {path.name for path in tmp_path.iterdir()}
    assert max(path.stat().st_size for path in tmp_path.glob("*.safetensors")) < 10_000
    same_bits(open_checkpoint(tmp_path).load_model(), model)
    # Back to one file: no shard is left to be taken for a part of it.
    monkeypatch.undo()
    write(tmp_path, LLAMA)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"config.json", "model.safetensors"}


def test_other_files_stay(tmp_path):
    for seed in (0, 1):
        (tmp_path / "README.md").write_text("mine")
        save(decoder(LLAMA, seed), tmp_path)
        assert (tmp_path / "README.md").read_text() == "mine"
    same_bits(open_checkpoint(tmp_path).load_model(), decoder(LLAMA, seed=1))


@pytest.mark.parametrize(
    "name",
    ["config.json", "tokenizer.json", "model.safetensors", "model-00001-of-00002.safetensors"],
)
def test_a_model_of_someone_else_is_not_overwritten(tmp_path, name):
    (tmp_path / name).write_text('{"model_type": "llama"}')
    with pytest.raises(WeightsError, match=rf"holds {name}, which was not written by this package"):
        save(decoder(LLAMA), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == '{"model_type": "llama"}'


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("text")
    with pytest.raises(WeightsError, match="file is a file; expected: a folder"):
        save(decoder(LLAMA), tmp_path / "file")
    with pytest.raises(WeightsError, match="model cannot be written: Not a directory"):
        save(decoder(LLAMA), tmp_path / "file" / "model")


def test_an_interrupted_save_is_no_model_and_can_be_repeated(tmp_path, monkeypatch):
    write(tmp_path, LLAMA)

    def full(path, tensors):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(saving, "_write_safetensors", full)
    with pytest.raises(WeightsError, match="cannot be written: No space left on device"):
        save(decoder(LLAMA), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(WeightsError, match="model_type is 'massact-unfinished'"):
        open_checkpoint(tmp_path)
    monkeypatch.undo()
    same_bits(open_checkpoint(write(tmp_path, LLAMA)).load_model(), decoder(LLAMA))


def test_a_full_disk_is_an_error_for_people(tmp_path, monkeypatch):
    from safetensors import SafetensorError, numpy

    def full(*args, **kwargs):
        raise SafetensorError("I/O error: No space left")

    monkeypatch.setattr(numpy, "save_file", full)
    with pytest.raises(WeightsError, match="cannot be written: I/O error: No space left"):
        save(decoder(LLAMA), tmp_path)


# Models that cannot be saved


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (lambda x: x.at[1, 2, 0].set(jnp.nan), "blocks.attn.q has numbers that are infinite"),
        (lambda x: x.astype(jnp.float16), "blocks.attn.q is of type float16; expected: float32"),
    ],
)
def test_parameters_that_load_would_refuse(tmp_path, value, said):
    arrays = parameters(decoder(LLAMA))
    arrays["blocks.attn.q"] = value(arrays["blocks.attn.q"])
    with pytest.raises(WeightsError, match=said):
        save(from_parameters(LLAMA, arrays), tmp_path / "model")
    assert not (tmp_path / "model").exists()


# A damaged group

DAMAGE = {
    "unknown": ({"atention": "sink"}, ["massact.atention", "Did you mean attention"]),
    "not its own": ({"vocab_size": 3}, ["no setting massact.vocab_size"]),
    "attention": ({"attention": "flash"}, ["massact.attention is 'flash'", "'kv_bias'"]),
    "null": ({"attention": None}, ["massact.attention is missing"]),
    "negative": ({"first_position": -1}, ["massact.first_position is -1", "at least 0"]),
    "text": ({"first_position": "2"}, ["massact.first_position is '2'"]),
    "flag": ({"norm_bias": 0}, ["massact.norm_bias is 0", "True or False"]),
    "window": ({"sliding_window": 0}, ["massact.sliding_window is 0"]),
    "size": ({"head_dim": 1.5}, ["massact.head_dim is 1.5"]),
    "factors": ({"rope_factors": 2.0}, ["massact.rope_factors is 2.0", "a list of numbers"]),
    "factor": ({"rope_factors": [1, 1, 0, 1]}, ["massact.rope_factors[2] is 0"]),
    "few factors": ({"rope_factors": [1.0]}, ["rope.factors has 1 entries", "4"]),
    "base": ({"rope_base": float("inf")}, ["massact.rope_base is inf"]),
    "contradiction": ({"norm_bias": True}, ["norm.bias is True; expected with norm.kind='rms'"]),
    "kinds": ({"kinds": 3}, ["massact.kinds is 3", "a list of groups"]),
    "a kind": ({"kinds": [{"attention": "sink"}]}, ["no setting massact.kinds[0].attention"]),
    "no group": ([], ["massact is []", "a group of settings"]),
    "missing": (None, ["massact is None", "a group of settings"]),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_group(tmp_path, name):
    group, said = DAMAGE[name]
    path = write(tmp_path, changed("llama", variant="softmax1")) / "config.json"
    path.write_text(json.dumps(stated(tmp_path) | {"massact": group}))
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(tmp_path)
    for words in (str(path), *said):
        assert words in str(caught.value)


def test_a_group_under_a_name_that_others_read(tmp_path):
    path = write(tmp_path, LLAMA) / "config.json"
    path.write_text(json.dumps(stated(tmp_path) | {"massact": {"attention": "softmax1"}}))
    with pytest.raises(WeightsError, match="massact is .*expected: nothing, unless model_type"):
        open_checkpoint(tmp_path)


def test_architecture_and_model_type_must_agree(tmp_path):
    path = write(tmp_path, changed("llama", variant="softmax1")) / "config.json"
    path.write_text(json.dumps(stated(tmp_path) | {"model_type": "llama"}))
    with pytest.raises(WeightsError, match="model_type is 'llama'; expected: 'massact-llama'"):
        open_checkpoint(tmp_path)


def test_another_variant_than_the_tensors(tmp_path):
    path = write(tmp_path, changed("llama", variant="gated")) / "config.json"
    path.write_text(json.dumps(stated(tmp_path) | {"massact": {"attention": "kv_bias"}}))
    with pytest.raises(WeightsError, match=r"tensor 'model.layers.0.variant.k' is missing"):
        open_checkpoint(tmp_path)
