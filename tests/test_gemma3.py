"""The recorded figures of Gemma 3 270M, and the real model, where it is asked for."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

RESULTS = Path(__file__).parents[1] / "docs" / "results"


def check(found: dict) -> None:
    """Against the figures of a plain NumPy model of the same file."""
    after = found["layers"][14]
    assert (after["position"], after["dim"]) == (0, 163)
    assert after["value"] == pytest.approx(103_795, rel=0.01)
    assert after["median"] == pytest.approx(122, rel=0.01)
    figures = {
        "original": 9.15, "to its own value": 9.15, "zero after block 12": 23.6,
        "zero after block 4": 10.6, "zero from block 4 on": 63.1, "an ordinary one to zero": 9.15,
    }
    assert found["perplexity"].keys() == figures.keys()
    for name, value in figures.items():
        assert found["perplexity"][name] == pytest.approx(value, rel=0.005), name


def test_the_recorded_figures() -> None:
    check(json.loads((RESULTS / "gemma3-270m.json").read_text()))


@pytest.mark.skipif("MASSACT_GEMMA" not in os.environ, reason="MASSACT_GEMMA=1 measures it")
def test_the_real_model() -> None:
    path = RESULTS / "gemma3_270m.py"
    spec = importlib.util.spec_from_file_location("gemma3_270m", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    check(module.measure())
