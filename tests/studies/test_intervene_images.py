"""`massact intervene` on an encoder of images in which one patch carries a massive activation."""

import io
import json

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from json_schema import violations
from nn.test_images import VIT
from PIL import Image
from rich.console import Console
from safetensors.numpy import save_file
from tiny_models import decoder

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import DataError
from jax_massact.measure.registers import fix_registers, registers_of
from jax_massact.nn.edits import Edits
from jax_massact.nn.transformer import from_parameters, parameters
from jax_massact.report.encode import to_json
from jax_massact.saving import save
from jax_massact.studies import frame
from jax_massact.studies.image_scores import (
    cosines,
    knn_accuracy,
    linear_accuracy,
    read_texts,
    zero_shot_accuracy,
)
from jax_massact.studies.intervene import report
from jax_massact.studies.intervene.images import run_images
from jax_massact.studies.intervene.images_result import ImageInterveneResult
from jax_massact.studies.settings import InterveneConfig

DIM = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that writes dimension 3 where a patch is light, and two classes of pictures."""
    path = tmp_path_factory.mktemp("encoder")
    model = decoder(VIT, spread=0.1)
    weights = parameters(model)
    light = np.array(weights["patches"])
    light[:, DIM] = 100.0
    save(from_parameters(VIT, weights | {"patches": jax.numpy.asarray(light)}), path / "model",
         pictures=Preprocessing(edge=8, crop=8))
    for i, name in enumerate(("bright/0", "bright/1", "dim/0")):
        pixels = np.full((8, 8, 3), 127, np.uint8)
        pixels[2:4, 2 * i : 2 * i + 2] = 255 if "bright" in name else 180
        (path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path / "pictures" / f"{name}.png")
    return path


@pytest.fixture(scope="module")
def ran(folder):
    config = InterveneConfig(images=str(folder / "pictures"), batch_size=2, layers="0")
    prepared = frame.prepare_any(str(folder / "model"), config)
    return prepared, run_images(prepared, config).result


def test_the_scores_are_those_of_the_changes_made_by_hand(ran):
    prepared, result = ran
    assert violations(json.loads(to_json(result)), ImageInterveneResult) == []
    assert result["classes"] == 2 and result["data"]["sequences"] == 3
    target = next(t for t in result["targets"] if t["dim"] == DIM)
    assert (target["layer"], target["kind"], target["activations"]) == (0, "strict", 3)
    assert target["tokens"] == {"patch 1,0": 1, "patch 1,1": 1, "patch 1,2": 1}
    model = prepared.checkpoint.load_model()
    images = prepared.inputs.prepare(prepared.inputs.pictures.items)
    # bright/0, dim/0, bright/1: of classes one each in turn.
    at = 3 + 4 + np.array([0, 2, 1])
    tokens = np.arange(19) == at[:, None]
    assert [(t["dim"], t["activations"]) for t in result["targets"]] == [(DIM, 3)]

    @in_numpy.jit
    def features(value):
        edits = Edits.set_to([0], tokens[None], [DIM], value)
        x, seen = model.residual(images, edits=edits, tap=lambda acts: acts.resid_post)
        plain, before = model.residual(images, tap=lambda acts: acts.resid_post)
        return model.features(x), model.features(plain), before[0]

    zero, plain, before = features(np.zeros((1, 3, 1), np.float32))
    own = np.asarray(before)[np.arange(3), at, DIM]
    shuffled = features(own[None, [1, 2, 0], None])[0]
    mean = features((own.sum() - own)[None, :, None] / 2)[0]
    for name, expected in (("zero", zero), ("shuffle", shuffled), ("mean", mean)):
        found, wanted = result["scores"][name]["features"], cosines(expected, plain)
        assert found["mean"] == pytest.approx(wanted.mean(), abs=1e-5), name
        assert found["min"] == pytest.approx(wanted.min(), abs=1e-5)
    original = result["scores"]["original"]
    assert original["features"]["min"] == pytest.approx(1, abs=1e-6)
    assert original["top1_same"] == 1 and original["knn"] is not None
    assert result["scores"]["control_random"]["features"]["mean"] < 1 - 1e-6
    sizes = np.abs(np.asarray(before)[np.arange(3), at]).sum(0)
    assert target["next_dim"] == np.argsort(-sizes)[1] and np.argmax(sizes) == DIM


def test_the_report_of_images(ran):
    _, result = ran
    page, console = report.page(result), Console(file=io.StringIO(), width=160)
    report.show(result, console)
    text = console.file.getvalue()
    for said in ("set to another picture's value", "a random vector of the same length added"):
        assert said in text and said.replace("'", "&#39;") in page
    assert "3 pictures of pictures (2 classes), 19 tokens each, 2 classes" in text
    assert [chart.name for chart in report.charts(result)] == ["similarity"]
    assert "Massive activations (strict): dim 3 after block 0." in text


def test_registers_are_fixed_at_every_blocks_input(ran):
    prepared, result = ran
    model = prepared.checkpoint.load_model()
    images = prepared.inputs.prepare(prepared.inputs.pictures.items)

    @in_numpy.jit
    def features(change):
        """The features where registers are `change` of those of all pictures."""
        own = registers_of(model, images)
        edits = fix_registers(model.config, change(own), 19)
        plain = model.features(model.residual(images)[0])
        return model.features(model.residual(images, edits=edits)[0]), plain

    for name, change in (
        ("registers_zero", jnp.zeros_like), ("registers_shuffle", lambda x: jnp.roll(x, 1, 1)),
        ("registers_mean", lambda x: (x.sum(1, keepdims=True) - x) / 2),
    ):
        expected = cosines(*features(jax.tree_util.Partial(change)))
        found = result["scores"][name]["features"]
        assert found["mean"] == pytest.approx(expected.mean(), abs=1e-5), name
        assert found["min"] == pytest.approx(expected.min(), abs=1e-5)
    assert result["scores"]["registers_zero"]["features"]["mean"] < 1 - 2e-5
    page = report.page(result)
    assert "Registers fixed at every block&#39;s input: to zero" in page


def test_the_text_of_the_own_class_is_the_nearest(folder, ran, tmp_path):
    prepared, result = ran
    assert "zero_shot" not in result["scores"]["original"]
    model = prepared.checkpoint.load_model()
    images = prepared.inputs.prepare(prepared.inputs.pictures.items)
    logits = np.asarray(in_numpy.jit(lambda m, x: m(x)[0])(model, images))
    # bright/0, dim/0, bright/1: the text of each class is what one of its pictures is.
    texts = {"bright": logits[0], "dim": logits[1]}
    assert zero_shot_accuracy(logits, np.stack([*texts.values()]), np.array([0, 1, 0])) > 0.6
    assert zero_shot_accuracy(logits, np.stack([*texts.values()]), np.array([1, 0, 1])) < 0.4
    save_file(texts, tmp_path / "texts.safetensors")
    found = read_texts(str(tmp_path / "texts.safetensors"), ["dim", "bright"], 5)
    np.testing.assert_array_equal(found, logits[[1, 0]])
    for classes, width, message in ((["dim", "cat"], 5, "has no vector for cat"), ([], 5, "folder"),
                                    (["dim"], 6, r"has the shape \(5,\); expected: \(6,\)")):
        with pytest.raises(DataError, match=message):
            read_texts(str(tmp_path / "texts.safetensors"), classes, width)
    with pytest.raises(DataError, match="text_embeddings: .*none"):
        read_texts(str(tmp_path / "none"), ["dim"], 5)


def test_one_picture_is_too_few(folder):
    config = InterveneConfig(images=str(folder / "pictures" / "bright" / "0.png"))
    with pytest.raises(DataError, match="holds 1 picture; expected: at least two"):
        run_images(frame.prepare_any(str(folder / "model"), config), config)


def test_neighbours_and_a_linear_classifier():
    rng = np.random.default_rng(0)
    labels = np.arange(40) % 2
    labels = np.where(np.arange(40) < 20, labels, 1 - labels)  # both in both halves
    apart = rng.standard_normal((40, 6)) + 8 * np.eye(6)[labels]
    assert knn_accuracy(apart, labels) == linear_accuracy(apart, apart, labels) == 1
    # Features of which the classes have changed places.
    assert linear_accuracy(apart, apart[:, [1, 0, 2, 3, 4, 5]], labels) == 0
    assert 0.2 < knn_accuracy(rng.standard_normal((40, 6)), labels) < 0.8
    # The nearer of two neighbours outweighs the other.
    three = np.array([[1.0, 0.0], [0.99, 0.1], [-0.5, 1.0]])
    assert knn_accuracy(three, np.array([0, 0, 1])) == pytest.approx(2 / 3)
    np.testing.assert_allclose(cosines(three, 5 * three), 1)
