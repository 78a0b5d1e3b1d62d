"""Tutorials run as scripts, on a small model in place of the download.

The one that trains is executed where the site is built by hand, as all are.
"""

import runpy
from pathlib import Path

import matplotlib
import numpy as np
import pytest

import jax_massact as ma

ROOT = Path(__file__).parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
GGUF = ROOT / "tests" / "parity" / "fixtures" / "gguf" / "smollm2.gguf"


@pytest.fixture
def run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MASSACT_TUTORIAL_MODEL", str(GGUF))
    matplotlib.use("agg")

    def run(name):
        names = runpy.run_path(str(ROOT / "docs" / "tutorials" / f"{name}.py"))
        return names, capsys.readouterr().out

    return run


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_tutorial_opens_as_a_notebook_and_is_in_the_site(path):
    text = path.read_text()
    assert text.startswith("# ---\n# jupyter:") and "# %% [markdown]\n# # " in text
    assert f"tutorials/{path.stem}.md" in (ROOT / "mkdocs.yml").read_text()


def test_probe(run):
    names, out = run("probe")
    model, tokens = ma.load(GGUF)[0], names["tokens"]
    streams = np.abs(ma.residual_streams(model, tokens))
    layer = model.config.depth - 1
    assert f"layer {layer:2}: {int(names['top'].value[layer, 0, 0]):7,} at token" in out
    top = abs(names["top"].value[layer, 0, 0])
    np.testing.assert_allclose(top, streams[layer].max(), rtol=1e-6)
    assert "nothing is massive" in out


def test_tap(run):
    names, out = run("tap")
    stream = ma.residual_streams(names["model"], names["tokens"])
    np.testing.assert_allclose(names["norm"], np.linalg.norm(stream, axis=-1), rtol=1e-5)
    share = (stream**2).max(-1) / (stream**2).sum(-1)
    np.testing.assert_allclose(names["share"], share, rtol=1e-5)
    assert f"dim {names['dim']}: the MLP of block" in out


def test_fold_and_intervene(run):
    names, out = run("fold_and_intervene")
    same = names["perplexity"](names["model"], names["tokens"])
    assert names["with_value"](names["mean"]) == pytest.approx(float(same), rel=1e-5)
    assert names["with_value"](30.0) != pytest.approx(float(same), rel=1e-3)
    assert names["error"] < 1e-5 and "attention is now 'kv_bias'" in out


def test_quantize(run):
    names, out = run("quantize")
    exact = float(ma.perplexity(names["model"], names["tokens"]))
    assert float(names["exact"]) == pytest.approx(exact, rel=1e-5)
    assert out.count("range") == 6 and (names["ratio"] != 1).any()
    assert f"blocks that lose most: {names['ratio'].argmax()} (x" in out
