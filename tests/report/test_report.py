import json
import types
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import pytest
import report_examples as examples

from jax_massact.probe.result import ProbeResult
from jax_massact.report import write_probe_report


def violations(value: Any, kind: Any, where: str = "$") -> list[str]:
    """Where a value read from JSON departs from a TypedDict: missing, unknown and mistyped."""
    if is_typeddict(kind):
        if not isinstance(value, dict):
            return [f"{where}: {value!r} is no object"]
        hints = get_type_hints(kind)
        found = [f"{where}.{key}: missing" for key in hints.keys() - value.keys()]
        found += [f"{where}.{key}: unknown" for key in value.keys() - hints.keys()]
        for key in hints.keys() & value.keys():
            found += violations(value[key], hints[key], f"{where}.{key}")
        return found
    origin, args = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        options = [violations(value, option, where) for option in args]
        return [] if [] in options else options[0]
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


@pytest.mark.parametrize("name", ["strict_found", "none_found", "relaxed_only", "nasty"])
def test_writes_every_file_and_json_of_the_schema(name, tmp_path):
    result = examples.EXAMPLES[name]()
    activation_map = examples.activation_map(result)
    paths = write_probe_report(result, activation_map, tmp_path / "new" / "folder")
    relative = [str(p.relative_to(tmp_path / "new" / "folder")) for p in paths]
    assert relative[:2] == ["probe.json", "report.html"] and len(relative) == 8
    assert all(p.stat().st_size > 0 for p in paths)
    assert sorted(paths) == sorted(p for p in (tmp_path / "new").rglob("*") if p.is_file())
    written = read(paths[0])
    assert violations(written, ProbeResult) == []
    assert written["massive"] == result["massive"]
    assert written["prompt"]["tokens"] == result["prompt"]["tokens"]


def test_the_schema_walk_sees_what_is_wrong(tmp_path):
    result = examples.strict_found()
    result["layers"][0]["median"] = "1.5"  # type: ignore[typeddict-item]
    result["massive"][0]["written_by"].pop("layer")  # type: ignore[misc]
    result["data"]["extra"] = 1  # type: ignore[typeddict-unknown-key]
    found = violations(json.loads(json.dumps(result)), ProbeResult)
    assert sorted(v.split(":")[0] for v in found) == [
        "$.data.extra", "$.layers[0].median", "$.massive[0].written_by.layer"
    ]


def test_nan_is_null_in_the_file(tmp_path):
    result = examples.broken_numbers()
    paths = write_probe_report(result, examples.activation_map(result), tmp_path)
    written = read(paths[0])
    assert written["layers"][4]["median"] is None
    assert written["massive"][0]["value_mean"] is None
    assert written["layers"][3]["median"] == result["layers"][3]["median"]


def test_a_second_report_replaces_the_first(tmp_path):
    for make in (examples.strict_found, examples.none_found):
        result = make()
        paths = write_probe_report(result, examples.activation_map(result), tmp_path)
    assert read(paths[0])["massive"] == []
    assert "Dimension 507" not in paths[1].read_text(encoding="utf-8")
