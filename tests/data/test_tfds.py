"""Data sets that tensorflow_datasets really prepared, small ones of texts."""

import io
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from jax_massact.data.images import pictures
from jax_massact.data.stream import open_stream
from jax_massact.data.text import documents
from jax_massact.errors import DataError

TEXT, NUMBER = tfds.features.Text(), tfds.features.Scalar(np.int64)
FEATURES = {
    "tales": {"text": TEXT, "title": TEXT, "n": NUMBER},
    "bodies": {"body": TEXT, "n": NUMBER},
    "numbers": {"n": NUMBER, "tags": tfds.features.Sequence(TEXT)},
    "digits": {
        "image": tfds.features.Image(shape=(4, 4, 1), encoding_format="png"),
        "label": tfds.features.ClassLabel(names=["even", "odd"]),
    },
}
SIZES = {"train": 5, "test": 2}


def record(name: str, split: str, i: int) -> dict[str, Any]:
    values = {"text": f"{split} tale {i} \u00e9", "title": f"title {i}", "body": f"body {i}"}
    values |= {"n": i, "tags": ["a", "b"], "label": i % 2}
    if name == "digits":  # as a file: TFDS itself encodes with TensorFlow
        values["image"] = io.BytesIO()
        Image.fromarray(np.full((4, 4), 10 * i, np.uint8)).save(values["image"], "PNG")
        values["image"].seek(0)
    return {feature: values[feature] for feature in FEATURES[name]}


def builder_of(name: str) -> type[tfds.core.GeneratorBasedBuilder]:
    def info(self: Any) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(FEATURES[name])
        return tfds.core.DatasetInfo(builder=self, features=features)

    def generate(self: Any, split: str) -> Any:
        return ((i, record(name, split, i)) for i in range(SIZES[split]))

    body = {
        "VERSION": tfds.core.Version("1.0.0"),
        "_info": info,
        "_generate_examples": generate,
        "_split_generators": lambda self, _: {split: generate(self, split) for split in SIZES},
    }
    with tfds.core.registered.skip_registration():
        return type(name.capitalize(), (tfds.core.GeneratorBasedBuilder,), body)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tfds")
    (folder / "notes.txt").write_text("another file")
    for name in FEATURES:
        builder_of(name)(data_dir=folder, file_format="array_record").download_and_prepare()
    return folder


@pytest.fixture
def here(data: Path) -> Iterator[Path]:
    """The folder that data sets are looked up in by name."""
    tfds.core.add_data_dir(data)
    yield data
    tfds.core.utils.file_utils.clear_registered_data_dirs()


def expected(split: str) -> set[str]:
    return {f"{split} tale {i} \u00e9" for i in range(SIZES[split])}


def test_a_data_set_by_name_and_split(here: Path) -> None:
    source = documents("tfds:tales")
    assert set(source.texts) == expected("train") and len(list(source.texts)) == 5
    test = documents("tfds:tales:test")
    assert set(test.texts) == expected("test")
    assert (source.description, test.description) == ("tales (train)", "tales (test)")
    assert source.stamp is not None and source.stamp != test.stamp
    assert test.stamp == documents("tfds:tales:test").stamp


def test_images_and_their_labels(here: Path) -> None:
    found = pictures("tfds:digits", 4)
    assert (len(found), found.description, found.classes) == (4, "digits (train)", ["even", "odd"])
    values = [int(image[0, 0, 0]) // 10 for image in found.items]
    assert [v % 2 for v in values] == list(found.labels) and len(set(values)) == 4
    assert list(found[1:3].labels) == list(found.labels)[1:3]
    assert len(pictures("tfds:digits:test", 9)) == 2
    with pytest.raises(DataError, match="has the features n, text, title; expected: image"):
        pictures("tfds:tales", 1)


@pytest.mark.parametrize("place", ["tales", "tales/1.0.0"])
def test_a_data_set_by_its_folder(data: Path, place: str) -> None:
    assert set(documents(f"tfds:{data / place}").texts) == expected("train")
    assert set(documents(f"tfds:{data / place}:test").texts) == expected("test")


def test_the_feature_is_the_field_the_only_text_or_named(data: Path) -> None:
    assert set(documents(f"tfds:{data}/tales", "title").texts) == {f"title {i}" for i in range(5)}
    assert set(documents(f"tfds:{data}/bodies").texts) == {f"body {i}" for i in range(5)}


def test_a_data_set_is_trained_on(data: Path) -> None:
    made = open_stream(f"tfds:{data}/tales", seed=0, batch_size=3, sequence_length=8,
                       validation_share=0.4)
    text = b"\0".join([*(t.encode() for t in documents(f"tfds:{data}/tales").texts), b""])
    for row in made.batch(0):
        assert bytes(np.where(row == 256, 0, row).astype(np.uint8)) in text
    assert made.description.startswith(f"{data}/tales (train), bytes")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:", "names no data set"),
        ("tfds:none", "text source tfds:none: Dataset none not found"),
        ("tfds:{data}/tales:dev", "no split 'dev'; expected: one of test, train$"),
        ("tfds:{data}/numbers", "no text in a feature 'text'; .* hold a text: there are none$"),
        ("tfds:{data}", "4 prepared data sets in this folder .*; expected: a folder with one"),
        ("tfds:{data}/tales/1.0.0/..", None),
    ],
)
def test_what_cannot_be_read_is_named(data: Path, source: str, message: str | None) -> None:
    source = source.format(data=data)
    if message is None:
        assert set(documents(source).texts) == expected("train")
        return
    with pytest.raises(DataError, match=message):
        documents(source)


def test_another_feature_is_named(data: Path) -> None:
    with pytest.raises(DataError, match="in a feature 'story'; expected: .*: text, title$"):
        documents(f"tfds:{data}/tales", "story")


def test_a_data_set_of_another_format(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data / "tales", tmp_path / "tales")
    info = tmp_path / "tales" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    with pytest.raises(DataError, match="record by record .*--file_format=array_record"):
        documents(f"tfds:{tmp_path}/tales")


def test_tfds_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match="needs tensorflow_datasets.*pip install"):
        documents("tfds:tales")
