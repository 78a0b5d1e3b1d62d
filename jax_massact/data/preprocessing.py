"""From a picture to the square of pixels that a model was trained with, by the model's own rule."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import UInt8

from jax_massact.errors import ConfigError, DataError
from jax_massact.settings import check_in, check_int

ResizeKind = Literal["short", "squash"]
FilterKind = Literal["nearest", "bilinear", "bicubic", "lanczos"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """Resizes and crops pictures with PIL; normalization is the model's (`PatchConfig.mean`).

    Attributes:
      edge: pixels that the picture is resized to.
      crop: side of the square that is cut out of its middle; at most `edge`.
      resize: whether `edge` is its shorter side (`short`), or both its sides are squashed to it.
      filter: PIL's.
    """

    edge: int
    crop: int
    resize: ResizeKind = "short"
    filter: FilterKind = "bicubic"

    def __post_init__(self) -> None:
        check_int("image edge", self.edge, 1, 1 << 14)
        check_int("image crop", self.crop, 1, self.edge)
        check_in("image resize", self.resize, get_args(ResizeKind))
        check_in("image filter", self.filter, get_args(FilterKind))

    def resized(self, size: int, multiple: int) -> "Preprocessing":
        """The same rule for squares of another size.

        Raises:
          ConfigError: it is not a multiple of the side of a patch.
        """
        if size % multiple:
            raise ConfigError(
                f"image_size is {size}; expected: a multiple of {multiple}, the side of a patch"
            )
        edge = round(self.edge * size / self.crop)
        return dataclasses.replace(self, edge=edge, crop=size)

    def __call__(self, pictures: Sequence[Any]) -> UInt8[np.ndarray, "B Y X 3"]:
        """What the model takes.

        Args:
          pictures: paths, PIL images, or uint8 arrays [Y, X] or [Y, X, 1 or 3].

        Raises:
          DataError: a picture cannot be read.
        """
        return np.stack([self.one(picture) for picture in pictures])

    def one(self, picture: Any) -> UInt8[np.ndarray, "Y X 3"]:
        """One picture, resized and cropped."""
        image = opened(picture)
        filters = {name: getattr(_pil().Resampling, name.upper()) for name in get_args(FilterKind)}
        width, height = image.size
        if self.resize == "squash":
            size = (self.edge, self.edge)
        elif width <= height:
            size = (self.edge, int(self.edge * height / width))
        else:
            size = (int(self.edge * width / height), self.edge)
        if size != image.size:
            image = image.resize(size, filters[self.filter])
        left, top = ((side - self.crop) // 2 for side in size)
        return np.asarray(image.crop((left, top, left + self.crop, top + self.crop)))


def opened(picture: Any) -> Any:
    """A picture as PIL's RGB image; transparent parts are white.

    Raises:
      DataError: it cannot be read.
    """
    pil = _pil()
    try:
        if isinstance(picture, np.ndarray):
            flat = picture[..., 0] if picture.ndim == 3 and picture.shape[2] == 1 else picture
            image = pil.fromarray(flat)
        else:
            image = picture if isinstance(picture, pil.Image) else pil.open(picture)
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = pil.new("RGBA", image.size, "white")
            image = pil.alpha_composite(white, image)
        return image.convert("RGB")
    except (OSError, ValueError, TypeError, SyntaxError, pil.DecompressionBombError) as error:
        name = picture if isinstance(picture, str | Path) else f"a {type(picture).__name__}"
        raise DataError(
            f"{name} cannot be read as a picture: {error}; expected: a file that PIL opens, or "
            "uint8 [rows, columns, 3]"
        ) from None


def _pil() -> Any:
    # Takes a tenth of a second, which only pictures need.
    from PIL import Image

    return Image
