"""Settings as frozen dataclasses that are checked once, when they are made."""

import dataclasses
import difflib
import functools
import math
import sys
import types
from collections.abc import Collection, Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from jax_massact.errors import ConfigError


def check_in(name: str, value: Any, allowed: Collection[Any]) -> None:
    """Raises ConfigError unless `value` is one of `allowed`."""
    if value not in allowed:
        choices = ", ".join(repr(a) for a in allowed)
        raise ConfigError(f"{name} is {value!r}; expected: {choices}")


def check_int(name: str, value: Any, low: int, high: int | None = None) -> None:
    """Raises ConfigError unless `value` is a whole number in [low, high]."""
    limit = f"a whole number of at least {low}" + ("" if high is None else f" and at most {high}")
    is_int = isinstance(value, int) and not isinstance(value, bool)
    if not is_int or value < low or (high is not None and value > high):
        raise ConfigError(f"{name} is {value!r}; expected: {limit}")


def check_float(
    name: str, value: Any, low: float, high: float = math.inf, *, open_low: bool = False
) -> None:
    """Raises ConfigError unless `value` is a finite number in [low, high], or (low, high]."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # Comparing, unlike converting, takes an int of any size.
    inside = is_number and (low < value if open_low else low <= value)
    if not inside or value > min(high, sys.float_info.max):
        above = f"above {low:g}" if open_low else f"of at least {low:g}"
        limit = f"a number {above}" + ("" if high == math.inf else f" and at most {high:g}")
        raise ConfigError(f"{name} is {value!r}; expected: {limit}")


T = TypeVar("T")


def from_mapping(
    cls: type[T], values: Mapping[str, Any], name: str = "config", defaults: T | None = None
) -> T:
    """The settings dataclass `cls` with these values; what is not given keeps its default.

    Args:
      name: what the settings are called in errors.
      defaults: where what is not given comes from; None: the defaults of `cls`.

    Raises:
      ConfigError: a key that `cls` does not have (with the nearest ones), a group of settings given
        as one value, a setting without a default left out, or a value out of range.
    """
    fields = {f.name: f for f in dataclasses.fields(cls)}  # pyright: ignore[reportArgumentType]
    kinds = _kinds_of(cls)
    given: dict[str, Any] = {}
    if defaults is not None:
        given = {key: getattr(defaults, key) for key in fields}
    for key, value in values.items():
        path = f"{name}.{key}"
        if key not in fields:
            raise ConfigError(unknown_key(path, key, fields))
        given[key] = _value(kinds[key], value, path, given.get(key, fields[key].default))
    for key, field in fields.items():
        if key not in given and field.default is dataclasses.MISSING:
            raise ConfigError(f"{name}.{key} is missing; it has no default")
    try:
        return cls(**given)
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from None


# Strings become types: of all that reading settings does, what takes longest.
_kinds_of = functools.cache(get_type_hints)


def _value(kind: Any, value: Any, path: str, default: Any) -> Any:
    """A setting as its type wants it: groups from mappings, tuples from lists, floats from ints."""
    if (group := group_of(kind)) is not None:
        return None if value is None and kind is not group else _group(group, value, path, default)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    items = [k for k in (kind, *get_args(kind)) if get_origin(k) is tuple]
    if items and isinstance(value, list | tuple):
        (item, *_) = get_args(items[0])
        parts = enumerate(value)
        return tuple(_value(item, part, f"{path}[{i}]", None) for i, part in parts)
    return value


def group_of(kind: Any) -> Any:
    """The settings dataclass that a field of this type holds, also where it may be None."""
    for one in (kind, *(get_args(kind) if get_origin(kind) in (Union, types.UnionType) else ())):
        if isinstance(one, type) and dataclasses.is_dataclass(one):
            return one
    return None


def _group(kind: type[T], value: Any, path: str, default: Any) -> T:
    if isinstance(value, kind):
        return value
    if isinstance(value, str) and (from_text := getattr(kind, "from_text", None)) is not None:
        return from_text(value)
    if not isinstance(value, Mapping):
        settings = ", ".join(f"{path}.{key}" for key in get_type_hints(kind))
        raise ConfigError(f"{path} is {value!r}; expected a group of settings: {settings}")
    return from_mapping(kind, value, path, default if isinstance(default, kind) else None)


def unknown_key(path: str, key: str, known: Collection[str], hint: str = "") -> str:
    """The error for a setting that does not exist.

    Args:
      hint: a sentence about what may have been meant; empty: the nearest of `known`.
    """
    near = difflib.get_close_matches(key, known, n=3, cutoff=0.5)
    if near and not hint:
        hint = f" Did you mean {' or '.join(near)}?"
    return f"there is no setting {path}.{hint} Settings here: {', '.join(sorted(known))}"
