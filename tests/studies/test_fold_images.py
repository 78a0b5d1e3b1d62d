"""`massact fold` on an encoder of images, one register of which carries a massive activation."""

import io
import json

import in_numpy
import jax.numpy as jnp
import numpy as np
import pytest
from json_schema import violations
from nn.test_images import VIT, images
from PIL import Image
from rich.console import Console
from tiny_models import decoder, varied

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import ConfigError, DataError
from jax_massact.loading import load_encoder
from jax_massact.measure.registers import fold_registers, register_means
from jax_massact.nn.transformer import from_parameters, parameters
from jax_massact.report.encode import to_json
from jax_massact.saving import save
from jax_massact.studies import frame
from jax_massact.studies.fold import report
from jax_massact.studies.fold.images_result import FoldImagesResult
from jax_massact.studies.fold.run import run_images
from jax_massact.studies.fold.settings import FoldConfig
from jax_massact.studies.image_scores import cosines
from jax_massact.studies.medium import MediumConfig


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    path = tmp_path_factory.mktemp("fold")
    weights = parameters(decoder(VIT, spread=0.3))
    prefix = np.array(weights["prefix"])
    prefix[1, 5] = 3000.0
    model = from_parameters(VIT, weights | {"prefix": jnp.asarray(prefix)})
    save(model, path / "model", pictures=Preprocessing(edge=4, crop=4))
    (path / "pictures").mkdir()
    for i, pixels in enumerate(images(5)):
        Image.fromarray(pixels).save(path / "pictures" / f"{i}.png")
    config = FoldConfig(
        images=str(path / "pictures"), sequences=2, calibration_sequences=3, batch_size=2
    )
    outcome = run_images(frame.prepare_any(str(path / "model"), config), config)
    outcome.save(path / "out")
    return path, model, outcome.result


def test_the_folded_model_is_the_fixed_one_and_nothing_massive_is_left(ran):
    _, model, result = ran
    assert violations(json.loads(to_json(result)), FoldImagesResult) == []
    assert result["unchanged"] and max(result["difference"].values()) <= 1e-5
    assert (result["registers"], result["calibration"]) == (2, 3)
    assert result["largest_before"] > 3000 > 100 > result["largest_after"]
    assert {r["dim"] for r in result["massive_before"] if r["strict"]} == {5}
    assert not [r for r in result["massive_after"] if r["strict"]]
    # The distance to the unedited model, by hand: means of three pictures, the output of two.
    pixels = images(5)
    folded = in_numpy.jit(lambda m: fold_registers(m, register_means(m, pixels[:3])))(model)
    features = in_numpy.jit(lambda m: m.features(m.residual(pixels[3:])[0]))
    new, old = (np.float64(features(m)) for m in (folded, model))
    assert result["folded"]["features"]["mean"] == pytest.approx(cosines(new, old).mean())
    moved = np.linalg.norm(new - old, axis=1) / np.linalg.norm(old, axis=1)
    assert result["distance"]["features"]["max"] == pytest.approx(moved.max(), rel=1e-3)
    assert moved.max() > 1e-4  # it does move


def test_the_folded_model_is_written_and_read(ran):
    path, model, result = ran
    assert result["saved_to"] == "model"
    found, prepare = load_encoder(path / "out")
    assert prepare == Preprocessing(edge=4, crop=4)
    assert found.config.block.attention.variant == "kv_bias" and found.config.registers == 0
    means = in_numpy.jit(register_means)(model, images(5)[:3])
    folded = parameters(in_numpy.jit(fold_registers)(model, means))
    for name, x in parameters(found).items():
        np.testing.assert_allclose(x, folded[name], rtol=1e-4, atol=1e-5)


def test_the_report(ran):
    _, _, result = ran
    page, console = report.page(result), Console(file=io.StringIO(), width=100)
    report.show(result, console)
    text = " ".join(console.file.getvalue().split())
    assert "The 2 registers are now 2 keys k' and values v' in every head" in text
    assert "Massive (strict) before: dim 5; nothing is left." in text
    assert "2 pictures of pictures; the means are over 3 other pictures" in text
    assert "Folded and fixed" in page
    result = result | {"unchanged": False}
    assert "differs by more than is allowed" in report.page(result)


def test_what_cannot_be_folded_is_refused(ran, tmp_path):
    path, _, _ = ran
    one = FoldConfig(images=str(path / "pictures" / "0.png"))
    with pytest.raises(DataError, match="holds 1 picture; expected: at least two"):
        run_images(frame.prepare_any(str(path / "model"), one), one)
    medium = FoldConfig(images=str(path), medium=MediumConfig(sequences=1))
    with pytest.raises(ConfigError, match="medium.sequences is 1; expected with images: 0"):
        frame.prepare_any(str(path / "model"), medium)
    save(decoder(varied(VIT, registers=0)), tmp_path / "none")
    with pytest.raises(ConfigError, match="the model has no registers"):
        frame.prepare_any(str(tmp_path / "none"), FoldConfig(images=str(path)))
