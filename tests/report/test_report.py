import json

import pytest
import report_examples as examples
from json_schema import read, violations

from jax_massact.studies.output import Outcome, write_files
from jax_massact.studies.probe.result import ProbeResult


def write_report(result, activation_map, folder):
    paths, failures = write_files("probe", Outcome(result, (activation_map,)), folder)
    assert failures == []
    return paths


@pytest.mark.parametrize("name", ["strict_found", "none_found", "relaxed_only", "nasty"])
def test_writes_every_file_and_json_of_the_schema(name, tmp_path):
    result = examples.EXAMPLES[name]()
    activation_map = examples.activation_map(result)
    paths = write_report(result, activation_map, tmp_path / "new" / "folder")
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
    paths = write_report(result, examples.activation_map(result), tmp_path)
    written = read(paths[0])
    assert written["layers"][4]["median"] is None
    assert written["massive"][0]["value_mean"] is None
    assert written["layers"][3]["median"] == result["layers"][3]["median"]


def test_a_second_report_replaces_the_first(tmp_path):
    for make in (examples.strict_found, examples.none_found):
        result = make()
        paths = write_report(result, examples.activation_map(result), tmp_path)
    assert read(paths[0])["massive"] == []
    assert "Dimension 507" not in paths[1].read_text(encoding="utf-8")
