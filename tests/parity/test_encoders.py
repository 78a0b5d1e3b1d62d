"""Every family of image encoders against transformers and timm: odd small models and images."""

import json
import tempfile
from pathlib import Path

import in_numpy
import jax
import numpy as np
import pytest
from parity.encoder_cases import CASES
from parity.random_weights import draw, image
from safetensors.numpy import save_file

from jax_massact.families.encoder_files import ENCODERS
from jax_massact.loading import open_checkpoint
from jax_massact.nn.transformer import parameters
from jax_massact.saving import save

STORED = Path(__file__).parent / "encoders"
EACH = pytest.mark.parametrize("family", CASES)
# Of the largest value.
WITHIN = 1e-4


def models(family, folder):
    """Name, checkpoint, image and numbers of each model of a family."""
    with np.load(STORED / f"{family}.npz") as file:
        for i, case in enumerate(json.loads(str(file["cases"]))):
            path = folder / str(i)
            path.mkdir()
            (path / "config.json").write_text(json.dumps(case["config"]))
            save_file(draw(case["tensors"], case["seed"]), path / "model.safetensors")
            row = CASES[family][case["name"]]
            channels = case["config"].get("num_channels", 3)
            numbers = {kind: file[key] for kind in ("hidden", "features", "logits")
                       if (key := f"{kind}_{i}") in file}
            pixels = image(row.size, channels, case["seed"])
            yield case["name"], open_checkpoint(path), pixels, numbers


@in_numpy.jit
def run(model, images):
    x, hidden = model.residual(images, tap=lambda acts: acts.resid_post)
    found = {"hidden": jax.numpy.concatenate([model.embedded(images), hidden[:, 0]]),
             "features": model.features(x)[0]}
    return found | ({"logits": model.logits(x)[0]} if model.config.head.present else {})


def test_every_family_has_its_models():
    own = {"massact-encoder"}
    assert {encoder.model_types[0] for encoder in ENCODERS} == {*CASES, *own}
    for family, cases in CASES.items():
        with np.load(STORED / f"{family}.npz") as file:
            stored = json.loads(str(file["cases"]))
        assert [case["name"] for case in stored] == list(cases)
        assert [case["config"] for case in stored] == [case.config for case in cases.values()]


@EACH
def test_same_numbers_as_transformers_and_timm(tmp_path, family):
    for name, checkpoint, pixels, numbers in models(family, tmp_path):
        assert checkpoint.family == family
        found = run(checkpoint.load_model(), pixels)
        assert found.keys() == numbers.keys(), name
        for what, values in numbers.items():
            limit = WITHIN * np.abs(values).max()
            np.testing.assert_allclose(
                found[what], values, rtol=0, atol=limit, err_msg=f"{what} of {name}"
            )


@EACH
def test_an_encoder_is_saved_and_read_again(tmp_path, family):
    for name, checkpoint, _, _ in models(family, tmp_path):
        model = checkpoint.load_model()
        with tempfile.TemporaryDirectory() as folder:
            save(model, folder, pictures=checkpoint.pictures)
            again = open_checkpoint(folder)
            assert again.config == model.config and again.pictures == checkpoint.pictures, name
            read = parameters(again.load_model())
        for parameter, values in parameters(model).items():
            np.testing.assert_array_equal(read[parameter], values, err_msg=parameter)
