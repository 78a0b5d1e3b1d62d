"""The benchmarks."""

import json
import sys
from pathlib import Path

import pytest

from jax_massact.bench.probe import run_process
from jax_massact.cli import main
from jax_massact.cli.settings import resolve
from jax_massact.errors import UserError
from jax_massact.studies.probe.settings import ProbeConfig

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
MODEL = str(FIXTURES / "gguf" / "smollm2.gguf")
SMALL = ["--config.sequences=2", "--config.sequence_length=16"]


def test_bench_compares_whole_processes(tmp_path, capsys):
    file = tmp_path / "bench.json"
    assert main(["bench", "probe", MODEL, "--repeat=1", f"--json={file}", *SMALL]) == 0
    result = json.loads(file.read_text())
    assert set(result["runs"]) == {"probe", "probe, 3 x the sequences", "logits only"}
    for one in result["runs"].values():
        assert one["wall"] > 0 and one["peak"] > 50e6
    runs = result["runs"]
    assert result["ratios"]["peak memory, against logits only"] == pytest.approx(
        runs["probe"]["peak"] / runs["logits only"]["peak"]
    )
    out, err = capsys.readouterr()
    assert "whole processes" in " ".join(out.split()) and err.endswith(f"wrote {file}\n")
    assert main(["bench", "probe", MODEL, "--reference=/nowhere/python", *SMALL]) == 2
    assert "cannot run /nowhere/python" in capsys.readouterr().err


def test_peak_memory_is_that_of_the_process_alone():
    small = run_process([sys.executable, "-c", "pass"])
    large = run_process([sys.executable, "-c", "b'x' * (200 << 20)"])
    assert small.peak < 60e6 and 200e6 < large.peak - small.peak < 240e6
    with pytest.raises(UserError, match="exit code 3.*sorry"):
        run_process([sys.executable, "-c", "import os; os.write(2, b'sorry'); os._exit(3)"])


def test_overrides_come_after_the_file_and_the_file_after_the_defaults(monkeypatch):
    # Only the arguments given count, not those of this process.
    monkeypatch.setattr(sys, "argv", ["massact", "--config=other.py", "--config.top_k=9"])
    config = resolve(
        ProbeConfig, "configs/probe_paper.py:bos", ["--config.sequence_length", "64"]
    )
    assert (config.sequences, config.sequence_length, config.bos) == (100, 64, "true")
    assert config.top_k == ProbeConfig().top_k
    config = resolve(ProbeConfig, None, ["--config.definition.strict.ratio=2000"])
    assert config.definition.strict.ratio == 2000.0 and config.definition.relaxed.ratio == 100.0


def _found(capsys, tmp_path, *argv: str) -> dict:
    file = tmp_path / "figures.json"
    assert main(["bench", *argv, f"--json={file}"]) == 0, capsys.readouterr().err
    return json.loads(file.read_text())


TINY = [
    "--config=configs/gpt2_tiny.py:standard", "--config.model.depth=1", "--config.batch_size=4",
    "--config.sequence_length=16", "--config.watch.sequences=2", "--config.watch.sink_tokens=8",
]


