"""1,000 mutated files: none crashes the interpreter, hangs, or takes much memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

SCRIPT = Path(__file__).parents[1] / "fuzz_files.py"


@pytest.mark.parametrize(("kind", "count"), [("gguf", 500), ("safetensors", 500)])
def test_mutated_files(tmp_path, kind, count):
    # A process of its own: a crash is a return code, a hang a time-out.
    result = subprocess.run(
        [sys.executable, str(SCRIPT), kind, str(count), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 0, result.stderr[-3000:]
    outcomes = json.loads(result.stdout)
    assert sum(outcomes.values()) == count
    # All three ends occur, so that none of the checks is idle.
    assert outcomes["refused"] > count / 2 and outcomes["same"] > 5 and outcomes["flipped"] > 5
