"""Whether a file holds what its TypedDict says."""

import json
import types
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints, is_typeddict


def violations(value: Any, kind: Any, where: str = "$") -> list[str]:
    """Where a value read from JSON departs from a TypedDict: missing, unknown and mistyped."""
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        hints = get_type_hints(kind)
        found = [f"{where}.{key}: missing" for key in kind.__required_keys__ - value.keys()]
        found += [f"{where}.{key}: unknown" for key in value.keys() - hints.keys()]
        for key in hints.keys() & value.keys():
            found += violations(value[key], hints[key], f"{where}.{key}")
        return found
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        options = [violations(value, option, where) for option in args]
        return [] if [] in options else options[0]
    if origin is Literal:
        return [] if value in args else [f"{where}: {value!r} is none of {args}"]
    if origin is list and isinstance(value, list):
        return [v for i, x in enumerate(value) for v in violations(x, args[0], f"{where}[{i}]")]
    if origin is tuple and isinstance(value, list) and len(value) == len(args):
        return [v for x, k in zip(value, args, strict=True) for v in violations(x, k, where)]
    if origin is dict and isinstance(value, dict):
        return [v for k, x in value.items() for v in violations(x, args[1], f"{where}.{k}")]
    plain = origin or kind
    accepted = (int, float) if plain is float else plain
    is_bool = isinstance(value, bool) and plain is not bool
    good = isinstance(value, accepted) and not is_bool and origin is None
    return [] if good else [f"{where}: {value!r} is no {kind}"]


def refuse(constant: str):
    raise ValueError(f"{constant} is not JSON")


def read(path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
