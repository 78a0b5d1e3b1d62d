"""`massact probe --plan`: what it refuses, prints and writes. See test_tpu_compiler for libtpu."""

import json

import pytest

from jax_massact.cli import main, probe_plan

COMMAND = ["probe", "random:smollm2-135m"]
MEMORY = {"arguments": 3 << 30, "outputs": 0, "temporary": 1 << 30, "program": 0}
PLAN = {
    "inputs": [2, 512], "mesh": {"dcn": 1, "data": 1, "fsdp": 16, "model": 1},
    "parameters": 134_515_008, "tokens": 1024, "flops": 3e11,
    "seconds": {"arithmetic": 1e-4, "memory": 4e-3},
    "compiled": {
        "topology": "v5e:4x4", "seconds": 20.0, "cpu_seconds": 21.0, "kernels": 1, "flops": 1e9,
        "bytes": 1e9, "versions": {"jax": "0.12.0", "libtpu": "0.0.52"},
        "collectives": [{"kind": "all-gather", "axes": ["fsdp"], "count": 8, "asynchronous": 6}],
    },
}


@pytest.mark.parametrize(("available", "code", "verdict"), [
    (16e9, 0, "fits: 4 GiB"), (4.4e9, 0, "tight: 4 GiB"), (4e9, 1, "does not fit: 4 GiB"),
])
def test_the_plan_of_a_shape(available, code, verdict, tmp_path, capsys, monkeypatch):
    asked = []

    def made(module, settings, device):
        asked.append((module, json.loads(settings), device))
        total = sum(MEMORY.values())
        compiled = PLAN["compiled"] | {"memory": MEMORY | {"total": total, "available": available}}
        return PLAN | {"compiled": compiled}

    monkeypatch.setattr(probe_plan, "has_compiler", lambda: True)
    monkeypatch.setattr(probe_plan, "in_process", made)
    file = tmp_path / "plan.json"
    assert main([*COMMAND, "--plan=v5e:4x4", f"--json={file}", "--config.batch_size=2",
                 "--config.dtype=bfloat16"]) == code
    out, err = capsys.readouterr()
    assert err == f"wrote {file}\n"
    out = " ".join(out.split())
    for part in (verdict, "v5e:4x4; mesh: fsdp 16", "134,515,008 parameters, a batch of 2 x 512",
                 "Compiled for v5e:4x4 in 20 s", "all-gather fsdp 8 6", "weights read 4 ms"):
        assert part in out, part
    ((module, settings, device),) = asked
    assert (module, device) == ("probe", "v5e:4x4")
    assert settings["inputs"] == [2, 512] and settings["mesh"]["fsdp"] == -1
    assert settings["model"]["dtype"] == "bfloat16" and settings["model"]["depth"] == 30
    written = json.loads(file.read_text())
    assert written["model"] == "random:smollm2-135m" and written["tokens"] == 1024


def test_pictures_have_the_size_that_is_asked_for(monkeypatch):
    shapes = []

    def made(module, settings, device):
        shapes.append(json.loads(settings)["inputs"])
        compiled = PLAN["compiled"] | {"memory": MEMORY | {"total": 1, "available": 2}}
        return PLAN | {"compiled": compiled}

    monkeypatch.setattr(probe_plan, "has_compiler", lambda: True)
    monkeypatch.setattr(probe_plan, "in_process", made)
    given = ["probe", "random:vit-l14", "--plan=v5e:2x2"]
    assert main(given) == main([*given, "--config.image_size=224"]) == 0
    assert shapes == [[1, 518, 518, 3], [1, 224, 224, 3]]


@pytest.mark.parametrize(("arguments", "said"), [
    (["--plan=v5e"], "--plan is 'v5e'; expected: a slice of TPUs, such as v5e:4x4"),
    (["--plan=v5e:4x4x4"], "expected: v5e:4x4 or another topology of 2 axes"),
    (["--plan=v5e:4x4"], "pip install 'jax_massact[tpu-aot]'"),
    (["--mesh=fsdp=8"], "--mesh is for --plan"),
    (["--json=plan.json"], "--json is for --plan"),
    (["--plan=v5e:4x4", "--json=/nowhere/x.json"], "cannot write /nowhere/x.json: there is no"),
])
def test_refusals_in_one_line(arguments, said, capsys, monkeypatch):
    monkeypatch.setattr(probe_plan, "has_compiler", lambda: False)
    assert main([*COMMAND, *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
