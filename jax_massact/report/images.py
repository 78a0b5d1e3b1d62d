"""Small pictures of a page as data addresses: maps of numbers, and pictures with patches marked."""

import base64
import io
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, UInt8

from jax_massact.report.chart import ORANGE

COLORMAP = "viridis"


def map_uri(values: Float[np.ndarray, "rows columns"], low: float, high: float) -> str:
    """A map with one pixel for each number, dark at `low` and light at `high`; NaN is grey."""
    import matplotlib

    span = high - low
    scaled = (values - low) / span if span > 0 else np.zeros_like(values)
    colors = matplotlib.colormaps[COLORMAP](np.clip(np.nan_to_num(scaled), 0, 1), bytes=True)
    pixels = np.asarray(colors)[..., :3].copy()
    pixels[~np.isfinite(values)] = 128
    return _uri(_image(pixels), "PNG")


def marked_uri(
    pixels: UInt8[np.ndarray, "Y X 3"], marked: Bool[np.ndarray, "rows columns"], side: int = 448
) -> str:
    """The picture, not larger than `side`, with a frame around each marked patch."""
    from PIL import ImageDraw

    image = _image(pixels)
    scale = side / max(image.size)
    width, height = (max(1, round(n * scale)) for n in image.size)
    image = image.resize((width, height))
    draw = ImageDraw.Draw(image)
    rows, columns = marked.shape
    for row, column in np.argwhere(marked):
        left, top = column * width / columns, row * height / rows
        right, bottom = left + width / columns, top + height / rows
        draw.rectangle((left, top, right - 1, bottom - 1), outline=ORANGE, width=2)
    return _uri(image, "JPEG")


def _image(pixels: np.ndarray) -> Any:
    from PIL import Image

    return Image.fromarray(pixels)


def _uri(image: Any, kind: str) -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
