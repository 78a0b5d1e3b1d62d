"""Training encoders of images: on a mesh, resumed, watched, and read by the studies."""

import dataclasses
import json

import in_numpy
import jax
import numpy as np
import pytest
from nn.test_images import VIT, images
from tiny_models import decoder, varied
from train_runs import MICRO

from jax_massact.cli.settings import resolve
from jax_massact.data.labelled import pack
from jax_massact.errors import ConfigError, DataError
from jax_massact.measure.definition import Definition
from jax_massact.nn.fused.cross_entropy import cross_entropy
from jax_massact.studies import frame
from jax_massact.studies.held_out import run_config, sequences_of
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.train.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    TrainConfig,
    WatchConfig,
)
from jax_massact.train.data import open_batches
from jax_massact.train.loop import train
from jax_massact.train.metrics import flops_per_token, of_kind, read_rows
from jax_massact.train.nonfinite import diagnose
from jax_massact.train.rows import random_rows, split_rows
from jax_massact.train.step import loss
from jax_massact.train.watch import watch


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Three classes, told apart by how light a picture is."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 3
    pixels = rng.integers(0, 90, (60, 5, 5)) + 80 * labels[:, None, None]
    path = tmp_path_factory.mktemp("data") / "three.npz"
    np.savez(path, images=pixels.astype(np.uint8), labels=labels)
    return dataclasses.replace(
        MICRO, model=dataclasses.replace(varied(VIT, heads=4, kv_heads=4, head_dim=4)),
        data=DataConfig(source=str(path)), sequence_length=4, steps=6, validation_batches=2,
        checkpoint=CheckpointConfig(every=3), watch=WatchConfig(every=6, sequences=2),
        validate_every=6, mesh=MeshConfig(fsdp=2),
    )


