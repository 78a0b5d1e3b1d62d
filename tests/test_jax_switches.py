"""JAX's own switches in the environment: one line says which one cannot be used."""

import os
import subprocess
import sys

import pytest

from jax_massact.cli import main
from jax_massact.jax_switches import missing_device

TRAIN = ["train", "--config=configs/gpt2_tiny.py:standard"]


@pytest.mark.parametrize("name", ["jax_disable_jit", "jax_debug_nans", "jax_debug_infs"])
def test_a_switch_that_cannot_be_used(tmp_path, capsys, monkeypatch, name):
    monkeypatch.setenv(name.upper(), "True")
    assert main([*TRAIN, f"--workdir={tmp_path / 'run'}"]) == 2
    assert main(["probe", "no-such-model"]) == 2
    lines = capsys.readouterr().err.splitlines()
    said = f"massact: {name.upper()} is on; expected: off, because "
    assert len(lines) == 2 and all(line.startswith(said) for line in lines)
    assert not (tmp_path / "run").exists()


def test_a_platform_that_is_not_here(tmp_path):
    """In a process of its own: JAX looks for its devices once."""
    done = subprocess.run(
        [sys.executable, "-m", "jax_massact", *TRAIN, f"--workdir={tmp_path}"],
        env=os.environ | {"JAX_PLATFORMS": "tpu", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("massact: no TPU device here, and JAX_PLATFORMS is 'tpu'; exp")
    assert len(done.stderr.splitlines()) == 1


def test_other_errors_are_left_alone():
    for error in (AssertionError(), AssertionError("why"), RuntimeError("why")):
        assert missing_device(error) is None
