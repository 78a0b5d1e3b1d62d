"""The README's example runs as it stands, with a small checkpoint in place of the download."""

import re
from pathlib import Path

import numpy as np
import pytest

import jax_massact as ma

ROOT = Path(__file__).parents[1]
GGUF = ROOT / "tests" / "parity" / "fixtures" / "gguf" / "smollm2.gguf"


def example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return code


def test_the_example_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    load = ma.load
    asked: list[str] = []

    def load_small(name: str):
        asked.append(name)
        model, tokenizer = load(GGUF)
        # Any ids of the small model do; its layers and dimensions are fewer than the README's.
        encode = lambda self, text, *, bos: np.arange(len(text.split()), dtype=np.int32)
        monkeypatch.setattr(type(tokenizer), "encode", encode)
        return model, tokenizer

    monkeypatch.setattr(ma, "load", load_small)
    names: dict = {}
    exec(compile(example().replace("[12, 0", "[-1, 0"), "README.md", "exec"), names)
    assert asked == ["smollm2-135m"]
    model, tokens = names["model"], names["tokens"]
    assert names["streams"].shape == (model.config.depth, *tokens.shape, model.config.width)
    assert names["mean_norms"](model, tokens).shape == (model.config.depth, 1)
    assert np.isfinite(names["logits"]).all()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 5 and not any("nan" in line for line in lines)
    assert names["folded"].config.block.attention.variant == "kv_bias"
