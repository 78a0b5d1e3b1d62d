"""The bench of streamed models: its random folders, its own runs, and what it asks of others."""

import json

import numpy as np
import pytest
from tiny_models import LLAMA, SWITCHES, varied

import jax_massact as ma
from jax_massact.bench import stream as bench
from jax_massact.bench.measure import anonymous_bytes
from jax_massact.bench.random_folder import write_random_folder
from jax_massact.bench.stream import Matmuls, bench_host_blocks, bench_stream
from jax_massact.cli import bench as command
from jax_massact.cli import main
from jax_massact.errors import UserError
from jax_massact.nn.transformer import parameters
from jax_massact.studies.probe.settings import ProbeConfig

CONFIG = varied(LLAMA, vocab_size=128, depth=4)
SETTINGS = ProbeConfig(text="text:" + "abc def " * 20, sequences=3, sequence_length=8)


def test_a_random_folder_is_a_model_of_this_shape(tmp_path, monkeypatch):
    monkeypatch.setattr("jax_massact.bench.random_folder.SHARD_BYTES", 8000)
    total = write_random_folder(tmp_path / "all", CONFIG)
    model, tokenizer = ma.load(tmp_path / "all")
    assert model.config == CONFIG
    assert total == 2 * sum(x.size for x in parameters(model).values())
    assert len([*(tmp_path / "all").glob("*.safetensors")]) > 2
    assert tokenizer.encode("ab", bos=False).max() < 128
    up = parameters(model)["blocks.mlp.up"]
    assert 0.01 < float(up.std()) < 0.03 and float(abs(up[0] - up[1]).max()) > 0
    assert (parameters(model)["blocks.attn_norm.scale"] == 1).all()


def test_blocks_that_are_not_filled_are_holes(tmp_path):
    config = varied(SWITCHES["qwen2_moe"], vocab_size=128, width=256, head_dim=128)
    write_random_folder(tmp_path / "few", config, filled=range(1))
    model, _ = ma.load(tmp_path / "few")
    for name in ("blocks.mlp.experts.up", "blocks.attn.q", "blocks.mlp_norm.scale"):
        sizes = [float(abs(x).max()) for x in parameters(model)[name]]
        assert sizes[0] > 0 and sizes[1:] == [0, 0]
    (file,) = (tmp_path / "few").glob("*.safetensors")
    assert file.stat().st_blocks * 512 < 0.6 * file.stat().st_size


def test_blocks_of_the_host_are_read_once(tmp_path, monkeypatch):
    write_random_folder(tmp_path / "model", CONFIG)
    read, seen = ma.open(tmp_path / "model").__class__._read, []
    note = lambda self, name: seen.append(name) or read(self, name)
    monkeypatch.setattr("jax_massact.families.open_model.OpenModel._read", note)
    result = bench_host_blocks(tmp_path / "model", SETTINGS, 2)
    assert len(seen) == 2 * 9 == len(set(seen))
    assert result["blocks"] == 4 and result["kept_blocks"] == 2
    assert 0 <= result["waits"] <= 1 and result["waited"] <= result["seconds"]


def test_the_arithmetic_is_that_of_the_blocks():
    small, tall = (
        Matmuls(varied(CONFIG, width=256, hidden=512, depth=depth), 64) for depth in (4, 400)
    )
    for matmuls in (small, tall):
        matmuls.measure(9)
    wall, cpu = tall.seconds()
    assert 10 < wall / small.seconds()[0] < 1000 and cpu > 0


def test_memory_that_no_file_backs():
    import os

    before = anonymous_bytes(os.getpid())
    held = np.ones(50_000_000, np.uint8)
    assert anonymous_bytes(os.getpid()) - before > 0.8 * held.nbytes
    assert anonymous_bytes(1 << 30) == 0


def test_each_way_is_a_process_of_its_own(tmp_path, monkeypatch, capsys):
    write_random_folder(tmp_path / "model", CONFIG)
    commands = []

    def run(arguments):
        commands.append(arguments)
        workdir = next((a for a in arguments if a.startswith("--workdir=")), "").partition("=")[2]
        if workdir:
            (tmp_path / workdir).mkdir()
            found = {"seconds": {"waited": 0.5}}
            (tmp_path / workdir / "probe.json").write_text(json.dumps(found))
        return {"wall": 10.0 if workdir else 20.0, "cpu": 5.0, "anonymous": 2_000_000}

    monkeypatch.setattr(bench, "_run", run)
    result = bench_stream(
        str(tmp_path / "model"), SETTINGS, loaded=True, reference="python-with-torch",
        reference_dtype="float16", say=lambda line: None,
    )
    streamed, loaded, authors = commands
    assert "--config.stream=true" in streamed and "--config.stream=false" in loaded
    assert streamed[3] == "probe" and "--config.sequences=3" in streamed
    assert authors[0] == "python-with-torch" and authors[-5:-3] == ["float16", "--threads"]
    assert [*result["runs"]] == ["streamed probe", "loaded probe", "authors' way, one sequence"]
    ratios = result["ratios"]
    assert ratios["share of its time in which it waits for a block"] == 0.05
    (slower,) = [ratio for name, ratio in ratios.items() if "authors' way" in name]
    assert slower == 6
    monkeypatch.setattr(command, "bench_stream", lambda *_, **__: result)
    assert main(["bench", "stream", str(tmp_path / "model"), "--json", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "streamed probe" in out and "10.0" in out and "6.000" in out
    assert json.loads((tmp_path / "x").read_text()) == result
    with pytest.raises(UserError, match="is a file; expected: a folder of safetensors"):
        gguf = "tests/parity/fixtures/gguf/smollm2.gguf"
        bench_stream(gguf, ProbeConfig(text=SETTINGS.text, sequences=1, sequence_length=8),
                     loaded=False, reference=None, reference_dtype="float16", say=lambda line: None)
