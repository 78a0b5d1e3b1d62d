"""Pictures with labels for training: what a row holds, the order, the views, the sources."""

import numpy as np
import pytest
from PIL import Image

from jax_massact.data.images import pictures
from jax_massact.data.labelled import on_canvas, open_labelled, pack, random_crop, unpack
from jax_massact.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Forty pictures of one colour each, which is their number; the class is that number mod 3."""
    path = tmp_path_factory.mktemp("labelled") / "colors.npz"
    numbers = np.arange(40, dtype=np.uint8)
    images = np.broadcast_to(numbers[:, None, None], (40, 6, 6))
    np.savez(path, images=images, labels=numbers % 3, classes=np.array(["a", "b", "c"]))
    return path


def opened(source, **changes):
    return open_labelled(str(source), **({"side": 4, "view": "whole", "seed": 0, "batch_size": 9}
                                         | changes))


def numbers(rows):
    images, labels = unpack(rows, 4)
    assert (images == images[:, :1, :1, :1]).all()
    found = images[:, 0, 0, 0].astype(int)
    np.testing.assert_array_equal(labels, found % 3)
    return found


def test_an_epoch_shows_every_picture_for_training_once(source):
    stream = opened(source)
    assert (stream.vocab_size, stream.classes, stream.validation_size) == (3, ["a", "b", "c"], 4)
    first, second = (np.concatenate([numbers(stream.rows(s, 0, 9)) for s in range(e, e + 4)])
                     for e in (0, 4))
    held_out = numbers(stream.validation(0, 4))
    assert sorted([*first, *held_out]) == sorted([*second, *held_out]) == list(range(40))
    assert (first != second).any()
    # A host's share, another start, another seed.
    np.testing.assert_array_equal(stream.rows(2, 3, 5), opened(source).rows(2, 0, 9)[3:5])
    assert (numbers(opened(source, seed=1).rows(0, 0, 9)) != first[:9]).any()
    np.testing.assert_array_equal(opened(source, seed=1).validation(0, 4), stream.validation(0, 4))
    np.testing.assert_array_equal(stream.validation(1, 4), stream.validation(0, 4))
    assert "36 pictures for training, 4 for validation, 3 classes, whole, 4 x 4" in (
        stream.description)


def test_what_is_drawn_depends_on_the_step_alone(source):
    stream = opened(source, view="canvas", side=12)
    rows = stream.rows(1, 0, 9)
    np.testing.assert_array_equal(rows, opened(source, view="canvas", side=12).rows(1, 0, 9))
    assert (rows[:, :-2] != stream.rows(5, 0, 9)[:, :-2]).any()
    np.testing.assert_array_equal(stream.validation(0, 4), stream.validation(1, 4))


def test_the_canvas_holds_the_picture_somewhere():
    rng = np.random.default_rng(0)
    picture = np.full((5, 7, 3), 201, np.uint8)
    picture[..., 1] = 17
    places, sizes = set(), set()
    for _ in range(40):
        canvas = on_canvas(picture, 30, rng)
        mask = (canvas == picture[0, 0]).all(-1)
        rows, columns = (np.nonzero(mask.any(axis))[0] for axis in (1, 0))
        size = rows[-1] - rows[0] + 1
        assert mask.sum() == size**2 and size == columns[-1] - columns[0] + 1
        sizes.add(size)
        places.add((rows[0], columns[0]))
    # Between a ninth and a third of the area.
    assert min(sizes) == 10 and max(sizes) == 17 and len(places) > 30


def test_a_crop_is_a_part_of_the_picture():
    rng = np.random.default_rng(0)
    picture = np.zeros((40, 60, 3), np.uint8)
    picture[..., 0], picture[..., 1] = np.arange(40)[:, None], np.arange(60)
    flipped = set()
    for _ in range(20):
        crop = random_crop(picture, 20, rng).astype(int)
        down, across = crop[-1, 0, 0] - crop[0, 0, 0], crop[0, -1, 1] - crop[0, 0, 1]
        assert 25 <= down <= 40 and abs(abs(across) - down) <= 1  # a square of 35% or more
        flipped.add(across < 0)
    assert flipped == {True, False}


def test_a_folder_for_each_class(tmp_path):
    for name in ("a/0", "a/1", "b/0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), "red" if name[0] == "a" else "blue").save(f"{tmp_path}/{name}.png")
    stream = opened(tmp_path, batch_size=2)
    images, labels = unpack(stream.rows(0, 0, 2), 4)
    assert [bool(i[0, 0, 2]) for i in images] == [bool(n) for n in labels]
    before = stream.digests
    assert opened(tmp_path, view="crop").digests != before
    (tmp_path / "b/1.png").write_bytes((tmp_path / "b/0.png").read_bytes())
    assert opened(tmp_path).digests != before


def test_labels_beyond_one_byte_are_kept():
    images = np.zeros((2, 2, 3), np.uint8)
    rows = np.stack([pack(images, label) for label in (3, 999)])
    assert unpack(rows, 2)[1].tolist() == [3, 999]
    with pytest.raises(DataError, match="a label is 65536"):
        pack(images, 1 << 16)


def test_what_cannot_be_used_is_refused(tmp_path, source):
    Image.new("RGB", (4, 4)).save(tmp_path / "one.png")
    with pytest.raises(DataError, match="1 pictures and 0 labels; expected: at least two with"):
        opened(tmp_path / "one.png")
    with pytest.raises(ConfigError, match="data.view is 'tiles'"):
        opened(source, view="tiles")
    np.savez(tmp_path / "bad.npz", images=np.zeros((2, 3)))
    with pytest.raises(DataError, match="expected: images, uint8"):
        pictures(str(tmp_path / "bad.npz"), 1)
    np.savez(tmp_path / "pickled.npz", images=np.array([None, 1], object))
    with pytest.raises(DataError, match="cannot be read as arrays"):
        pictures(str(tmp_path / "pickled.npz"), 1)
    assert len(pictures(str(source), 3)) == 3
