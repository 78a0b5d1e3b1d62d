"""The README and the site's texts: their examples run, their numbers are those of recorded results.

Examples run as they stand, with a small checkpoint in place of the download.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from parity.family_cases import FAMILIES as FAMILY_CASES

import jax_massact as ma
from jax_massact.cli.listing import TABLES
from jax_massact.cli.table import COMMANDS
from jax_massact.families.checked import checked
from jax_massact.families.table import FAMILIES
from jax_massact.report import words
from jax_massact.studies.changes import change_of
from jax_massact.studies.intervene.report import change
from jax_massact.studies.quantize.report import times

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
GGUF = ROOT / "tests" / "parity" / "fixtures" / "gguf" / "smollm2.gguf"


def run_example(page: Path, monkeypatch: pytest.MonkeyPatch) -> dict:
    code = "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL))
    load = ma.load

    def load_small(name: str):
        assert name == "smollm2-135m"
        model, tokenizer = load(GGUF)
        # Any ids of the small model do; its layers and dimensions are fewer than the README's.
        encode = lambda self, text, *, bos: np.arange(len(text.split()), dtype=np.int32)
        monkeypatch.setattr(type(tokenizer), "encode", encode)
        return model, tokenizer

    def open_small(name: str):
        load_small(name)
        return opened(GGUF)

    opened = ma.open
    monkeypatch.setattr(ma, "load", load_small)
    monkeypatch.setattr(ma, "open", open_small)
    names: dict = {}
    exec(compile(code.replace("[12, 0", "[-1, 0"), page.name, "exec"), names)
    return names


def test_the_example_of_the_readme_runs(monkeypatch, capsys) -> None:
    names = run_example(ROOT / "README.md", monkeypatch)
    model, tokens = names["model"], names["tokens"]
    stream = ma.residual_streams(model, tokens)
    np.testing.assert_allclose(names["squared"], (stream**2).sum(-1), rtol=1e-5)
    assert "nan" not in capsys.readouterr().out


def test_the_example_of_the_page_on_python_runs(monkeypatch, capsys) -> None:
    names = run_example(ROOT / "docs" / "python.md", monkeypatch)
    model, tokens = names["model"], names["tokens"]
    assert names["streams"].shape == (model.config.depth, *tokens.shape, model.config.width)
    assert names["mean_norms"](model, tokens).shape == (model.config.depth, 1)
    assert np.isfinite(names["logits"]).all()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= 5 and not any("nan" in line for line in lines)
    assert names["folded"].config.block.attention.variant == "kv_bias"


def test_the_example_of_the_page_on_streaming_runs(monkeypatch, capsys) -> None:
    names = run_example(ROOT / "docs" / "streaming.md", monkeypatch)
    model, _ = ma.load("smollm2-135m")
    np.testing.assert_allclose(
        names["squares"], (ma.residual_streams(model, names["tokens"]) ** 2).sum(-1), rtol=1e-4
    )
    assert "nan" not in capsys.readouterr().out


def test_the_readme_names_every_command_in_two_screens():
    assert 90 <= len(README.splitlines()) <= 130
    for name in COMMANDS:
        family = name.partition(" ")[0]
        assert f"massact {family}" in README or family == "completion"


def test_the_tables_of_readme_and_site_are_those_of_the_command():
    for form, families in TABLES["formats"].rows():
        names = ", ".join(f"`{name}`" for name in families.split(", "))
        assert f"| {form} | {names} |" in README
    for name in ("formats", "families"):
        assert f'<!-- listing("{name}") -->' in (ROOT / "docs" / "index.md").read_text()


def test_how_closely_families_agree_is_recorded_for_all():
    for family, row in zip(FAMILIES, TABLES["families"].rows(), strict=True):
        found = checked(family)
        assert 0 < found["logits"] <= 1e-4 and 0 < found["hidden"] <= 1e-4
        assert (found["gguf"] > 0) >= (family.gguf is not None)
        assert found["models"] == len(FAMILY_CASES[family.model_type].cases)
        assert row[4] == str(found["models"]) and "transformers" in row[3]
        assert float(row[5]) >= max(found["logits"], found["hidden"])


def test_the_interventions_of_the_readme_are_those_of_the_recorded_result():
    recorded = json.loads((ROOT / "docs" / "results" / "intervene.json").read_text())
    original = recorded["perplexity"]["original"]
    for name, value in recorded["perplexity"].items():
        changed = "" if name == "original" else change(value, original)
        assert f"| {change_of(name).words} | {words.number(value)} | {changed} |" in README
    assert f"jax {recorded['versions']['jax']}" in README


def test_the_verdict_of_the_readme_is_that_of_the_recorded_result():
    recorded = json.loads((ROOT / "docs" / "results" / "probe.json").read_text())
    (strict,) = words.by_size(recorded["massive"], strict=True)
    said = " ".join(README.split())
    assert words.sentence(strict) in said and words.data_line(recorded["data"]) in said


def test_what_rounding_costs_in_the_readme_is_in_the_recorded_results():
    quantized = json.loads((ROOT / "docs" / "results" / "quantize.json").read_text())
    ratio = {(r["variant"], r["sites"]): times(r["ratio"]) for r in quantized["rows"]
             if (r["format"], r["granularity"]) == ("int8", "tensor")}
    said, saved = " ".join(README.split()), quantized["verdict"]["bits_saved"]
    for sites, before in (("linear", "perplexity is"), ("residual", "in the residual stream")):
        both = ratio["original", sites], ratio["folded", sites]
        assert f"{before} {both[0]} (folded {both[1]})" in said
    assert f"saves {saved['linear']} and {saved['residual']} bits" in said
    folded = json.loads((ROOT / "docs" / "results" / "fold.json").read_text())
    again, number = folded["massive_sequences_after"], folded["data"]["sequences"]
    assert f"in {again} of {number} sequences a later token is massive" in said


def test_what_the_variants_do_in_the_readme_is_in_the_recorded_results():
    recorded = json.loads((ROOT / "docs" / "results" / "compare-llama-30m.json").read_text())
    groups = {group["name"]: group for group in recorded["groups"]}
    both = [groups["standard"], groups["kv_bias"]]
    assert [len(group["runs"]) for group in both] == [3, 3]

    def around(name, form):
        return [f"{form(g['mean'][name])} ± {form(g['std'][name])}" for g in both]

    def massive(group):
        found = [run["interventions"]["massive"] for run in group["runs"]]
        strict = sum(any(record["strict"] for record in records) for records in found)
        return f"{strict} ({sum(map(bool, found))}) of 3"

    residual = [group["rounding_change"]["w8a8_residual"] for group in both]
    rows = {
        "median": around("ratio", "{:,.0f}".format),
        "with most": around("sink_rate", "{:.0%}".format),
        "in int8, nats": [f"+{np.mean(x):.3f} ± {np.std(x, ddof=1):.3f}" for x in residual],
        "validation loss, nats": around("validation_loss", "{:.3f}".format),
        "strict (relaxed)": [massive(group) for group in both],
    }
    for name, values in rows.items():
        assert f"{name} | {' | '.join(values)} |" in README, (name, values)
    minutes = [run["seconds"] / 60 for group in both for run in group["runs"]]
    assert f"{min(minutes):.0f} to {max(minutes):.0f} minutes a run" in README


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#]*)#?([^)]*)\)", text):
        if target.startswith("http"):
            continue
        file = page.parent / target.split("{")[0] if target else page
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings]
            # As the site writes them: of several hyphens one.
            assert anchor in slugs or anchor in [re.sub("-+", "-", s) for s in slugs], anchor
