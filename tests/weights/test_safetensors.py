"""Safetensors files: their types, and every way in which a header can lie."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from weight_files import CONFIG, hf_arrays, safetensors_bytes, write_folder, write_shards

from jax_massact.errors import WeightsError
from jax_massact.loading import open_checkpoint
from jax_massact.weights.safetensors import open_safetensors

NORM = "model.norm.weight"
UP = "model.layers.1.mlp.up_proj.weight"


def test_reads_what_the_safetensors_package_reads(tmp_path):
    path = write_folder(tmp_path) / "model.safetensors"
    theirs = load_file(path)
    ours = open_safetensors(path)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor.read(), theirs[name])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_floating_type(tmp_path, dtype):
    arrays = {name: array.astype(dtype) for name, array in hf_arrays().items()}
    model = open_checkpoint(write_folder(tmp_path, arrays=arrays)).load_model()
    expected = arrays["model.layers.1.mlp.up_proj.weight"].astype("f4")
    np.testing.assert_array_equal(model.blocks.mlp.up[1], expected.T)


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
def test_a_number_that_is_none(tmp_path, dtype):
    arrays = {name: array.astype(dtype) for name, array in hf_arrays().items()}
    arrays[UP][3, 4] = np.inf
    checkpoint = open_checkpoint(write_folder(tmp_path, arrays=arrays))
    with pytest.raises(WeightsError) as caught:
        checkpoint.load_model()
    for words in ("model.safetensors", f"{UP!r} is inf at index [3, 4]", "finite"):
        assert words in str(caught.value)


def test_a_float64_beyond_float32(tmp_path):
    arrays = {name: array.astype("f8") for name, array in hf_arrays().items()}
    arrays[NORM][7] = -1e300
    with pytest.raises(WeightsError, match=r"is -inf at index \[7\]"):
        open_checkpoint(write_folder(tmp_path, arrays=arrays)).load_model()


def raw_header(text: str | bytes, length: int | None = None) -> bytes:
    text = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(text) if length is None else length) + text


def lie(name: str, **changes) -> bytes:
    return safetensors_bytes(hf_arrays(), {name: changes})


WHOLE = safetensors_bytes(hf_arrays())
TWICE = raw_header('{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"a":{}}') + bytes(4)
LIES = {
    "empty": (b"", ["has 0 bytes in all"]),
    "header length": (raw_header("{}", 2**62), ["a header of 4,611,686,018,427,387,904 bytes"]),
    "length beyond": (raw_header("{}", 3), ["a header of 3 bytes", "at most 2"]),
    "not JSON": (raw_header("{'a': 1}"), ["its header is not JSON"]),
    "not UTF-8": (raw_header(b'{"\xff": 1}'), ["its header is not JSON"]),
    "a list": (raw_header("[1, 2]"), ["'[1, 2]'", "a JSON object"]),
    "deep": (raw_header("{" + '"a":{' * 100_000), ["its header is not JSON"]),
    "digits": (raw_header('{"a":' + "9" * 10_000 + "}"), ["its header is not JSON"]),
    "twice": (TWICE, ["has 'a' twice"]),
    "no shape": (raw_header('{"a":{"dtype":"F32"}}'), ["'a' is described by ['dtype']"]),
    "no object": (raw_header('{"a":7}'), ["'a' is described by 7"]),
    "dtype": (lie(NORM, dtype="F31"), [f"{NORM!r} has dtype 'F31'", "one of BOOL"]),
    "dtype list": (lie(NORM, dtype=["F32"]), [f"{NORM!r} has dtype ['F32']"]),
    "shape text": (lie(NORM, shape="32"), [f"{NORM!r} has shape 32", "a list of"]),
    "negative": (lie(NORM, shape=[-32]), [f"{NORM!r} has shape [-32]"]),
    "boolean": (lie(NORM, shape=[True, 32]), [f"{NORM!r} has shape [True, 32]"]),
    "many dimensions": (lie(NORM, shape=[1] * 99), [f"{NORM!r} has shape [1, 1", "at most 64"]),
    "larger": (lie(NORM, shape=[33]), [f"{NORM!r} has 128 bytes", "132 for shape [33]"]),
    "huge": (lie(NORM, shape=[2**40, 2**40]), [f"{NORM!r} has 128 bytes"]),
    "wider type": (lie(NORM, dtype="F64"), [f"{NORM!r} has 128 bytes", "256 for shape [32]"]),
    "one offset": (lie(NORM, data_offsets=[0]), [f"{NORM!r} has data_offsets [0]"]),
    "backwards": (lie(NORM, data_offsets=[256, 128]), [f"{NORM!r} has data_offsets [256, 128]"]),
    "overlap": (lie(NORM, data_offsets=[0, 128]), ["begins at byte 0", "expected: 128"]),
    "beyond": (
        lie(NORM, data_offsets=[2**50, 2**50 + 128]),
        [f"tensor {NORM!r} takes those", "1,125,899,"],
    ),
    "gap": (safetensors_bytes(hf_arrays(), {NORM: None}), ["'lm_head.weight' begins at byte"]),
    "cut": (WHOLE[:-100], ["is truncated", "'lm_head.weight' takes those", "at least"]),
    "too long": (WHOLE + bytes(9), ["9 bytes follow the last tensor"]),
}


@pytest.mark.parametrize("name", LIES)
def test_a_header_that_lies(tmp_path, name):
    raw, said = LIES[name]
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(raw)
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(tmp_path)
    for words in (f"{tmp_path / 'model.safetensors'}: ", "expected: ", *said):
        assert words in str(caught.value)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    checkpoint = open_checkpoint(write_folder(tmp_path))
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(WeightsError, match=r"'lm_head.weight' has 5,070 bytes left; .* 5,120"):
        checkpoint.load_model()


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "model.safetensors.index.json"]
)
def test_a_pointer_of_git_lfs_is_named(tmp_path, name):
    write_shards(tmp_path) if "index" in name else write_folder(tmp_path)
    path = tmp_path / name
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(tmp_path)
    assert str(caught.value).startswith(f"{path} is a Git LFS pointer")
    assert "expected: the file itself" in str(caught.value) and "git lfs pull" in str(caught.value)


def test_integers_are_no_weights(tmp_path):
    arrays = hf_arrays() | {NORM: np.ones(32, np.uint8)}
    with pytest.raises(WeightsError, match=f"'{NORM}' is of type U8; expected: a type of floating"):
        open_checkpoint(write_folder(tmp_path, arrays=arrays))


def test_constants_of_old_files_are_passed_over(tmp_path):
    inv_freq = {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, "f4")}
    checkpoint = open_checkpoint(write_folder(tmp_path, arrays=hf_arrays() | inv_freq))
    assert checkpoint.tensors.keys() == hf_arrays().keys()


def test_a_model_without_its_head_has_bare_names(tmp_path):
    config = CONFIG | {"tie_word_embeddings": True}
    arrays = {name.removeprefix("model."): array for name, array in hf_arrays(config).items()}
    model = open_checkpoint(write_folder(tmp_path, config, arrays)).load_model()
    np.testing.assert_array_equal(model.embed, arrays["embed_tokens.weight"])


def test_the_header_is_what_the_format_says(tmp_path):
    path = write_folder(tmp_path) / "model.safetensors"
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entry = json.loads(raw[8 : 8 + length])[NORM]
    tensor = open_safetensors(path)[NORM]
    assert tensor.offset == 8 + length + entry["data_offsets"][0]
    assert (tensor.shape, tensor.dtype, tensor.nbytes) == ((32,), "F32", 128)
