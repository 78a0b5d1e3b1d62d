"""The real SmolLM2-135M against figures measured with other software (transformers, NumPy)."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

import jax_massact as ma
from jax_massact.data.text import documents
from jax_massact.data.windows import windows
from jax_massact.resources import fetch

LONDON = (
    "The history of the city of London goes back almost two thousand years. In 1666 the Great Fire "
    "destroyed most of the medieval city, and the architect Christopher Wren was asked to rebuild "
    "its churches."
)


@functools.cache
def checkpoint() -> Path:
    try:
        return fetch("smollm2-135m")
    except ma.ResourceError as error:
        pytest.skip(f"the real weights cannot be had: {error}")


def test_the_values_with_bos_are_those_of_a_numpy_model() -> None:
    model, tokenizer = ma.load(checkpoint())
    tokens = windows(documents("pydoc"), tokenizer, sequences=1, sequence_length=64, bos=True)
    assert tokens[0, 0] == 1
    stats = jax.device_get(jax.jit(ma.magnitudes)(model, tokens))
    # A plain NumPy model in float32: what BOS carries does not depend on what follows it.
    for layer, value in ((11, 24_926.2), (27, 24_538.3)):
        top = stats.top
        assert (top.position[layer, 0, 0], top.dim[layer, 0, 0]) == (0, 507)
        assert top.value[layer, 0, 0] == pytest.approx(value, rel=1e-4)


# Each in a folder and with settings of its own; the last of the model that the one before it folds.
COMMANDS = {
    "probe": ["probe", "smollm2-135m", "bos=False", f"text=text:{LONDON}"],
    "intervene": ["intervene", "smollm2-135m", "sequences=2", "calibration_sequences=4",
                  "sequence_length=128"],
    "explain": ["explain", "smollm2-135m", "bos=true", "sequences=2", "sequence_length=64",
                "location_sequences=2", "location_length=64"],
    "fold": ["fold", "smollm2-135m", "sequences=1", "sequence_length=64"],
    "folded": ["probe", "fold/model", "sequences=1", "sequence_length=63"],
}
# Those of `conftest.py`, but with the optimizations without which a model of this size runs slowly.
XLA_FLAGS = os.environ["XLA_FLAGS"].replace("--xla_backend_optimization_level=0", "")
# No picture is looked at here.
CODE = """
import sys
from jax_massact.cli import main
from jax_massact.report import matplotlib_painter
matplotlib_painter.draw = lambda chart: {"png": b"", "pdf": b""}
sys.exit(any([main(words) for words in {}]))
"""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the commands find, which one process runs."""
    checkpoint()
    folder = tmp_path_factory.mktemp("smollm2")
    lines = [
        [command, model, f"--workdir={name}", *(f"--config.{setting}" for setting in settings)]
        for name, (command, model, *settings) in COMMANDS.items()
    ]
    path = os.pathsep.join([str(Path(ma.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    said = subprocess.run(
        [sys.executable, "-c", CODE.replace("{}", repr(lines))], check=True, cwd=folder,
        env=os.environ | {"XLA_FLAGS": XLA_FLAGS, "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": path},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ).stdout
    results = {
        name: json.loads((folder / name / f"{command}.json").read_text())
        for name, (command, *_) in COMMANDS.items()
    }
    return results | {"said": said}


def test_what_the_commands_find(found: dict[str, Any], subtests: pytest.Subtests) -> None:
    """One test, lest two workers of pytest both run the commands, which take a minute."""
    for check in (_massive, _zero_ruins, _mechanism, _folding):
        with subtests.test(check.__name__):
            check(found)


def _massive(found: dict[str, Any]) -> None:
    """The massive activation, and who writes it."""
    result = found["probe"]
    # transformers on the same file and text: 22,543.1 and 1.8199 after block 12.
    layer = result["layers"][12]
    top = layer["top"][0]
    assert (top["position"], top["dim"], top["token"]) == (0, 507, "The")
    assert top["value"] == pytest.approx(22_543.119, rel=1e-4)
    assert layer["median"] == pytest.approx(1.81986, rel=1e-4)
    (record,) = (m for m in result["massive"] if m["strict"])
    assert (record["dim"], record["first_layer"], record["last_layer"]) == (507, 11, 27)
    assert (record["written_by"]["layer"], record["written_by"]["sublayer"]) == (11, "mlp")
    assert (record["removed_by"]["layer"], record["removed_by"]["sublayer"]) == (28, "mlp")
    # The weight as the file has it, and its unit.
    (one,) = result["super_weights"]
    assert (one["layer"], one["dim"], one["column"]) == (11, 507, 1229)
    assert one["tensor"] == "blk.11.ffn_down.weight" and one["expert"] is None
    assert one["weight"] == pytest.approx(5.87573, rel=1e-5) and one["position"] == 0
    assert 0.6 < one["share"] < 0.9
    assert result["data"]["sequences"] == 1 and result["data"]["bos"] is False
    said = " ".join(found["said"].split())
    assert "507" in said and "MLP of block 11" in said and "without BOS" in said


def _zero_ruins(found: dict[str, Any]) -> None:
    """Zero ruins the model, and neither the mean nor the control does."""
    result = found["intervene"]
    (target,) = (t for t in result["targets"] if t["dim"] == 507)
    assert target["layer"] == 11 and [m["kind"] for m in target["means"]] == ["first"]
    perplexity = result["perplexity"]
    # Measured with plain NumPy on another text, with BOS: 42.8, 401,870 and 43.1.
    assert perplexity["zero"] > 1000 * perplexity["original"]
    for name in ("mean", "control_zero"):
        assert perplexity[name] == pytest.approx(perplexity["original"], rel=0.01)
    assert perplexity["fraction_0.5"] > 1.1 * perplexity["original"]
    assert result["after_zero"]["verdict"] == "needed"
    assert 507 not in result["after_zero"]["dims"]


def _mechanism(found: dict[str, Any]) -> None:
    """There are sinks, constant keys and a value drain."""
    result = found["explain"]
    before, after = result["layers"][11], result["layers"][13]
    assert before["attention"]["sink_rate"]["mean"] < 0.2 < after["attention"]["sink_rate"]["mean"]
    # BOS is the same in every sequence.
    assert after["keys"]["cosine_massive"] == pytest.approx(1, abs=1e-4)
    assert after["stream"]["dims_massive"] < 1.1 and after["value_drain"] < 0.7
    update = after["massive_update"]
    assert update["cosine"]["mean"] > after["other_update"]["cosine"]["mean"]
    assert update["cosine"]["std"] < 0.1
    without, with_bos = result["locations"]
    assert (without["bos"], with_bos["bos"]) == (False, True)
    (record,) = (m for m in with_bos["massive"] if m["dim"] == 507)
    assert record["value_mean"] == pytest.approx(24_926.2, rel=1e-4)
    assert record["value_std"] < 1


def _folding(found: dict[str, Any]) -> None:
    """Folding BOS leaves the logits, and nothing massive."""
    result = found["fold"]
    assert result["unchanged"] and result["logit_difference"] < 1e-4
    assert {m["dim"] for m in result["massive_before"] if m["strict"]} >= {507}
    assert not any(m["strict"] for m in result["massive_after"])
    assert result["perplexity_folded"] == pytest.approx(result["perplexity_original"], rel=1e-4)
    # The folded model is read again, and probed like any other.
    probed = found["folded"]
    assert not any(m["strict"] for m in probed["massive"]) and not probed["data"]["bos"]
    assert probed["layers"][12]["top"][0]["magnitude"] < 2000
