"""`massact registers` on an encoder in which one MLP unit makes an outlier of the white patch."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from json_schema import violations
from nn.test_images import VIT
from PIL import Image
from rich.console import Console
from tiny_models import LLAMA, decoder

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import ConfigError
from jax_massact.nn.transformer import from_parameters, parameters
from jax_massact.report.encode import to_json
from jax_massact.saving import save
from jax_massact.studies import frame
from jax_massact.studies.registers import report
from jax_massact.studies.registers.outliers import find_outliers
from jax_massact.studies.registers.result import RegistersResult
from jax_massact.studies.registers.run import run
from jax_massact.studies.registers.settings import RegistersConfig

UNIT, DIM = 7, 5


def planted():
    """Every patch has 50 in dimension 8; a white one also 20 in dimension 3, which the unit reads
    to write 600."""
    own = {name: np.array(x) for name, x in parameters(decoder(VIT, spread=0.05)).items()}
    own["patches_bias"][8] = 50
    own["patches"][:, 3] = 20 / 12
    own["blocks.mlp.up"][0, 3, UNIT], own["blocks.mlp.up_bias"][0, UNIT] = 10, -6
    own["blocks.mlp.down"][0, UNIT, DIM] = 100
    own["blocks.mlp_gain"][0] = 1
    return from_parameters(VIT, {name: jnp.asarray(x) for name, x in own.items()})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("registers")
    save(planted(), path / "model", pictures=Preprocessing(edge=8, crop=8))
    for i in range(5):
        pixels = np.full((8, 8, 3), 127, np.uint8)
        if i != 4:
            pixels[2 * (i // 2) : 2 * (i // 2) + 2, 2 * i : 2 * i + 2] = 255
        name = path / "pictures" / "ab"[i % 2] / f"{i}.png"
        name.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(name)
    return path


@pytest.fixture(scope="module")
def outcome(folder):
    config = RegistersConfig(
        images=str(folder / "pictures"), sequences=2, calibration_sequences=3, batch_size=2,
        neurons=(2, 1), draws=2,
    )
    return run(frame.prepare_any(str(folder / "model"), config), config)


def test_the_neuron_is_found_and_moved(outcome):
    result = outcome.result
    assert violations(json.loads(to_json(result)), RegistersResult) == []
    assert (result["kind"], result["layer"], result["begins"]) == ("outliers", 1, 0)
    assert (result["calibration"], result["data"]["sequences"], result["chosen"]) == (3, 2, 3)
    (neuron,) = result["neurons"]  # the first number of neurons leaves nothing
    assert (neuron["block"], neuron["unit"]) == (0, UNIT)
    assert neuron["score"] > 5 and neuron["elsewhere"] < 0.1
    assert [t["neurons"] for t in result["trials"]] == [0, 1]
    assert result["trials"][0]["outliers"] == pytest.approx(1 / 16)
    assert result["trials"][1]["outliers"] == 0
    after = {name: arm["norms"][1] for name, arm in result["arms"].items()}
    # Of the two other pictures, one has a white patch.
    for name in ("original", "appended", "random", "random_zeroed"):
        assert after[name]["outliers"] == pytest.approx(1 / 32)
    for name in ("register", "kv_bias", "zeroed"):
        assert after[name]["outliers"] == 0 and after[name]["max"] < 60
    assert after["original"]["max"] == pytest.approx((600 + 54) / 2, rel=0.2)
    # The token has what the patch had, where there is one.
    assert after["register"]["register"] == pytest.approx(300, rel=0.2)
    assert after["original"]["register"] is None and after["zeroed"]["attention"] is None
    assert 0 < after["kv_bias"]["attention"] < 1
    scores = {name: arm["score"] for name, arm in result["arms"].items()}
    assert scores["original"]["features"]["min"] == pytest.approx(1)
    assert result["arms"]["register"]["patches"]["mean"] < 0.999
    assert scores["original"]["knn"] is not None and scores["register"]["top1_same"] is not None


def test_the_report(outcome):
    page, console = report.page(outcome.result, *outcome.pictures), Console(
        file=io.StringIO(), width=110
    )
    report.show(outcome.result, console)
    text = " ".join(console.file.getvalue().split())
    assert "3% of the patches are outliers after block 1" in text
    assert "neurons were found on 3 pictures; the paper takes 100 to 1,000" in text
    assert page.count("<img") == 2 * 4 and "Norm maps, before and after" in page
    (chart,) = report.charts(outcome.result)
    assert chart.name in report.FIGURES


def test_without_outliers_the_largest_patch_is_taken():
    norms = np.ones((2, 3, 16))
    # What stands out early is not looked for.
    norms[0, :, 5], norms[1, :, 4] = 50, 1.9
    config = RegistersConfig(images="x")
    found = find_outliers(norms, config)
    assert (found.kind, found.layer, found.begins, found.share) == ("largest", 1, 1, 0)
    np.testing.assert_array_equal(found.at, np.arange(16) == [[4]] * 3)
    norms[1, :2, 4] = 30
    found = find_outliers(norms, RegistersConfig(images="x", layer=0, last_block=1))
    assert (found.kind, found.layer, found.last) == ("outliers", 0, 1)
    assert find_outliers(norms, config).share == pytest.approx(2 / 48)


def test_what_cannot_be_is_refused(tmp_path, folder):
    save(decoder(LLAMA), tmp_path / "text")
    with pytest.raises(ConfigError, match="takes text; expected for registers: an encoder"):
        frame.prepare_any(str(tmp_path / "text"), RegistersConfig())
    for wrong, message in (({"neurons": (7,)}, "neurons is 7"), ({"layer": 2}, "layer is 2"),
                           ({"neurons": ()}, "neurons is ()")):
        with pytest.raises(ConfigError, match=message.replace("(", r"\(").replace(")", r"\)")):
            frame.prepare_any(str(folder / "model"), RegistersConfig(**wrong, images=str(folder)))
