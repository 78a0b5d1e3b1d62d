"""Training data of image classifiers: pictures with labels as a function of (seed, step)."""

import concurrent.futures
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8

from jax_massact.cache import Report
from jax_massact.data.images import Pictures, pictures
from jax_massact.data.preprocessing import Preprocessing, opened
from jax_massact.data.stream import HELD_OUT
from jax_massact.errors import DataError
from jax_massact.settings import check_in

ViewKind = Literal["whole", "crop", "canvas"]
# A row is the pixels [Y X 3], then its label, the lower byte first.
LABEL_BYTES = 2
_SPLIT_SEED = 0  # the same for every run, so that losses can be compared
_THREADS = 8
# Decoded pictures that are kept in memory, in bytes.
_KEPT = 2 << 30
# Of a canvas the picture takes between these shares; of a crop this share of the picture at least.
_ON_CANVAS = 1 / 9, 1 / 3
_CROPPED = 0.35


class LabelledStream:
    """Batches for training and validation, as `data.stream.Stream` of rows of bytes.

    Training examples form one endless sequence: the pictures in an order of their own in each
    epoch, shown as `view` says. It depends on the source, the view and the seed.

    Attributes:
      vocab_size: number of classes.
      classes: their names, where the source has some.
      tokenizer: None; there are no tokens.
      description: the source and its split, in a line.
      digests: as of `Stream`.
    """

    def __init__(
        self, chosen: Pictures, *, side: int, view: ViewKind, seed: int, batch_size: int
    ) -> None:
        self._pictures, self._side, self._view, self._seed = chosen, side, view, seed
        self._batch_size = batch_size
        order = np.random.default_rng(_SPLIT_SEED).permutation(len(chosen))
        held_out = max(1, round(HELD_OUT * len(chosen)))
        self._held_out, self._training = order[:held_out], order[held_out:]
        self.tokenizer = None
        self.classes = list(chosen.classes)
        self.vocab_size = len(chosen.classes) or 1 + max(map(int, chosen.labels))
        self.description = (
            f"{chosen.description}: {len(self._training):,} pictures for training, "
            f"{held_out:,} for validation, {self.vocab_size} classes, {view}, {side} x {side} px"
        )
        digest = _digest(chosen)
        self.digests: Mapping[str, str] = {
            "training data": f"{digest} {view}", "validation data": f"{digest} {view}"
        }
        self._kept: dict[int, np.ndarray] = {}
        self._bytes = 0
        self._epoch = functools.lru_cache(2)(self._shuffled)

    @property
    def validation_size(self) -> int:
        """Number of pictures that are held out."""
        return len(self._held_out)

    def rows(self, step: int, lo: int, hi: int) -> UInt8[np.ndarray, "hi-lo P"]:
        """Rows lo to hi - 1 of the batch of a step, from 0."""
        first = step * self._batch_size
        return self._all(lambda i: self._example(first + i), range(lo, hi))

    def validation(self, index: int, batch_size: int | None = None) -> UInt8[np.ndarray, "B P"]:
        """Batch `index` of the held-out pictures, the same for every seed.

        Wraps around at their end.
        """
        size = self._batch_size if batch_size is None else batch_size
        return self._all(self._held_out_example, range(index * size, (index + 1) * size))

    def _all(
        self, one: Callable[[int], np.ndarray], numbers: Sequence[int]
    ) -> UInt8[np.ndarray, "n P"]:
        return np.stack(list(_pool().map(one, numbers)))

    def _shuffled(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(self._training)

    def _example(self, number: int) -> np.ndarray:
        epoch, place = divmod(number, len(self._training))
        # One more number than the order of an epoch has: they do not draw alike.
        rng = np.random.default_rng((self._seed, epoch, place))
        return self._row(int(self._epoch(epoch)[place]), rng, training=True)

    def _held_out_example(self, number: int) -> np.ndarray:
        place = number % len(self._held_out)
        rng = np.random.default_rng((_SPLIT_SEED, 0, place))
        return self._row(int(self._held_out[place]), rng, training=False)

    def _row(self, index: int, rng: np.random.Generator, *, training: bool) -> np.ndarray:
        side, view = self._side, self._view
        if view == "canvas":
            pixels = on_canvas(self._decoded(index), side, rng)
        elif view == "crop" and training:
            pixels = random_crop(self._decoded(index), side, rng)
        else:
            pixels = Preprocessing(edge=side, crop=side).one(self._decoded(index))
        label = int(self._pictures.labels[index])
        return pack(pixels, label)

    def _decoded(self, index: int) -> np.ndarray:
        """The whole picture; as many are kept as there is room for."""
        found = self._kept.get(index)
        if found is None:
            found = np.asarray(opened(self._pictures.items[index]))
            if self._bytes < _KEPT:
                self._bytes += found.nbytes
                self._kept[index] = found
        return found


def open_labelled(
    source: str, *, side: int, view: ViewKind, seed: int, batch_size: int,
    report: Report | None = None,
) -> LabelledStream:
    """Opens the data of a classifier; a tenth of the pictures is held out.

    Args:
      source: as for `data.images.pictures`; the pictures have labels.
      side: of the square that the model takes, in pixels.
      view: `whole`: the shorter side resized to the square, its middle cut out; `crop`: in training
        a random part, flipped half of the time; `canvas`: shrunk to between 1/9 and 1/3 of a plain,
        graded or noisy background, anywhere on it.
      seed: of the order and of what is drawn.
      report: called with the description.

    Raises:
      ConfigError: there is no such view.
      DataError: the source cannot be read, has no labels or fewer than two pictures.
    """
    check_in("data.view", view, get_args(ViewKind))
    chosen = pictures(source, 1 << 62)
    if len(chosen) < 2 or not len(chosen.labels):
        raise DataError(
            f"{source} has {len(chosen)} pictures and {len(chosen.labels)} labels; expected: at "
            "least two with labels, in a folder for each class, a data set or an .npz file"
        )
    stream = LabelledStream(chosen, side=side, view=view, seed=seed, batch_size=batch_size)
    if report is not None:
        report(stream.description)
    return stream


def pack(pixels: UInt8[np.ndarray, "Y X 3"], label: int) -> UInt8[np.ndarray, " P"]:
    """One row: the pixels, then the label."""
    if not 0 <= label < 1 << (8 * LABEL_BYTES):
        raise DataError(f"a label is {label}; expected: 0 to {(1 << (8 * LABEL_BYTES)) - 1}")
    tail = np.frombuffer(label.to_bytes(LABEL_BYTES, "little"), np.uint8)
    return np.concatenate([np.ascontiguousarray(pixels).reshape(-1), tail])


def unpack(
    rows: UInt8[np.ndarray, "n P"], side: int
) -> tuple[UInt8[np.ndarray, "n Y X 3"], np.ndarray]:
    """Pixels and labels of rows."""
    labels = np.ascontiguousarray(rows[:, -LABEL_BYTES:]).view("<u2")[:, 0]
    return rows[:, :-LABEL_BYTES].reshape(-1, side, side, 3), labels.astype(int)


def random_crop(
    picture: UInt8[np.ndarray, "Y X 3"], side: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "side side 3"]:
    """A square of 35% of the picture's area or more, somewhere in it, flipped half of the time."""
    rows, columns = picture.shape[:2]
    size = max(1, round((rng.uniform(_CROPPED, 1) * rows * columns) ** 0.5))
    size = min(size, rows, columns)
    top, left = (int(rng.integers(0, n - size + 1)) for n in (rows, columns))
    part = picture[top : top + size, left : left + size]
    return _resized(part[:, ::-1] if rng.random() < 0.5 else part, side)


def on_canvas(
    picture: UInt8[np.ndarray, "Y X 3"], side: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "side side 3"]:
    """The picture, squashed to a square of 1/9 to 1/3 of the canvas, somewhere on it.

    The background tells nothing of the class: one colour, a gradient of two, or noise.
    """
    # Drawn at once: every call of a generator takes as long as a hundred of its numbers.
    kind, down, *draws = rng.random(11)
    if kind < 1 / 3:
        noise = np.frombuffer(rng.bytes(3 * side * side), np.uint8)
        canvas = noise.reshape(side, side, 3).copy()
    else:
        canvas = np.empty((side, side, 3), np.uint8)
        first, second = 256 * np.reshape(draws[:6], (2, 3))
        share = np.arange(side)[:, None] / side if kind < 2 / 3 else 0
        line = first + share * (second - first)
        canvas[:] = line if down < 0.5 or line.ndim == 1 else line[:, None]
    low, high = _ON_CANVAS
    size = round(side * (low + (high - low) * draws[6]) ** 0.5)
    top, left = (int(draw * (side - size + 1)) for draw in draws[7:])
    canvas[top : top + size, left : left + size] = _resized(picture, size)
    return canvas


def _resized(picture: np.ndarray, size: int) -> np.ndarray:
    # As `Preprocessing` does it, without what takes longer than the resizing of a small picture.
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(picture))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


@functools.cache
def _pool() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(min(_THREADS, os.cpu_count() or 1))


def _digest(chosen: Pictures) -> str:
    """Of the names, sizes and labels of files, or of the numbers of arrays."""
    digest = hashlib.sha256(f"{chosen.description} {len(chosen)}".encode())
    if isinstance(chosen.items, np.ndarray):
        digest.update(chosen.items.tobytes())
        digest.update(np.asarray(chosen.labels, "<i8").tobytes())
        return digest.hexdigest()
    items: Sequence[Any] = chosen.items
    if isinstance(items, list):  # of files
        for name, item, label in zip(chosen.names, items, chosen.labels, strict=True):
            digest.update(f"{name} {Path(item).stat().st_size} {label}\n".encode())
    return digest.hexdigest()
