"""Pictures of a source: a folder, a file, or a data set of tensorflow_datasets."""

import concurrent.futures
import dataclasses
import itertools
import os
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.data.tfds import open_images
from jax_massact.errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_THREADS = 8


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Pictures that have not been decoded.

    Attributes:
      description: the source, in words.
      items: what `Preprocessing` takes, one each: paths or arrays.
      names: what each is called.
      labels: the class of each; empty: there are none.
      classes: their names.
    """

    description: str
    items: Sequence[Any]
    names: Sequence[str]
    labels: Sequence[int] = ()
    classes: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, rows: slice) -> "Pictures":
        """Some of them."""
        return dataclasses.replace(
            self, items=self.items[rows], names=self.names[rows], labels=self.labels[rows]
        )


def pictures(source: str, count: int) -> Pictures:
    """The first `count` pictures that a user means by `source`.

    It is a folder with pictures, or with a folder of pictures for each class; one picture;
    `tfds:NAME[/CONFIG][:SPLIT]`, a data set that tensorflow_datasets has prepared; or an `.npz`
    file of arrays: `images`, uint8 [N, Y, X] or [N, Y, X, 3], with `labels` [N] and the names of
    the `classes`, if it has them. Of folders of classes one picture each is taken in turn.

    Raises:
      DataError: there is no such source, or no picture in it.
    """
    if source.startswith("tfds:"):
        records = open_images(source, count)
        return Pictures(
            records.description, records.images, records.names, records.labels, records.classes
        )
    path = Path(os.path.expanduser(source))
    if path.is_file() and path.suffix == ".npz":
        return _arrays(path, count)
    if path.is_file():
        return Pictures(path.name, [path], [path.name])
    if not source or not path.is_dir():
        raise DataError(
            f"there are no pictures in {source!r}; expected: images=FOLDER, a picture, or "
            "tfds:NAME[:SPLIT]"
        )
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    groups = [_files(folder) for folder in classes]
    kept = [(folder, files) for folder, files in zip(classes, groups, strict=True) if files]
    own = _files(path)
    if own or not kept:
        if not own:
            raise DataError(
                f"{path} holds no picture; expected: files that end in {', '.join(SUFFIXES)}"
            )
        return Pictures(path.name, own[:count], [f.name for f in own[:count]])
    turns = itertools.zip_longest(*(files for _, files in kept))
    chosen = [(label, file) for turn in turns for label, file in enumerate(turn) if file][:count]
    return Pictures(
        f"{path.name} ({len(kept)} classes)",
        [file for _, file in chosen],
        [f"{file.parent.name}/{file.name}" for _, file in chosen],
        [label for label, _ in chosen],
        [folder.name for folder, _ in kept],
    )


def _arrays(path: Path, count: int) -> Pictures:
    """The pictures of an `.npz` file; no pickle is read."""
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in ("images", "labels", "classes")
                      if name in found}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} cannot be read as arrays: {error}") from None
    images, labels = arrays.get("images"), arrays.get("labels")
    good = images is not None and images.dtype == np.uint8 and images.ndim in (3, 4)
    if images is None or not good or (labels is not None and len(labels) != len(images)):
        shapes = {name: (x.dtype.name, x.shape) for name, x in arrays.items()}
        raise DataError(
            f"{path} holds {shapes}; expected: images, uint8 [N, Y, X] or [N, Y, X, 3], and as "
            "many labels, if any"
        )
    images = images[:count]
    return Pictures(
        path.name, images, [f"picture {i}" for i in range(len(images))],
        () if labels is None else labels[:count].tolist(),
        [str(name) for name in arrays.get("classes", ())],
    )


def _files(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.suffix.lower() in SUFFIXES and f.is_file())


def decoded(
    chosen: Pictures, prepare: Preprocessing, batch_size: int
) -> Iterator[UInt8[np.ndarray, "b Y X 3"]]:
    """Batches of prepared pictures, the next of which is decoded while one is used.

    Raises:
      DataError: a picture cannot be read.
    """
    starts = range(0, len(chosen), batch_size)
    threads = min(_THREADS, os.cpu_count() or 1, batch_size)
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        submit = lambda start: [
            pool.submit(prepare.one, item) for item in chosen.items[start : start + batch_size]
        ]
        waiting = submit(starts[0]) if starts else []
        try:
            for start in starts:
                ready, waiting = waiting, submit(start + batch_size)
                yield np.stack([future.result() for future in ready])
        finally:
            for future in waiting:
                future.cancel()
