"""Pictures: where they come from, how they are cut, and what a folder's files say of it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jax_massact.data.images import decoded, pictures
from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import ConfigError, DataError
from jax_massact.families import clip, dinov2, timm, vit
from jax_massact.families.encoder_files import _pictures
from jax_massact.weights.settings import Settings

SQUARE = Preprocessing(edge=4, crop=4)


def draw(path: Path, value: int, size=(6, 8)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, np.uint8)).save(path)
    return path


def test_the_shorter_side_is_resized_and_the_middle_is_cut_out():
    """Against PIL, step by step."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41, 3), dtype=np.uint8)
    rule = Preprocessing(edge=20, crop=14)
    image = Image.fromarray(pixels).resize((int(20 * 41 / 30), 20), Image.Resampling.BICUBIC)
    left, top = (27 - 14) // 2, (20 - 14) // 2
    expected = np.asarray(image)[top : top + 14, left : left + 14]
    np.testing.assert_array_equal(rule([pixels])[0], expected)
    # Upright pictures, too.
    turned = rule([pixels.transpose(1, 0, 2)])[0]
    assert turned.shape == (14, 14, 3) and (turned != rule([pixels])[0]).any()
    squash = Preprocessing(edge=14, crop=14, resize="squash", filter="bilinear")
    expected = Image.fromarray(pixels).resize((14, 14), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(squash([pixels])[0], np.asarray(expected))
    assert rule.resized(28, 14) == Preprocessing(edge=40, crop=28)
    with pytest.raises(ConfigError, match="image_size is 30; expected: a multiple of 14"):
        rule.resized(30, 14)


def test_grey_and_transparent_pictures_become_rgb(tmp_path):
    grey = np.full((4, 4), 7, np.uint8)
    np.testing.assert_array_equal(SQUARE([grey, grey[..., None]]), np.full((2, 4, 4, 3), 7))
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "clear.png")
    assert (SQUARE([tmp_path / "clear.png"]) == 255).all()
    with pytest.raises(DataError, match="a ndarray cannot be read as a picture"):
        SQUARE([np.zeros((2, 2, 5))])


def test_folders_of_pictures(tmp_path):
    for name, value in (("b.png", 2), ("a.png", 1), ("c.JPG", 3)):
        draw(tmp_path / "flat" / name, value)
    (tmp_path / "flat" / "notes.txt").write_text("no picture")
    found = pictures(str(tmp_path / "flat"), 2)
    assert list(found.names) == ["a.png", "b.png"] and not found.labels
    # The last batch is what is left; both are whole.
    batches = list(decoded(pictures(str(tmp_path / "flat"), 9), SQUARE, 2))
    assert [batch.shape for batch in batches] == [(2, 4, 4, 3), (1, 4, 4, 3)]
    assert batches[0][:, 0, 0, 0].tolist() == [1, 2]
    one = pictures(str(tmp_path / "flat" / "a.png"), 9)
    assert (len(one), one.description) == (1, "a.png")


def test_of_classes_each_has_its_turn(tmp_path):
    for name in ("cat/1.png", "cat/2.png", "cat/3.png", "dog/1.png", "empty/notes.txt"):
        draw(tmp_path / name, 1) if name.endswith("png") else (
            (tmp_path / "empty").mkdir(), (tmp_path / name).write_text("")
        )
    found = pictures(str(tmp_path), 3)
    assert list(found.names) == ["cat/1.png", "dog/1.png", "cat/2.png"]
    assert (list(found.labels), list(found.classes)) == ([0, 1, 0], ["cat", "dog"])


def test_no_pictures_are_an_error(tmp_path):
    for source in ("", str(tmp_path / "nowhere")):
        with pytest.raises(DataError, match="there are no pictures in"):
            pictures(source, 1)
    with pytest.raises(DataError, match="holds no picture; expected: files that end in .jpg"):
        pictures(str(tmp_path), 1)
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match="broken.png cannot be read as a picture"):
        list(decoded(pictures(str(tmp_path), 1), SQUARE, 1))


@pytest.mark.parametrize(("stated", "rule"), [
    (None, Preprocessing(edge=256, crop=224)),
    ({"size": {"shortest_edge": 30}, "crop_size": {"height": 20, "width": 20}, "resample": 3,
      "do_center_crop": True}, Preprocessing(edge=30, crop=20)),
    ({"size": {"height": 32, "width": 32}, "resample": 2},
     Preprocessing(edge=32, crop=32, resize="squash", filter="bilinear")),
    ({"size": 32, "do_resize": True}, Preprocessing(edge=32, crop=32, resize="squash")),
    ({"size": 32, "do_center_crop": True, "crop_size": 28}, Preprocessing(edge=32, crop=28)),
])  # fmt: skip
def test_the_preprocessor_of_a_folder(tmp_path, stated, rule):
    if stated is not None:
        stated |= {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(stated))
    fields, found = _pictures(dinov2.FAMILY, tmp_path, Settings({}, tmp_path), {})
    assert found == rule
    expected = (0.485, 0.456, 0.406) if stated is None else (0.1, 0.2, 0.3)
    assert fields["embed.patches.mean"] == expected


def test_the_rule_of_timm_and_of_every_family(tmp_path):
    cfg = {"input_size": [3, 28, 28], "crop_pct": 0.9, "interpolation": "bilinear",
           "mean": [0.1, 0.1, 0.1], "std": [0.2, 0.2, 0.2]}
    fields, found = _pictures(
        timm.FAMILY, tmp_path, Settings({"pretrained_cfg": cfg}, tmp_path), {}
    )
    assert found == Preprocessing(edge=31, crop=28, filter="bilinear")
    assert fields["embed.patches.std"] == (0.2, 0.2, 0.2)
    for family in (vit.FAMILY, clip.CLIP, clip.SIGLIP):
        assert _pictures(family, tmp_path, Settings({}, tmp_path), {})[1] == family.pictures
