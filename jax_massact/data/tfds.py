"""Texts and images of data sets that tensorflow_datasets has prepared."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jax_massact.data.unicode import check_unicode
from jax_massact.errors import DataError

_INFO = "dataset_info.json"


class Records:
    """A text feature of all records of a split, read anew each time they are iterated over.

    Attributes:
      description: the data set and the split.
      stamp: a text that changes when the data set is prepared anew with other records.
    """

    def __init__(self, records: Any, feature: str, source: str, place: str) -> None:
        """Takes the feature of `records`, a random-access data source that is kept in `place`."""
        self._records = records
        self._feature = feature
        self._source = source
        name, _, split = source.removeprefix("tfds:").partition(":")
        self.description = f"{name} ({split or 'train'})"
        self.stamp = f"{place} {split or 'train'} {feature} {len(records)}"

    def __iter__(self) -> Iterator[str]:
        for i in range(len(self._records)):
            value = self._records[i][self._feature]
            where = f"{self._source}, record {i}"
            try:
                text = value.decode("utf-8") if isinstance(value, bytes) else str(value)
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is not UTF-8 text: {error}") from error
            check_unicode(text, where)
            yield text


def open_tfds(source: str, text_field: str) -> Records:
    """The texts of `tfds:NAME[/CONFIG][:SPLIT]`; NAME may be the folder of a prepared data set.

    Args:
      text_field: the feature; where there is no `text`, the only one that holds a string.

    Raises:
      DataError: the data set is not there, not prepared, or has no such feature.
    """
    builder, split = _open(source)
    feature = _text_feature(builder.info.features, source, text_field)
    return Records(_records(builder, split, source), feature, source, str(builder.data_dir))


class LabelledImages(NamedTuple):
    """Images of a data set and what they show."""

    description: str
    images: Sequence[np.ndarray]
    names: Sequence[str]
    labels: Sequence[int]
    classes: Sequence[str]


def open_images(source: str, count: int) -> LabelledImages:
    """The first images of `tfds:NAME[/CONFIG][:SPLIT]`, whose features have TFDS's usual names.

    Raises:
      DataError: the data set is not there, not prepared, or has no `image`.
    """
    builder, split = _open(source)
    features = dict(builder.info.features)
    if "image" not in features:
        raise DataError(
            f"image source {source} has the features {', '.join(sorted(features))}; expected: image"
        )
    records = _records(builder, split, source)
    rows = range(min(count, len(records)))
    label = features.get("label")
    classes = list(getattr(label, "names", ()) or ())
    name = source.removeprefix("tfds:").partition(":")[0]
    return LabelledImages(
        f"{name} ({split})", _Column(records, "image", rows), [f"record {i}" for i in rows],
        _Column(records, "label", rows) if label is not None else (), classes,
    )


class _Column(Sequence):
    """One feature of some records, read when it is asked for."""

    def __init__(self, records: Any, feature: str, rows: range) -> None:
        self._records, self._feature, self._rows = records, feature, rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return _Column(self._records, self._feature, self._rows[index])
        return self._records[self._rows[index]][self._feature]


def _open(source: str) -> tuple[Any, str]:
    """The builder of a prepared data set, and the split."""
    name, _, split = source.removeprefix("tfds:").partition(":")
    split = split or "train"
    if not name:
        raise DataError(f"text source {source!r} names no data set; expected: tfds:NAME[:SPLIT]")
    try:
        import tensorflow_datasets as tfds  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise DataError(
            f"text source {source} needs tensorflow_datasets, which cannot be imported ({error}); "
            "install it with: pip install 'jax-massact[tfds]'"
        ) from error
    folder = _prepared_in(name, source)
    try:
        builder: Any = tfds.builder_from_directory(folder) if folder else tfds.builder(name)
        splits = dict(builder.info.splits)
    except Exception as error:  # its errors share no narrower base class
        raise DataError(f"text source {source}: {_first_line(error)}") from error
    if not splits:
        raise DataError(
            f"text source {source}: the data set is not prepared in {builder.data_dir}. Prepare it "
            f"with: tfds build {name} --file_format=array_record"
        )
    if split not in splits:
        listed = ", ".join(sorted(splits))
        raise DataError(f"text source {source}: no split {split!r}; expected: one of {listed}")
    return builder, split


def _records(builder: Any, split: str, source: str) -> Any:
    try:
        return builder.as_data_source(split=split)
    except Exception as error:
        raise DataError(
            f"text source {source} cannot be read record by record ({_first_line(error)}); prepare "
            "it with --file_format=array_record"
        ) from error


def _prepared_in(name: str, source: str) -> str | None:
    """The folder of a prepared data set that `name` is or holds; None if it is no folder."""
    folder = Path(os.path.expanduser(name))
    if os.sep not in name or not folder.is_dir():
        return None
    found = sorted(path.parent for path in folder.rglob(_INFO))
    if len(found) != 1:
        listed = ", ".join(map(str, found)) or "none"
        raise DataError(
            f"text source {source}: {len(found)} prepared data sets in this folder ({listed}); "
            f"expected: a folder with one {_INFO}"
        )
    return str(found[0])


def _text_feature(features: Any, source: str, text_field: str) -> str:
    def holds_string(feature: Any) -> bool:
        dtype = getattr(feature, "np_dtype", None)
        is_string = dtype is not None and np.dtype(dtype).kind in "OSU"
        return is_string and getattr(feature, "shape", None) == ()

    strings = [name for name, feature in dict(features).items() if holds_string(feature)]
    if text_field in strings:
        return text_field
    if text_field == "text" and len(strings) == 1:
        return strings[0]
    raise DataError(
        f"text source {source} has no text in a feature {text_field!r}; expected: text_field names "
        f"one of its features that hold a text: {', '.join(sorted(strings)) or 'there are none'}"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
