"""The real SmolLM2-135M against figures measured with other software (transformers, NumPy)."""

import functools
import json
from pathlib import Path

import jax
import numpy as np
import pytest

import jax_massact as ma
from jax_massact.cli import main
from jax_massact.data.text import documents, windows
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
    assert main([*arguments, "--config.bos=False", f"--config.text={LONDON}"]) == 0
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
    out = capsys.readouterr()
    assert "507" in out.out and "MLP of block 11" in " ".join(out.out.split())
    assert "without BOS" in " ".join(out.err.split())
    assert result["data"]["sequences"] == 1 and result["data"]["bos"] is False


def test_the_values_with_bos_are_those_of_a_numpy_model() -> None:
    model, tokenizer = ma.load(checkpoint())
    tokens = windows(documents("pydoc"), tokenizer, sequences=1, sequence_length=512, bos=True)
    assert tokens[0, 0] == 1
    stats = jax.device_get(jax.jit(ma.magnitudes)(model, tokens))
    # A plain NumPy model in float32: what BOS carries does not depend on what follows it.
    for layer, value in ((11, 24_926.2), (27, 24_538.3)):
        top = stats.top
        assert (top.position[layer, 0, 0], top.dim[layer, 0, 0]) == (0, 507)
        assert top.value[layer, 0, 0] == pytest.approx(value, rel=1e-4)


def test_zeroing_one_number_ruins_the_model_and_its_mean_does_not() -> None:
    model, tokenizer = ma.load(checkpoint())
    text = documents("pydoc")
    tokens = windows(text, tokenizer, sequences=2, sequence_length=256, bos=True)

    @jax.jit
    def loss(model, tokens, edits):
        logits, _ = model(tokens, edits=edits)
        log_p = jax.nn.log_softmax(logits[:, :-1])
        return -jax.numpy.take_along_axis(log_p, tokens[:, 1:, None], -1).mean()

    first = np.arange(256) == 0
    edit = lambda value: ma.Edits.set_to(11, first, 507, value)
    nowhere = ma.Edits.set_to(99, first, 507, 0.0)
    original, zero, mean = (
        float(loss(model, tokens, e)) for e in (nowhere, edit(0.0), edit(24_926.0))
    )
    # Measured with plain NumPy on another text: perplexity 42.8, 401,870 and 43.1.
    assert zero - original > np.log(1000)
    assert abs(mean - original) < 0.01
