"""Checkpoints whose blocks stay in the file: folders, shards, GGUF; what can happen to a file."""

import os
from pathlib import Path

import in_numpy
import jax
import ml_dtypes
import numpy as np
import pytest
from model_folders import folder_of
from planted import BOS, DIM, REMOVER, WRITER, llama_written_and_removed
from tiny_models import LLAMA, SWITCHES, decoder, ids, varied

import jax_massact as ma
from jax_massact.errors import WeightsError
from jax_massact.families.open_model import OpenModel
from jax_massact.loading import open_checkpoint
from jax_massact.measure.loss import losses_of
from jax_massact.mesh import make_mesh
from jax_massact.nn.pieces import losses_in_pieces
from jax_massact.nn.transformer import parameters
from jax_massact.weights.tensors import Tensor

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return folder_of(decoder(LLAMA), tmp_path_factory.mktemp("models") / "tiny")


@pytest.mark.parametrize("name", ["gguf/smollm2.gguf", "llama_sharded", "gpt2", "llama_bf16"])
def test_streams_and_losses_are_those_of_the_loaded_model(name):
    """GGUF, shards, fused tensors, bfloat16; tied heads and others."""
    model = open_checkpoint(FIXTURES / name).load_model()
    opened = ma.open(FIXTURES / name)
    assert opened.config == model.config
    tokens = ids(model.config, 2, 10)
    tap = lambda acts: acts.resid_post

    @in_numpy.jit
    def whole(model, tokens):
        logits, streams = model(tokens, tap=tap)
        return losses_of(logits, tokens), streams

    losses, wanted = whole(model, tokens)
    x, found = opened.residual(tokens, tap=tap)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(
        losses_in_pieces(opened.back(), x, tokens), losses, rtol=1e-5
    )


def test_it_knows_its_tokenizer():
    opened = ma.open(FIXTURES / "gguf" / "smollm2.gguf")
    assert opened.tokenizer.vocab_size == opened.config.embed.vocab_size


def test_a_block_is_as_large_as_its_tensors(folder):
    opened, size = ma.open(folder), (folder / "model.safetensors").stat().st_size
    blocks = sum(opened.block_bytes(layer) for layer in range(LLAMA.depth))
    outside = 4 * (2 * 64 * 16 + 16)  # embedding, head, norm
    assert 0 < size - blocks - outside < 4096  # the header


def test_experts_are_read_from_tensors_of_their_own(tmp_path):
    model = decoder(SWITCHES["qwen2_moe"])
    opened = ma.open(folder_of(model, tmp_path / "moe"))
    tokens = np.asarray(ids(model.config, 1, 6))
    wanted = in_numpy.jit(ma.super_weights)(model, tokens, [2, 0], [3, 7])
    for a, b in zip(wanted, ma.super_weights(opened, tokens, [2, 0], [3, 7]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_super_weights_need_the_blocks_up_to_the_last_writer(tmp_path, monkeypatch):
    plant = llama_written_and_removed()
    opened = ma.open(folder_of(plant.build(), tmp_path / "planted"))
    tokens = np.array(ids(plant.config, 1, 9))
    tokens[:, 0] = BOS
    read, seen = OpenModel.read, []
    monkeypatch.setattr(OpenModel, "read", lambda self, l: seen.append(l) or read(self, l))
    found = ma.super_weights(opened, tokens, [WRITER, REMOVER], [DIM, DIM])
    np.testing.assert_array_equal(found.column, [[5, 6]])
    assert seen == [*range(REMOVER + 1)] and REMOVER + 1 < plant.config.depth


def test_a_block_is_laid_out_over_a_mesh(folder):
    tokens = np.asarray(ids(LLAMA, 2, 8))
    alone = ma.open(folder).residual(tokens, tap=lambda acts: acts.resid_post)
    mesh = make_mesh(data=2, model=2, devices=jax.devices()[:4])
    opened = ma.open(folder, mesh=mesh)
    up = opened.read(0)["blocks.mlp.up"]
    assert up.sharding.shard_shape(up.shape) == (16, 12)
    with jax.set_mesh(mesh):
        spread = opened.residual(tokens, tap=lambda acts: acts.resid_post)
        losses = ma.token_losses(opened, tokens)
    assert losses.shape == (2, 7)
    for a, b in zip(alone, spread, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_a_file_that_changes_or_disappears_is_an_error(tmp_path):
    path = folder_of(decoder(LLAMA), tmp_path / "model")
    weights, tokens = path / "model.safetensors", ids(LLAMA, 1, 5)
    whole = weights.read_bytes()

    def fails(change, *said):
        weights.write_bytes(whole)
        opened = ma.open(path)
        after_first = lambda done: change() if done.blocks == 1 else None
        with pytest.raises(WeightsError) as caught:
            opened.residual(tokens, report=after_first)
        for words in (str(weights), *said):
            assert words in str(caught.value)

    changed = "has changed since it was opened; expected: a file that stays as it is"
    fails(lambda: os.utime(weights, (1, 1)), changed, "A download that goes on")
    fails(lambda: weights.write_bytes(whole[:-1] + b"x"), changed)
    fails(weights.unlink, "cannot be read", "No such file")
    fails(lambda: os.truncate(weights, 2000), "bytes left")


def test_a_number_that_is_not_finite_is_found_in_16_bits(tmp_path):
    file = tmp_path / "weights"
    for dtype, name in ((ml_dtypes.bfloat16, "BF16"), (np.float16, "F16")):
        for bad in (np.inf, -np.inf, np.nan):
            values = np.full(3000, ml_dtypes.finfo(dtype).max, dtype)
            file.write_bytes(values.tobytes())
            tensor = Tensor("w", file, (3, 1000), name, 0, 6000, lambda raw, t=dtype: raw.view(t))
            np.testing.assert_array_equal(tensor.read(), values.reshape(3, 1000))
            values[2004] = bad
            file.write_bytes(values.tobytes())
            with pytest.raises(WeightsError, match=r"at index \[2, 4\]"):
                tensor.read()


def test_blocks_are_computed_on_where_they_were_read_to(folder):
    """No second copy on the host: XLA computes on the arrays that were read."""
    opened = ma.open(folder)
    tensor = opened.checkpoint.tensors["model.layers.0.mlp.up_proj.weight"]
    array = tensor.read()
    assert array.ctypes.data % 64 == 0
    assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data


def test_a_head_that_is_not_there_is_missed_before_any_block_is_read(tmp_path, monkeypatch):
    config = varied(LLAMA, **{"head.present": False})
    opened = ma.open(folder_of(decoder(config), tmp_path / "headless"))
    monkeypatch.setattr(OpenModel, "read", None)
    for call in (opened, lambda tokens: ma.token_losses(opened, tokens)):
        with pytest.raises(WeightsError, match="saved without its head"):
            call(ids(LLAMA, 1, 5))


def test_the_parameters_of_a_block_are_rounded_as_those_of_a_loaded_model(folder):
    model, _ = ma.load(folder, dtype="bfloat16")
    opened = ma.open(folder, dtype="bfloat16")
    for name, array in opened.unpack(opened.read(1)).items():
        np.testing.assert_array_equal(array, parameters(model)[name][1])
    down = parameters(model)["blocks.mlp.down"]
    np.testing.assert_array_equal(opened.column("blocks.mlp.down", 1, 5), down[1, :, 5])
