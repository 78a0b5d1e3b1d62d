import json
import math
import os

import numpy as np
import pytest

from jax_massact.report.encode import to_json, write_text


def test_nonfinite_numbers_become_null_anywhere():
    value = {"a": [math.nan, 1.5], "b": {"c": -math.inf}, "d": (np.float32(math.nan), np.int64(3))}
    assert json.loads(to_json(value)) == {"a": [None, 1.5], "b": {"c": None}, "d": [None, 3]}


def test_digits_are_significant_ones_and_leave_integers_alone():
    value = [24926.123456, 1.23456789e-7, 123456789, True]
    assert json.loads(to_json(value, digits=5)) == [24926, 1.2346e-7, 123456789, True]
    assert json.loads(to_json(value))[0] == 24926.123456


def test_what_json_has_no_type_for_is_refused():
    with pytest.raises(TypeError):
        to_json({"a": object()})


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "probe.json"
    write_text(path, "old")

    def fail(*_):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new")
    assert path.read_text() == "new"


def test_half_a_surrogate_pair_does_not_stop_a_report(tmp_path):
    path = write_text(tmp_path / "probe.json", to_json(["\ud800"]))
    assert json.loads(path.read_text(encoding="utf-8")) == ["\ud800"]
