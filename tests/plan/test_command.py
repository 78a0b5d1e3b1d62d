"""`massact plan`: what it prints and writes, and its exit codes."""

import json
import re
import time

import pytest

from jax_massact.cli import main
from jax_massact.cli.settings import resolve
from jax_massact.plan import command
from jax_massact.train.config import TrainConfig
from jax_massact.train.step import parameter_count

TINY = "--config=configs/gpt2_tiny.py:kv_bias"


def test_the_tiny_model_on_16_devices(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(command, "has_compiler", lambda: False)
    file = tmp_path / "plan.json"
    assert main(["plan", TINY, "--device=v5e:4x4", "--config.mesh=dcn=2,data=-1,fsdp=4",
                 "--config.optimizer.name=adamw", "--json", str(file)]) == 0
    out, err = capsys.readouterr()
    assert err == f"wrote {file}\n"
    out = " ".join(out.split())
    for part in ("16 x v5e; mesh: dcn 2, data 2, fsdp 4", "all-gather 4, fsdp",
                 "all-reduce 16, dcn x data", "optimizer state",
                 "at most: their sum, at 33% of the peak", "tokens/s; MFU",
                 "docs.cloud.google.com/tpu/docs/v5e", "model.dtype is float32", "fits: ",
                 "an estimate only", "pip install 'jax_massact[tpu-aot]'"):
        assert part in out, part
    plan = json.loads(file.read_text())
    assert plan["compiled"] is None
    assert plan["mesh"] == {"dcn": 2, "data": 2, "fsdp": 4, "model": 1}
    assert plan["tokens"] == 32 * 64
    # Over the network between the slices, which is slower than all else.
    (reduced,) = (r for r in plan["traffic"] if r["axes"] == ["dcn", "data", "fsdp"])
    assert reduced["devices"] == 16 and reduced["seconds"][0] > 0


def test_what_does_not_fit_is_said_and_a_mesh_that_is_not_named_takes_all_devices(tmp_path, capsys):
    file = tmp_path / "plan.json"
    big = "--config.batch_size=262144"
    assert main(["plan", TINY, "--devices=4", "--device=v5e", f"--json={file}", big]) == 1
    out = " ".join(capsys.readouterr().out.split())
    assert json.loads(file.read_text())["mesh"]["data"] == 4 and "4 x v5e; mesh: data 4" in out
    assert "does not fit: " in out and re.search(r"[\d.]+ GiB too much; it would with "
                                                 r"--config.accumulate=8: [\d.]+ GiB", out), out


@pytest.mark.parametrize(("arguments", "said"), [
    (["--devices=4", "--device=b300"], "--device is 'b300'; expected: a100, h100"),
    (["--devices=0", "--device=h100"], "--devices is 0; expected: a whole number of at least 1"),
    (["--devices=4", "--device=h100", "--config.mesh=fsdp=8"],
     "mesh is fsdp=8, 8 devices; --devices is 4; one axis may be -1"),
    (["--devices=8", "--device=h100", "--config.mesh=data=-1,fsdp=3",
      "--config.batch_size=48"],
     "config: mesh.fsdp is 3; expected: a divisor of model.width (64): 1, 2, 4, 8, 16, 32, 64"),
    (["--devices=4", "--device=h100", "--config.mesh=model=-1"],
     "mesh.model is 4; expected: a divisor of attention.heads (1)"),
    (["--devices=64", "--device=h100"],
     "mesh.data is 64; expected: a divisor of batch_size / accumulate, which is 32"),
    (["--devices=2", "--device=h100", "--config.mesh=data=-1,tensor=2"],
     "axes, each once: dcn, data, fsdp, model"),
])
def test_refusals_in_one_line(arguments, said, capsys):
    assert main(["plan", TINY, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize(("file", "parameters"), [
    ("configs/gpt2_1_3b.py:kv_bias", 1.316e9), ("configs/llama_7b.py:standard", 6.738e9),
])
def test_large_configurations_are_what_they_say(file, parameters):
    config = resolve(TrainConfig, file, [])
    assert parameter_count(config) == pytest.approx(parameters, rel=1e-3)
    assert config.mesh.open_axis == "data" and config.mesh.on(256).devices == 256


def test_the_largest_on_256_devices(tmp_path):
    file, began = tmp_path / "plan.json", time.monotonic()
    assert main(["plan", "--config=configs/llama_7b.py:standard", "--devices=256",
                 "--device=v6e", f"--json={file}"]) == 0
    assert time.monotonic() - began < 120
    plan = json.loads(file.read_text())
    assert plan["mesh"] == {"dcn": 1, "data": 8, "fsdp": 32, "model": 1}
    # float32, and all but the norms' scales in 32 parts.
    assert plan["memory"]["parameters"] == pytest.approx(6.738e9 * 4 / 32, rel=2e-3)


def test_a_file_that_cannot_be_written_is_refused_before_the_plan_is_made(capsys):
    assert main(["plan", TINY, "--devices=4", "--device=v5e", "--json=/nowhere/x.json"]) == 2
    assert capsys.readouterr().err == (
        "massact: cannot write /nowhere/x.json: there is no such folder\n"
    )
