"""Models whose activations overflow, through every command: a warning, exit code 3, no verdict."""

import json
import warnings

import pytest
from model_folders import folder_of
from tiny_models import CONFIGS, decoder, varied

from jax_massact.cli import main
from jax_massact.nn.transformer import from_parameters, parameters

pytestmark = pytest.mark.usefixtures("undrawn")
SETTINGS = ("--config.sequences=2", "--config.sequence_length=8", "--config.text=text:a quick fox "
            "jumps over the lazy dog and then it sleeps for a while in the shade of the old tree")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    config = varied(CONFIGS["llama"], vocab_size=62)
    params = parameters(decoder(config))
    for name, factor in (("up", 1e3), ("down", 1e38)):
        params[f"blocks.mlp.{name}"] = params[f"blocks.mlp.{name}"].at[1].multiply(factor)
    return folder_of(from_parameters(config, params), tmp_path_factory.mktemp("models") / "m")


@pytest.mark.parametrize(("command", "more"), [
    ("probe", ()), ("explain", ("--config.location_sequences=2", "--config.location_length=8")),
    ("intervene", ("--config.calibration_sequences=2",)),
    ("fold", ("--config.first_token=1", "--config.save=false")),
    ("quantize", ("--config.calibration_sequences=2", "--config.variants=original",
                  "--config.rows=linear:int8:tensor", "--config.sensitivity=")),
])
def test_no_verdict(folder, command, more, tmp_path, capsys):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy's would come from means over NaN
        code = main([command, str(folder), f"--workdir={tmp_path}", *SETTINGS, *more])
    said = capsys.readouterr()
    assert code == 3
    result = json.loads((tmp_path / f"{command}.json").read_text())
    assert "NaN or infinite, first at layer 1" in result["warnings"][0]
    assert "warning: " in said.err and "NaN or infinite, first at layer 1" in said.err
    lines = [line for line in said.out.splitlines() if line.startswith("Verdict")]
    assert not lines, lines
    assert said.out.count("Warning") >= 1