@pytest.fixture(scope="module")
def whole(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    train(config, open_batches(config), folder)
    return folder


def test_a_run_on_a_mesh_that_is_resumed_is_the_unbroken_run(config, whole, tmp_path):
    halfway = iter([False, False, True])
    stopped = train(config, open_batches(config), tmp_path, stop=lambda: next(halfway))
    # The loss of the next batch is that of the model without a mesh.
    model = jax.device_get(stopped.state.model)
    expected = in_numpy.jit(lambda m, rows: loss(m, rows, config))(
        model, open_batches(config).rows(3, 0, config.batch_size))
    assert stopped.summary is None
    assert train(config, open_batches(config), tmp_path).resumed == 3
    rows = [read_rows(folder / "metrics.jsonl") for folder in (whole, tmp_path)]
    trained = [[row["loss"] for row in of_kind(r, "train")] for r in rows]
    assert trained[0] == trained[1] and len(trained[0]) == 6
    np.testing.assert_allclose(trained[0][3], expected, rtol=1e-5)
    a, b = ([{**row, "seconds": 0} for row in of_kind(r, "watch")] for r in rows)
    assert a == b and len(a) == 2
    (validation,) = of_kind(rows[0], "validation")
    assert 0 <= validation["accuracy"] <= 1
    assert abs(trained[0][0] - np.log(5)) < 0.2
    changed = dataclasses.replace(config, data=dataclasses.replace(config.data, view="crop"))
    with pytest.raises(ConfigError, match="data.view was 'whole' and is 'crop'"):
        train(dataclasses.replace(changed, steps=9), open_batches(changed), tmp_path)


def test_the_studies_read_the_run_and_what_it_held_out(config, whole):
    study = ProbeConfig(sequences=4)
    inputs = frame.prepare_any(str(whole), study).inputs
    rows = open_batches(config).validation(0, 4)
    np.testing.assert_array_equal(
        inputs.prepare(inputs.pictures.items), rows[:, :-2].reshape(4, 4, 4, 3)
    )
    assert (len(inputs), inputs.registers, len(set(inputs.pictures.labels))) == (4, 2, 3)
    # A checkpoint on its way, and the model at its end.
    early, late = (frame.prepare_any(str(whole), study, step) for step in (3, None))
    assert early.name.endswith("step 3") and early.checkpoint.family == "massact-encoder"
    same = jax.tree.map(lambda a, b: bool((a == b).all()), *(
        p.checkpoint.load_model().final_norm for p in (early, late)))
    assert not all(jax.tree.leaves(same))
    assert early.checkpoint.pictures == late.checkpoint.pictures
    with pytest.raises(DataError, match="is a run on images; expected: a run on text"):
        sequences_of(whole, count=1, length=None, bos="auto")
    assert run_config(whole).data.view == "whole"
    assert json.loads((whole / "summary.json").read_text())["emergence"]["outliers"] is None


def test_the_loss_is_that_of_the_class(config):
    model, pixels = decoder(config.model), images(8)
    rows = np.stack([pack(x, i % 5) for i, x in enumerate(pixels)])
    given, targets = split_rows(config.model, jax.numpy.asarray(rows))
    np.testing.assert_array_equal(given, pixels)
    assert targets[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    both = lambda m: (
        loss(m, rows, config), cross_entropy(m(pixels)[0], np.arange(8, dtype=np.int32) % 5).mean()
    )
    np.testing.assert_allclose(*in_numpy.jit(both)(model), rtol=1e-5)
    assert random_rows(config, np.random.default_rng(0)).shape == (8, 4 * 4 * 3 + 2)
    # A number that is not finite is found where it is.
    weights = jax.tree.map(lambda x: x, model)
    weights.blocks.mlp.up[...] = weights.blocks.mlp.up[...].at[1, 0, 0].set(np.inf)
    assert "the parameters blocks.mlp.up" in diagnose(weights, rows[None], config)
    sick = decoder(config.model)
    sick.patches[...] = jax.numpy.full_like(sick.patches[...], 3e38)
    said = diagnose(sick, rows[None], config)
    assert "that is not finite is resid_pre of layer 0 (from 0), in row" in said
    assert ", from token 3" in said  # the first patch


def test_what_is_watched_of_images():
    settings = WatchConfig(sink_epsilon=0.2, definition=Definition())
    model, pixels = decoder(varied(VIT, variant="kv_bias"), spread=0.5), images(3)
    found, acts = in_numpy.jit(lambda m, x: (
        watch(m, x, settings), m.residual(x, tap=lambda a: a)[1]))(model, pixels)
    norm = np.linalg.norm(acts.resid_post[:, :, 3:], axis=-1)
    np.testing.assert_allclose(found.patch_norm, np.median(norm, -1).mean(1), rtol=1e-4)
    np.testing.assert_allclose(found.patch_norm_max, norm.max(-1).mean(1), rtol=1e-4)
    q, k, v = (np.float64(x) for x in (acts.q, acts.k, acts.v))
    own = np.einsum("lbtnh,lnh->lbnt", q, np.float64(acts.extra.key[:, 0]))
    logits = np.concatenate([np.einsum("lbtnh,lbsnh->lbnts", q, k), own[..., None]], -1)
    weight = np.exp(logits[:, :, :, 3:] / 8**0.5)
    mean = (weight / weight.sum(-1, keepdims=True)).mean(-2)
    over = lambda x: (x > 0.2).mean((1, 2))
    for name, share in (("sink_rate", mean[..., 3:7].max(-1)),
                        ("sink_token_rate", mean[..., 1:3].sum(-1)), ("extra_rate", mean[..., 7])):
        np.testing.assert_allclose(getattr(found, name), over(share), atol=1e-6)
        assert 0 < over(share).max()
    size = np.linalg.norm(v[:, :, 3:].reshape(*v.shape[:2], 4, -1), axis=-1)
    drain = np.take_along_axis(size, norm.argmax(-1)[..., None], -1)[..., 0] / size.mean(-1)
    np.testing.assert_allclose(found.value_drain, drain.mean(1), rtol=1e-4)


def test_the_configuration_of_every_variant():
    for variant, registers, attention in (
        ("standard", 0, "standard"), ("registers:3", 3, "standard"), ("sink", 0, "sink"),
        ("kv_bias", 0, "kv_bias"),
    ):
        config = resolve(TrainConfig, f"configs/vit_small.py:{variant}", [])
        assert config.model.registers == registers and not config.model.block.attention.causal
        assert config.model.block.attention.variant == attention
        assert config.sequence_length == config.model.context_length == 196
    with pytest.raises(ConfigError, match="expected: registers:R"):
        resolve(TrainConfig, "configs/vit_small.py:registers:two", [])
    # The head's matrix is multiplied once for an image, not for each of its patches.
    small = flops_per_token(config.model, 1000, 196)
    wide = dataclasses.replace(config.model, embed=dataclasses.replace(
        config.model.embed, vocab_size=20))
    assert flops_per_token(wide, 1000 + 10 * 384, 196) == small


@pytest.mark.parametrize(("changes", "message"), [
    ({"sequence_length": 3}, "sequence_length is 3; expected with images: 4, their patches"),
    ({"loss_from": 1}, "loss_from is 1; expected with images: 0"),
    ({"model": dataclasses.replace(VIT, head=dataclasses.replace(
        VIT.head, present=False, bias=False))}, "head.present is False"),
    ({"model": dataclasses.replace(VIT, context_length=8, embed=dataclasses.replace(
        VIT.embed, patches=dataclasses.replace(VIT.embed.patches, grid=(2, 4))))}, "a square"),
])
def test_what_cannot_be_trained_is_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **changes)
