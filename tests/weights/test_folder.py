"""Hugging Face folders: shards, index, pickles and digests."""

import hashlib

import numpy as np
import pytest
from weight_files import (
    gguf_bytes,
    hf_arrays,
    read_index,
    safetensors_bytes,
    write_folder,
    write_index,
    write_shards,
)

from jax_massact.errors import WeightsError
from jax_massact.loading import open_checkpoint

SECOND = "model-00002-of-00003.safetensors"
EMBED = "model.embed_tokens.weight"


def fails(source, *said):
    with pytest.raises(WeightsError) as caught:
        open_checkpoint(source)
    for words in said:
        assert words in str(caught.value)


def test_shards_are_the_same_model(tmp_path):
    arrays = hf_arrays()
    checkpoint = open_checkpoint(write_shards(tmp_path))
    assert checkpoint.tensors.keys() == arrays.keys()
    for name, tensor in checkpoint.tensors.items():
        np.testing.assert_array_equal(tensor.read(), arrays[name])


def test_a_missing_shard(tmp_path):
    (write_shards(tmp_path) / SECOND).unlink()
    fails(tmp_path, "model.safetensors.index.json", f"shard {SECOND} is missing")


def test_a_tensor_in_two_shards(tmp_path):
    write_shards(tmp_path)
    home = read_index(tmp_path)[EMBED]
    other = SECOND if home != SECOND else "model-00001-of-00003.safetensors"
    part = {n: a for n, a in hf_arrays().items() if read_index(tmp_path)[n] == other}
    (tmp_path / other).write_bytes(safetensors_bytes(part | {EMBED: hf_arrays()[EMBED]}))
    fails(tmp_path, f"{EMBED!r} lies in", "as well", "each tensor in one file")


def test_a_tensor_that_the_index_places_elsewhere(tmp_path):
    places = read_index(write_shards(tmp_path))
    home = places[EMBED]
    write_index(tmp_path, places | {EMBED: next(f for f in places.values() if f != home)})
    fails(tmp_path, home, f"{EMBED!r} lies here and", "places it in")


def test_a_tensor_that_the_index_leaves_out(tmp_path):
    places = read_index(write_shards(tmp_path))
    home = places.pop(EMBED)
    write_index(tmp_path, places)
    fails(tmp_path, home, f"{EMBED!r} lies here and", "does not name it")


def test_a_tensor_that_no_shard_holds(tmp_path):
    places = read_index(write_shards(tmp_path))
    write_index(tmp_path, places | {"model.other": SECOND})
    fails(tmp_path, SECOND, "'model.other' is missing")


@pytest.mark.parametrize("file", ["../x.safetensors", "/etc/x.safetensors", "x.bin", 7, "a\0"])
def test_an_index_that_points_outside(tmp_path, file):
    places = read_index(write_shards(tmp_path))
    write_index(tmp_path, places | {EMBED: file})
    fails(tmp_path, f"places {EMBED!r} in {file!r}", "in the same folder")


@pytest.mark.parametrize("places", [None, {}, [1], "x"])
def test_an_index_without_places(tmp_path, places):
    write_index(write_shards(tmp_path), places)
    fails(tmp_path, f"weight_map is {places!r}")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "m.pt"])
def test_a_pickle_is_never_loaded(tmp_path, name):
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / name)
    fails(tmp_path, name, "never loaded", "expected: model.safetensors", "save_pretrained")


def test_a_folder_without_weights(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "adapter.safetensors")
    fails(tmp_path, str(tmp_path), "holds only adapter.safetensors", "expected: model.safetensors")
    (tmp_path / "adapter.safetensors").unlink()
    fails(tmp_path, "holds no safetensors file")


def test_missing_extra_and_mis_shaped_tensors(tmp_path):
    arrays = hf_arrays()
    norm = arrays.pop("model.norm.weight")
    write_folder(tmp_path, arrays=arrays)
    fails(tmp_path, "'model.norm.weight' is missing", "expected: shape [32]", "config.json")
    write_folder(tmp_path, arrays=hf_arrays() | {"model.a": norm, "model.b": norm})
    fails(tmp_path, "model.safetensors", "'model.a' is not part of a llama", "nor is 'model.b'")
    write_folder(tmp_path, arrays=hf_arrays() | {"model.norm.weight": norm[:16]})
    fails(tmp_path, "'model.norm.weight' has shape [16]; expected: [32]", "config.json")


def digest_of(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_digest_beside_a_file_is_checked(tmp_path):
    weights = write_folder(tmp_path) / "model.safetensors"
    sidecar = tmp_path / "model.safetensors.sha256"
    sidecar.write_text(f"{digest_of(weights)}  model.safetensors\n")
    open_checkpoint(tmp_path)
    raw = bytearray(weights.read_bytes())
    stated = digest_of(weights)
    raw[-1] ^= 1
    weights.write_bytes(raw)
    fails(tmp_path, f"{weights}: its SHA-256 is {digest_of(weights)}; expected: {stated}")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors.index.json", SECOND])
def test_the_digest_of_every_file_that_is_used(tmp_path, name):
    write_shards(tmp_path)
    (tmp_path / f"{name}.sha256").write_text("0" * 64 + f" *{name}\n")
    fails(tmp_path, f"{tmp_path / name}: its SHA-256 is", "0" * 64)


def test_the_digest_of_a_gguf_file(tmp_path):
    path = tmp_path / "a.gguf"
    path.write_bytes(gguf_bytes())
    sidecar = tmp_path / "a.gguf.sha256"
    good, bad = digest_of(path), "f" * 64
    for text in (good.upper(), f"{good}  folder/a.gguf\n", f"{bad}  b.gguf\n{good}  a.gguf\n"):
        sidecar.write_text(text)
        open_checkpoint(path)
    sidecar.write_text(f"{good}  b.gguf\n{bad}  a.gguf\n")
    fails(path, f"expected: {bad}")
    sidecar.write_text("no digest")
    fails(path, "a.gguf.sha256 states 0 digests for a.gguf")
