"""The real SmolLM2-135M against figures measured with other software (transformers, NumPy)."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import jax_massact as ma
from jax_massact.cli import main
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


def test_the_command_finds_the_massive_activation_and_its_writer(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    checkpoint()
    arguments = ["probe", "smollm2-135m", f"--workdir={tmp_path}"]
    assert main([*arguments, "--config.bos=False", f"--config.text=text:{LONDON}"]) == 0
    result = json.loads((tmp_path / "probe.json").read_text())
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
    out = capsys.readouterr()
    assert "507" in out.out and "MLP of block 11" in " ".join(out.out.split())
    assert "without BOS" in " ".join(out.err.split())
    assert result["data"]["sequences"] == 1 and result["data"]["bos"] is False


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


# Each with settings of its own; the last of the model that the one before it folds.
COMMANDS = [
    ["intervene", "smollm2-135m", "sequences=2", "calibration_sequences=4", "sequence_length=128"],
    ["explain", "smollm2-135m", "bos=true", "sequences=3", "sequence_length=128",
     "location_sequences=2", "location_length=64"],
    ["fold", "smollm2-135m", "sequences=2", "sequence_length=128"],
    ["probe", "fold/model", "sequences=2", "sequence_length=127"],
]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """What the commands find, which one process runs that compiles as for users: that takes less
    time than this model takes when it is compiled quickly."""
    checkpoint()
    folder = tmp_path_factory.mktemp("smollm2")
    lines = [
        [name, model, f"--workdir={name}", *(f"--config.{setting}" for setting in settings)]
        for name, model, *settings in COMMANDS
    ]
    code = "import sys; from jax_massact.cli import main; sys.exit(any(map(main, {})))"
    path = os.pathsep.join([str(Path(ma.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    subprocess.run(
        [sys.executable, "-c", code.format(lines)], check=True, cwd=folder,
        env=os.environ | {"XLA_FLAGS": "", "JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": path},
    )
    return {name: json.loads((folder / name / f"{name}.json").read_text()) for name, *_ in COMMANDS}


def test_what_the_commands_find(found: dict[str, dict], subtests: pytest.Subtests) -> None:
    """One test, lest two workers of pytest both run the commands, which take a minute."""
    for check in (_zero_ruins, _mechanism, _folding):
        with subtests.test(check.__name__):
            check(found)


def _zero_ruins(found: dict[str, dict]) -> None:
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


def _mechanism(found: dict[str, dict]) -> None:
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


def _folding(found: dict[str, dict]) -> None:
    """Folding BOS leaves the logits, and nothing massive."""
    result = found["fold"]
    assert result["unchanged"] and result["logit_difference"] < 1e-4
    assert {m["dim"] for m in result["massive_before"] if m["strict"]} >= {507}
    assert not any(m["strict"] for m in result["massive_after"])
    assert result["perplexity_folded"] == pytest.approx(result["perplexity_original"], rel=1e-4)
    # The folded model is read again, and probed like any other.
    probed = found["probe"]
    assert not any(m["strict"] for m in probed["massive"]) and not probed["data"]["bos"]
    assert probed["layers"][12]["top"][0]["magnitude"] < 2000
