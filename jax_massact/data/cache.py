"""Folders on disk that hold what took time to make."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jax_massact.errors import DataError


@contextlib.contextmanager
def new_folder(cache: Path, name: str) -> Iterator[Path]:
    """A folder to fill, which becomes `cache / name` when all went well, and else is removed.

    It takes the place of what is there. Neither a killed process nor two at once leave a folder
    that is half made; of two, the later stays.

    Raises:
      DataError: the cache cannot be written.
    """
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=cache) as scratch:
            new, final = Path(scratch) / "new", cache / name
            new.mkdir()
            yield new
            if final.exists():
                os.rename(final, Path(scratch) / "old")
            os.rename(new, final)
    except OSError as error:
        raise DataError(
            f"cache folder {cache}: {error.filename or 'it'} cannot be written: "
            f"{error.strerror or error}. Choose another folder"
        ) from error
