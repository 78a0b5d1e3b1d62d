"""`massact probe` on an encoder of images in which one patch is made an outlier."""

import base64
import functools
import io
import json

import numpy as np
import pytest
from json_schema import violations
from nn.test_images import VIT
from PIL import Image
from rich.console import Console
from tiny_models import LLAMA, decoder

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import ConfigError, WeightsError
from jax_massact.nn.transformer import from_parameters, parameters
from jax_massact.report.encode import to_json
from jax_massact.report.images import marked_uri
from jax_massact.saving import save
from jax_massact.studies import frame
from jax_massact.studies.inputs import ImageInputs
from jax_massact.studies.probe import report
from jax_massact.studies.probe.images import run_images
from jax_massact.studies.probe.result import ProbeResult
from jax_massact.studies.probe.settings import ProbeConfig

ROW, COLUMN, DIM = 1, 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model that writes dimension 3 where a patch is white, and three pictures of one such."""
    path = tmp_path_factory.mktemp("encoder")
    model = decoder(VIT, spread=0.1)
    weights = parameters(model)
    white = np.zeros_like(weights["patches"])
    white[:, DIM] = 100.0
    model = from_parameters(VIT, weights | {"patches": white + weights["patches"]})
    save(model, path / "model", pictures=Preprocessing(edge=8, crop=8))
    (path / "pictures").mkdir()
    for i in range(3):
        pixels = np.full((8, 8, 3), 127 + (i == 2), np.uint8)
        pixels[2 * ROW : 2 * ROW + 2, 2 * COLUMN : 2 * COLUMN + 2] = 255
        Image.fromarray(pixels).save(path / "pictures" / f"{i}.png")
    return path


@functools.cache
def probed(path):
    config = ProbeConfig(images=str(path / "pictures"), batch_size=2, top_k=3)
    prepared = frame.prepare_any(str(path / "model"), config)
    seen = []
    outcome = run_images(prepared, config, lambda done, total: seen.append((done, total)))
    assert seen == [(2, 3), (3, 3)]
    return prepared, outcome


def test_what_is_massive_is_named_by_its_patch(folder):
    _, outcome = probed(folder)
    result = outcome.result
    assert violations(json.loads(to_json(result)), ProbeResult) == []
    assert (result["data"]["sequences"], result["data"]["sequence_length"]) == (3, 19)
    (record,) = [r for r in result["massive"] if r["dim"] == DIM]
    assert record["strict"] and record["kinds"] == {"cls": 0, "register": 0, "patch": 1}
    name = f"patch {ROW},{COLUMN}"
    assert record["tokens"] == [{"token": name, "kind": "patch", "sequences": 3}]
    assert record["positions"] == [{"position": 3 + 4 * ROW + COLUMN, "sequences": 3}]
    assert result["layers"][0]["top"][0]["token"] == name


def test_outlier_patches_norms_and_attention(folder):
    _, outcome = probed(folder)
    images = outcome.result["images"]
    assert (images["grid"], images["registers"], images["cls"]) == ([4, 4], 2, True)
    assert [(p["row"], p["column"]) for p in images["outliers"]] == [(ROW, COLUMN)] * 3
    assert {p["image"] for p in images["outliers"]} == {"0.png", "1.png", "2.png"}
    assert images["outlier_share"] == pytest.approx(1 / 16)
    # The patch is unlike those around it.
    cosine = np.mean([p["cosine"] for p in images["outliers"]])
    assert images["outlier_cosine"] == pytest.approx(cosine, abs=1e-6)
    assert images["outlier_cosine"] < images["other_cosine"]
    for layer in images["layers"]:
        assert layer["patches_above"]["150"] == layer["patches_above"]["outliers"] == 1
        assert layer["norm"]["patch"]["max"] > 150 > 30 > layer["norm"]["cls"]["max"]
        for shares in layer["attention"].values():
            total = sum(shares[kind] for kind in ("cls", "register", "patch", "extra"))
            assert total == pytest.approx(1, abs=1e-5) and 0 < shares["outlier"] < shares["patch"]


def test_the_page_shows_the_pictures(folder):
    _, outcome = probed(folder)
    page = report.page(outcome.result, *outcome.pictures)
    layers = len({1, outcome.result["images"]["outlier_layer"]})
    assert page.count("<img") == 3 + 2 + 2 + 2 * layers  # pictures, norms, CLS, registers
    assert "Framed: outlier patches after block" in page and "patch 1,2" in page
    charts = report.charts(outcome.result, *outcome.pictures)
    assert tuple(chart.name for chart in charts) == report.FIGURES
    console = Console(file=io.StringIO(), width=100)
    report.show(outcome.result, console)
    text = console.file.getvalue()
    assert "3 pictures of pictures, 8 x 8 pixels: CLS, 2 registers, 4 x 4 patches" in text
    assert "Outlier patches after block" in text and "L2 norm before the final norm >" in text
    assert "6% of the patches are outliers" in text


def test_a_frame_stands_around_the_marked_patch():
    mask = np.zeros((4, 4), bool)
    mask[ROW, COLUMN] = True
    data = marked_uri(np.zeros((8, 8, 3), np.uint8), mask, side=80).partition(",")[2]
    red = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))[..., 0] > 100
    rows, columns = np.nonzero(red)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (20, 39, 40, 59)
    assert not red[23:37, 43:57].any()


def test_positions_have_names_and_kinds():
    inputs = ImageInputs(None, None, (2, 3), True, 1)
    assert inputs.names(0) == ["CLS", "register 0", "patch 0,0", "patch 0,1", "patch 0,2",
                               "patch 1,0", "patch 1,1", "patch 1,2"]
    assert [inputs.kind_at(0, i) for i in range(3)] == ["cls", "register", "patch"]
    bare = ImageInputs(None, None, (2, 3), False, 0)
    assert bare.names(0, 2) == ["patch 0,0", "patch 0,1"] and bare.length == 6


def test_what_does_not_fit_is_refused(tmp_path, folder):
    save(decoder(LLAMA), tmp_path / "text")
    with pytest.raises(ConfigError, match="images is 'x'; .* takes text"):
        frame.prepare_any(str(tmp_path / "text"), ProbeConfig(images="x"))
    with pytest.raises(WeightsError, match="is an encoder of images; expected: a model of text"):
        frame.prepare(str(folder / "model"), ProbeConfig(images=str(folder / "pictures")))
    with pytest.raises(ConfigError, match="image_size is 7; expected: a multiple of 2"):
        frame.prepare_any(str(folder / "model"), ProbeConfig(image_size=7))
