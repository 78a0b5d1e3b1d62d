"""Strict JSON and whole files: what is on the disk is complete, and any parser reads it."""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np


def plain(value: Any, digits: int | None = None) -> Any:
    """A copy made of JSON's own types: NumPy scalars unwrapped, non-finite floats turned to None.

    Args:
      value: dictionaries, lists and tuples of numbers, strings, booleans and None.
      digits: significant digits to keep of each float; None keeps all.
    """
    if isinstance(value, dict):
        return {key: plain(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, digits) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item(), digits)
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return value if digits is None else float(f"{value:.{digits}g}")
    return value


def to_json(value: Any, *, digits: int | None = None, indent: int | None = None) -> str:
    """Strict JSON (RFC 8259) of `plain(value)`: NaN and infinity become null.

    Raises:
      TypeError: `value` holds something JSON has no type for.
    """
    separators = (",", ":") if indent is None else None
    return json.dumps(
        plain(value, digits),
        allow_nan=False,
        ensure_ascii=False,
        indent=indent,
        separators=separators,
    )


def write_text(path: Path, text: str) -> Path:
    """Writes UTF-8 so that `path` is either the old file or the whole new one, never a part.

    A token may hold half a surrogate pair, which UTF-8 has no bytes for: it is spelled out.
    """
    return write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


def write_bytes(path: Path, content: bytes) -> Path:
    """As `write_text`, for bytes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
