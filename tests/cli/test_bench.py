"""The benchmark, and the command in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from jax_massact.bench.probe import run_process
from jax_massact.cli import main
from jax_massact.cli.settings import resolve
from jax_massact.config import ProbeConfig
from jax_massact.errors import UserError

FIXTURES = Path(__file__).parents[1] / "parity" / "fixtures"
MODEL = str(FIXTURES / "gguf" / "smollm2.gguf")
SMALL = ["--config.sequences=2", "--config.sequence_length=16"]


def test_the_command_runs_as_a_process_and_leaves_no_traceback(tmp_path):
    command = [sys.executable, "-m", "jax_massact.cli", "probe"]
    good = subprocess.run(
        [*command, MODEL, f"--workdir={tmp_path}", *SMALL, "--config.batch_size=2"],
        capture_output=True,
        text=True,
    )
    assert good.returncode == 0, good.stderr
    assert (tmp_path / "report.html").stat().st_size > 1_000_000
    bad = subprocess.run([*command, "nowhere.gguf"], capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stderr.count("\n") == 1


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
    assert "whole processes" in " ".join(capsys.readouterr().out.split())
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