def test_bench_train_times_each_variant_and_mesh_in_a_process_of_its_own(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    found = _found(
        capsys, tmp_path, "train", *TINY, "--variants=kv_bias", "--meshes=data=1;data=2",
        "--steps=1", "--windows=2",
    )
    rows = found["rows"]
    assert list(rows) == ["kv_bias data=1", "kv_bias data=2"]
    assert [row["devices"] for row in rows.values()] == [1, 2]
    # As many sequences on each device.
    for row in rows.values():
        assert row["tokens_per_second"] * row["step"] == pytest.approx(4 * 16 * row["devices"])
    one, two = (row["tokens_per_second"] for row in rows.values())
    assert found["ratios"]["kv_bias data=2"]["efficiency"] == pytest.approx(two / 2 / one)
    row = rows["kv_bias data=1"]
    assert found["ratios"]["kv_bias data=1"]["watching"] == pytest.approx(
        1 / (1 + row["watch"] / (100 * row["step"]))
    )
    assert "kv_bias data=2" in capsys.readouterr().out


def test_each_mesh_has_a_first_variant_and_each_variant_a_first_mesh():
    from jax_massact.bench.train import _ratios, _runs
    from jax_massact.train.config import MeshConfig, TrainConfig

    meshes = [MeshConfig(), MeshConfig(fsdp=2)]
    runs = _runs(TrainConfig(batch_size=8), ["standard", "sink"], meshes)
    assert [run.batch_size for run in runs.values()] == [8, 16, 8, 16]
    speeds = (100.0, 150.0, 80.0, 140.0)
    rows = {
        name: {"tokens_per_second": speed, "devices": run.mesh.devices}
        for (name, run), speed in zip(runs.items(), speeds, strict=True)
    }
    found = _ratios(rows, runs)
    assert [r["against_first"] for r in found.values()] == [1, 1, 0.8, 140 / 150]
    assert [r["efficiency"] for r in found.values()] == [1, 0.75, 1, 140 / 160]


@pytest.mark.parametrize(("more", "said"), [
    (["--meshes=data=-1"], "mesh is data=-1; expected here: no axis of -1"),
    (["--meshes=data=2;rows=2"], "mesh is 'rows=2'; expected AXIS=DEVICES"),
    (["--meshes=data=2", "--reference=."], "--reference runs on one device"),
    (["--meshes=model=2"], "mesh.model is 2; expected: a divisor of attention.heads (1)"),
])
def test_meshes_that_bench_train_refuses(capsys, more, said):
    assert main(["bench", "train", *TINY, *more]) == 2
    assert said in capsys.readouterr().err


REFERENCE = """
import json, sys
settings = json.loads(sys.argv[2])
assert settings["sequence_length"] == 16 and settings["num_heads"], settings
if "sink" in sys.argv[1]:
    sys.exit("no GPU here")
print(json.dumps({"windows": [0.5], "step": 0.5, "compile": 1, "peak": None,
                  "tokens_per_second": 4 * 16 / 0.5}))
"""


def test_bench_train_runs_the_reference_and_says_what_fails(tmp_path, capsys, monkeypatch):
    from jax_massact.bench import reference_train, train

    script = tmp_path / "stand_in.py"
    script.write_text(REFERENCE)
    monkeypatch.setattr(reference_train, "__file__", str(script))
    (tmp_path / "gpt-2").mkdir()
    options = [*TINY, "--steps=1", "--windows=1", f"--reference={tmp_path}"]
    assert main(["bench", "train", *options, "--variants=standard"]) == 2
    assert "no file" in capsys.readouterr().err
    for name in ("default", "sink"):
        (tmp_path / "gpt-2" / f"model_{name}.py").write_text("")

    # Our own step, which other tests time.
    ours = lambda command: real(command) if "train_step" not in command[2] else {
        "windows": [0.25], "step": 0.25, "tokens_per_second": 256.0, "compile": 1, "peak": None,
    }
    real = train._run
    monkeypatch.setattr(train, "_run", ours)
    found = _found(capsys, tmp_path, "train", *options, "--variants=standard")
    assert found["ratios"]["standard"]["against_reference"] == 2
    assert main(["bench", "train", *options, "--variants=sink"]) == 2
    assert "exit code 1): no GPU here" in capsys.readouterr().err
    assert main(["bench", "train", *TINY, "--variants=standard,none"]) == 2
    assert "variants is 'none'; expected: " in capsys.readouterr().err


def test_bench_attention_checks_every_variant_against_float64(tmp_path, capsys):
    small = ["batch=2", "length=33", "num_heads=4", "num_kv_heads=2", "head_dim=8", "calls=1"]
    flags = [f"--config.{setting}" for setting in (*small, "windows=1", "dtype=float32")]
    found = _found(capsys, tmp_path, "attention", *flags)
    rows = {(row["variant"], row["implementation"]): row for row in found["rows"]}
    assert {variant for variant, _ in rows} == {
        "standard", "kv_bias", "k_bias", "sink_logit", "softmax1", "clipped", "sigmoid", "softpick"
    }
    assert set(rows["kv_bias", "xla"]["error"]) == {"out", "q", "k", "v", "key", "value"}
    for (variant, _), row in rows.items():
        # Softpick's gradients are differences of larger terms.
        limit = 1e-5 if variant == "softpick" else 3e-6
        assert 0 < row["forward"] and 0 < max(row["error"].values()) < limit
    if "cudnn" in found["unfit"]:
        assert "not on this" in found["unfit"]["cudnn"] or "float32" in found["unfit"]["cudnn"]
    assert main(["bench", "attention", "--config.num_kv_heads=5"]) == 2
    assert "a divisor of num_heads, 12" in capsys.readouterr().err


def test_an_attention_that_is_wrong_is_seen(monkeypatch):
    from jax_massact.bench import attention as room

    right = room.attend
    monkeypatch.setattr(room, "attend", lambda q, *rest, **named: 1.01 * right(q, *rest, **named))
    shape = room.AttentionShape(
        batch=1, length=8, num_heads=1, num_kv_heads=1, head_dim=4, dtype="float32", calls=1,
        windows=1,
    )
    for row in room.bench_attention(shape)["rows"]:
        assert row["error"]["out"] == pytest.approx(0.01, rel=1e-3)


def test_bench_probe_of_random_weights(tmp_path, capsys, monkeypatch):
    from nn.test_images import VIT
    from tiny_models import LLAMA

    from jax_massact.bench import device_probe

    monkeypatch.setitem(device_probe.SHAPES, "tiny", LLAMA)
    flags = ["--config.batch_size=2", "--config.sequence_length=8", "--repeat=1"]
    found = _found(capsys, tmp_path, "probe", "random:tiny", *flags, "--mesh=model=2")
    rows = found["rows"]
    assert list(rows) == ["forward", "probe", "authors' way"]
    assert found["ratios"]["time of the probe, against the forward pass"] == pytest.approx(
        rows["probe"]["seconds"] / rows["forward"]["seconds"]
    )
    monkeypatch.setitem(device_probe.SHAPES, "vit", VIT)
    script = tmp_path / "timm_stand_in.py"
    script.write_text("import sys, json\nassert json.loads(sys.argv[1])['image_size'] == 6\n"
                      "print('{\"seconds\": {\"forward\": 5, \"probe\": 7}}')")
    monkeypatch.setattr(device_probe.reference_images, "__file__", str(script))
    monkeypatch.setitem(device_probe._TIMM, "vit", "a model of timm")
    images = ["--config.batch_size=2", "--config.image_size=6", "--repeat=1"]
    python = f"--reference={sys.executable}"
    pixels = _found(capsys, tmp_path, "probe", "random:vit", *images, python)
    assert list(pixels["rows"]) == ["forward", "probe", "timm, forward", "timm, probe"]
    assert (pixels["sequences"], pixels["sequence_length"]) == (2, 3 + 9)
    assert pixels["ratios"]["time of timm's probe under torch.compile, against ours"] == (
        pytest.approx(7 / pixels["rows"]["probe"]["seconds"])
    )
    assert found["devices"] == 2 and pixels["devices"] == 1
    assert main(["bench", "probe", "smollm2-135m", "--mesh=model=2"]) == 2
    assert "--mesh is for random weights" in capsys.readouterr().err
    assert main(["bench", "probe", "random:huge"]) == 2
    assert "no shape 'huge'; expected: llama2-7b" in capsys.readouterr().err
    assert main(["bench", "probe", "random:tiny", "--json=/nowhere/x.json"]) == 2
    assert "no such folder" in capsys.readouterr().err
