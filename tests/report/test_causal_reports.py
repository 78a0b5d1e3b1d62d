"""The reports of `intervene`, `explain` and `fold`: every result, the empty and the nasty."""

import io
import json
import math
import subprocess
import sys

import headless
import matplotlib
import numpy as np
import pytest
import report_examples as examples
from causal_examples import DEPTH, KINDS, NASTY, explain_result, fold_result, intervene_result
from json_schema import read, violations
from page_reader import read_page
from rich.console import Console

from jax_massact.report import figures
from jax_massact.report.sections import render_report
from jax_massact.studies.explain import figures as explain_figures
from jax_massact.studies.explain import report as explain
from jax_massact.studies.explain.result import ExplainResult
from jax_massact.studies.fold import report as fold
from jax_massact.studies.fold.result import FoldResult
from jax_massact.studies.intervene import figures as intervene_figures
from jax_massact.studies.intervene import report as intervene
from jax_massact.studies.interventions_result import InterveneResult
from jax_massact.studies.output import Outcome, write_files

FIGURES = {
    "intervene": ["perplexity", "after_zero"],
    "explain": ["attention_maps", "attention_shares", "norms", "value_updates"],
    "fold": [],
}
kinds = pytest.mark.parametrize("kind", KINDS)


def written(show, result, encoding="utf-8", width=80) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(result, Console(file=file, width=width))
    file.seek(0)
    return file.read()


def printed(show, result, **console) -> str:
    return " ".join(written(show, result, **console).split())


def terminal(kind, **console) -> dict[str, str]:
    return {
        "intervene": written(intervene.show, intervene_result(kind), **console),
        "explain": written(explain.show, explain_result(kind)[0], **console),
        "fold": written(fold.show, fold_result(kind), **console),
    }


def page_texts(kind) -> dict[str, str]:
    """The bodies of the pages, without what surrounds them."""
    sections = {
        "intervene": intervene.intervene_sections(intervene_result(kind)),
        "explain": explain.explain_sections(*explain_result(kind)),
        "fold": fold.fold_sections(fold_result(kind)),
    }
    return {name: "".join(s.body for s in some) for name, some in sections.items()}


def rows(page: str, caption: str) -> list[list[str]]:
    """The cells of the table with this caption, or after this text."""
    body = page[page.index(caption) :].split("<tbody>")[1].split("</tbody>")[0]
    return [
        [read_page(cell.split("</td>")[0].split(">", 1)[1]).text for cell in row.split("<td")[1:]]
        for row in body.split("<tr>")[1:]
    ]


def figure_texts(figure) -> str:
    return " ".join(t.get_text() for t in figure.findobj(matplotlib.text.Text))


def line_data(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.array(line.get_ydata(), dtype=float) for line in axes.lines}


def chart_of(page: str, name: str) -> dict:
    return json.loads(read_page(page).blocks[f"{name}-data"])


@kinds
def test_every_report_is_written_whole_and_valid(kind, tmp_path):
    reports = {
        "intervene": (Outcome(intervene_result(kind)), InterveneResult),
        "explain": (Outcome((found := explain_result(kind))[0], found[1:]), ExplainResult),
        "fold": (Outcome(fold_result(kind)), FoldResult),
    }
    for name, (outcome, schema) in reports.items():
        paths, failures = write_files(name, outcome, tmp_path / "new" / name)
        assert failures == []
        expected = [n for n in FIGURES[name] if n != "after_zero" or kind != "none"]
        assert [p.name for p in paths] == [
            f"{name}.json", f"{name}.html", *(f"{n}.{s}" for n in expected for s in ("png", "pdf"))
        ]
        assert sorted(paths) == sorted(p for p in paths[0].parent.rglob("*") if p.is_file())
        assert violations(read(paths[0]), schema) == []
        for path in paths[2:]:
            content = path.read_bytes()
            assert content.startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF-")
            assert b"/Type3" not in content
        text = paths[1].read_text(encoding="utf-8")
        page = read_page(text)
        assert "<script>alert" not in text and not page.tags("img") and not page.tags("b")
        assert not [s for s in page.tags("script") if "src" in s]
        assert len(page.tags("script")) == 2 + text.count('class="chart"')
        assert page.tags("section")[0]["id"] == "verdict" and len(page.tags("h1")) == 1
        if kind == "nasty":
            assert NASTY in page.text


@kinds
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_terminal_is_plain_text_of_80_columns(kind, encoding):
    for text in terminal(kind, encoding=encoding).values():
        assert all(c.isprintable() or c == "\n" for c in text) and "…" not in text
        assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
        if encoding == "ascii":
            assert text.isascii()


def test_none_found_is_said_first_everywhere():
    for name, text in terminal("none").items():
        assert "No massive activations" in text.split("Verdict")[1].split("\n\n")[0], name
    for text in page_texts("none").values():
        assert "No massive activations" in read_page(text).text
    assert "nothing to split" in figure_texts(
        explain_figures.draw_updates(explain_result("none")[0]))
    page = page_texts("none")["explain"]
    assert "None of these tokens is massive." in page and "update-cosine" not in page


def test_relaxed_is_never_called_massive_alone():
    result, picture = explain_result("relaxed")
    for name, text in (terminal("relaxed") | page_texts("relaxed")).items():
        assert "assive (strict):" not in text and "massive (strict) again" not in text, name
    for text in terminal("relaxed").values():
        said = " ".join(text.split("Verdict")[1].split("\n\n")[0].split())
        assert "relaxed" in said.lower()
    for text in page_texts("relaxed").values():
        verdict = text[text.index('<div class="verdict') :].split("</div>")[0]
        assert "relaxed" in verdict.lower()
    for figure in (
        explain_figures.draw_attention_maps(result, picture), explain_figures.draw_shares(result),
        explain_figures.draw_norms(result), explain_figures.draw_updates(result),
    ):
        text = figure_texts(figure)
        assert "massive (relaxed)" in text
        assert "massive" not in text.replace("massive (relaxed)", "")
    for draw in (intervene_figures.draw_perplexity, intervene_figures.draw_after_zero):
        assert "(relaxed only)" in figure_texts(draw(intervene_result("relaxed")))
    columns = page_texts("relaxed")["explain"]
    for title in ("on massive (relaxed) tokens", "L2 norm, massive (relaxed) / other",
                  "Value updates from massive (relaxed) tokens", "marked with * are massive (rel"):
        assert title in columns


def test_strict_and_relaxed_have_tables_of_their_own():
    # The strict example leaves a relaxed record once its targets are zero.
    text = written(intervene.show, intervene_result())
    assert "Relaxed only, once the targets are zero" in text
    assert "Massive (strict) once the targets are zero" not in text
    page = page_texts("strict")["intervene"]
    assert "Once the targets are zero: relaxed only: not massive by the strict definition" in page
    remains = fold_result() | {"massive_after": [
        examples.massive(9, 500.0, 2, 4, DEPTH), examples.massive(5, 50.0, 2, 2, DEPTH,
                                                                 strict=False)]}
    text = written(fold.show, remains)
    strict, relaxed = text.split("What remains: massive (strict)")[1].split(
        "What remains: relaxed only")
    assert "\n  9 " in strict and "\n  5 " not in strict and "\n  5 " in relaxed


def test_one_sequence_has_no_deviation():
    for name, text in (terminal("single") | page_texts("single")).items():
        # Locations and means are over other numbers of sequences.
        text = text.split("Without BOS, 100")[0].split("What was changed")[0]
        text = text.split("calibration activations")[0]
        assert "±" not in text and " std" not in text, name
    result, _ = explain_result("single")
    assert not explain_figures.draw_shares(result).axes[0].collections
    assert explain_figures.draw_shares(explain_result()[0]).axes[0].collections


# intervene


def test_intervene_says_what_happens_in_sentences():
    assert intervene.verdict(intervene_result()) == [
        "Massive activations (strict): dim 7 after block 1.",
        "Setting 8 activations of 8 held-out sequences to zero multiplies perplexity by 318.5, "
        "from 15.7 to 5,000. Setting them to their mean changes perplexity by +0.64%. Control: "
        "setting 9 ordinary activations to zero changes perplexity by -0.06%.",
        "It is needed: no later block makes dim 7 massive again.",
    ]


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ("needed", "It is needed: no later block makes dim 7 massive again"),
        ("rebuilt", "It is rebuilt: a later block makes dim 7 massive again, and the model does"),
        ("needed and rebuilt", "It is needed, though a later block makes dim 7 massive again"),
        ("not needed", "It is not needed: no later block makes dim 7 massive again, and the model"),
    ],
)
def test_each_verdict_has_its_sentence(verdict, says):
    assert says in printed(intervene.show, intervene_result(verdict=verdict))


def test_what_comes_back_over_the_relaxed_threshold_is_said():
    result = intervene_result()
    back = examples.massive(7, -333.0, 4, 4, DEPTH, strict=False)
    result["after_zero"]["massive"].append(back)
    says = "Still, by the relaxed definition only, dim 7 is large after the edit: -333 after block"
    assert says in " ".join(intervene.verdict(result))
    back["peak_layer"] = 0  # before the edit, and so no news
    assert len(intervene.verdict(result)) == 3


def test_nothing_met_in_the_held_out_text_proves_nothing():
    result = intervene_result(zero=15.7, verdict="not needed")
    result["targets"][0]["activations"] = 0
    text = " ".join(intervene.verdict(result))
    assert "nothing was changed" in text and "not needed" not in text


def test_many_targets_are_counted():
    result = intervene_result()
    result["targets"] = [dict(result["targets"][0], layer=l, dim=l) for l in range(14)]
    text = written(intervene.show, result)
    assert "dim 3 after block 3 and 10 more" in " ".join(text.split())
    assert "They are needed" in text and "and 4 more, in the JSON file" in text


def test_changes_are_percentages_below_twice():
    assert [intervene.change(v, 10.0) for v in (10.0, 9.99, 19.0, 20.0, 1e6)] == [
        "+0.00%", "-0.10%", "+90.00%", "x 2", "x 100,000"
    ]
    assert intervene.change(1.0, math.nan) == intervene.change(1.0, math.inf) == "-"
    assert [intervene.effect(v, 10.0) for v in (10.0, 9.9, 9e4, math.inf, math.nan)] == [
        "changes perplexity by less than 0.01%", "changes perplexity by -1.00%",
        "multiplies perplexity by 9,000", "makes perplexity infinite", "gives a perplexity of nan",
    ]


def test_tables_of_intervene_hold_the_numbers():
    page = page_texts("strict")["intervene"]
    assert rows(page, "intervention</th>") == [
        ["original", "15.7", "", "2.7500 ± 0.2200"],
        ["set to zero", "5,000", "x 318.5", "2.8750 ± 0.2200"],
        ["set to the mean", "15.8", "+0.64%", "3.0000 ± 0.2200"],
        ["set to 0.5 of the mean", "21", "+33.76%", "3.1250 ± 0.2200"],
        ["control: ordinary activations set to zero", "15.69", "-0.06%", "3.2500 ± 0.2200"],
    ]
    assert rows(page, "kind of token") == [
        ["1", "7", "first", "900.5 ± 3.25", "6", "8", "3", "9"],
        ["1", "7", "delimiter", "850.2 ± 2.5", "5", "8", "3", "9"],
    ]
    text = written(intervene.show, intervene_result())
    assert "set to zero" in text and "x 318.5  2.8750  0.2200" in text
    assert ["1", "7", "delimiter", "850.2", "2.5", "5", "8"] in [
        line.split() for line in text.splitlines()]


def test_bars_and_trajectories_hold_the_numbers():
    result = intervene_result()
    (axes,) = intervene_figures.draw_perplexity(result).axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(ends, list(result["perplexity"].values()))
    assert axes.get_xscale() == "log"
    assert chart_of(page_texts("strict")["intervene"], "perplexity")["data"][0]["x"] == [
        15.7, 5000, 15.8, 21, 15.69]
    wanted = result["after_zero"]["trajectories"][0]
    figure = intervene_figures.draw_after_zero(result)
    lines = line_data(figure.axes[0])
    np.testing.assert_allclose(lines["dim 7, original"], wanted["original"])
    np.testing.assert_allclose(lines["dim 7, set to zero"], wanted["zero"])
    assert "edit at layer 1" in lines and "after zeroing: needed" in figure_texts(figure)
    traces = chart_of(page_texts("strict")["intervene"], "after-zero")["data"]
    assert [t["y"] for t in traces] == [wanted["original"], wanted["zero"]]


def test_the_largest_trajectories_are_drawn_apart():
    result = intervene_result()
    result["after_zero"]["trajectories"] = [
        {"dim": d, "original": [0.0, 10.0**d, math.nan], "zero": [0.0, 0.0, 1.0]} for d in range(6)
    ]
    figure = intervene_figures.draw_after_zero(result)
    text = figure_texts(figure)
    assert "(4 largest of 6)" in text and "dim 5, original" in text and "dim 1," not in text
    assert figure.axes[0].get_yscale() == "symlog"
    hues = {line.get_color() for line in figure.axes[0].lines if "dim" in line.get_label()}
    assert len(hues) == 4


@pytest.mark.parametrize("values", [[math.inf], [math.nan], [0.0, math.inf]])
def test_an_infinite_perplexity_is_said_drawn_and_null_in_the_file(values, tmp_path):
    result = intervene_result(zero=values[-1])
    if len(values) == 2:  # nothing finite at all
        result["perplexity"] = dict.fromkeys(result["perplexity"], math.inf)
    word = "nan" if math.isnan(values[-1]) else "inf"
    assert word in printed(intervene.show, result)
    paths, _ = write_files("intervene", Outcome(result), tmp_path)
    assert read(paths[0])["perplexity"]["zero"] is None
    figure = intervene_figures.draw_perplexity(result)
    assert word in [t.get_text() for t in figure.axes[0].texts]
    bar = figure.axes[0].patches[1]
    left, right = figure.axes[0].get_xlim()
    assert left < bar.get_x() + bar.get_width() < right
    data = chart_of((tmp_path / "intervene.html").read_text(), "perplexity")["data"][0]
    assert data["text"][1] == word and data["x"][1] >= 10


# explain


def test_explain_says_what_happens_in_sentences():
    assert explain.verdict(explain_result()[0]) == [
        "Massive activations (strict) stand in the output of block 1 and after, at 1.5 tokens of "
        "a sequence on average.",
        "The sink rate is 0.75 ± 0.02: the share of heads whose mean attention to the first token "
        "exceeds 0.3 (first 64 queries).",
        "In layer 3 these tokens take 38% of the attention of the others; their keys have a mean "
        "cosine of 0.967 between sequences; their values have 0.28 times the norm of other "
        "tokens' values.",
        "What they add to that layer's attention output is 23% of it; its cosine to its mean over "
        "queries is 0.87 ± 0.02, its relative deviation from it 0.43 ± 0.02.",
    ]


def test_series_hold_the_numbers_of_the_result():
    result, _ = explain_result()
    l = np.arange(DEPTH)
    figure = explain_figures.draw_shares(result)
    lines = line_data(figure.axes[0])
    np.testing.assert_allclose(lines["sink rate"], 0.1 * l)
    np.testing.assert_allclose(lines["on massive tokens"], 0.125 * l)
    np.testing.assert_allclose(lines["on the first token"], 0.1 * l)
    norms, cosines = explain_figures.draw_norms(result).axes
    assert norms.get_yscale() == "log"
    for name, start in (("stream", 100), ("normed", 20), ("keys", 30), ("values", 40)):
        x = start + l
        np.testing.assert_allclose(line_data(norms)[f"{name}, massive"], 10 * x)
        np.testing.assert_allclose(line_data(norms)[f"{name}, other"], x)
        np.testing.assert_allclose(line_data(cosines)[f"{name}, massive"], 1 - x / 1000)
        np.testing.assert_allclose(line_data(cosines)[f"{name}, other"], x / 1000)
    wanted = {"cosine": (0.9 - l / 100, 0.7 - l / 100), "deviation": (0.4 + l / 100, 0.6 + l / 100),
              "share": (0.2 + l / 100, 0.8 - l / 100)}
    page = page_texts("strict")["explain"]
    for axes, (field, (massive, other)) in zip(
        explain_figures.draw_updates(result).axes, wanted.items(), strict=True
    ):
        np.testing.assert_allclose(line_data(axes)["massive tokens"], massive)
        np.testing.assert_allclose(line_data(axes)["other tokens"], other)
        assert len(axes.collections) == 2  # the bands
        traces = chart_of(page, f"update-{field}")["data"]
        np.testing.assert_allclose([t["y"] for t in traces], [massive, other])
    assert [t["name"] for t in chart_of(page, "shares-chart")["data"]] == [
        "sink rate", "on massive tokens", "on the first token"]
    assert len(chart_of(page, "norms-chart")["data"]) == 8


def test_an_extra_key_is_drawn_where_there_is_one():
    result, picture = explain_result()
    for layer in result["layers"]:
        layer["attention"]["extra"] = [0.5, 0.25]
    series = {s.name: s.values for s in explain.share_series(result)}
    assert series["on the extra key"] == [0.375] * DEPTH
    page = "".join(s.body for s in explain.explain_sections(result, picture))
    assert [row[4] for row in rows(page, "<caption>Attention")] == ["0.375"] * DEPTH


def test_maps_show_the_attention_before_and_after():
    result, picture = explain_result()
    figure = explain_figures.draw_attention_maps(result, picture)
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc) for axes in maps for loc in ("left", "center") if
            axes.get_title(loc)] == ["layer 1, before", "layer 3, after"]
    for axes, layer in zip(maps, (1, 3), strict=True):
        drawn = np.ma.filled(axes.images[0].get_array(), np.nan)
        lower = np.tril_indices(24)
        np.testing.assert_allclose(drawn[lower], picture.weight[layer][:24, :24][lower])
        assert np.isnan(drawn[np.triu_indices(24, 1)]).all()
        assert list(axes.lines[0].get_xdata()) == [0, 2]  # the massive keys
        bold = [t for t in axes.get_xticklabels() if t.get_fontweight() == "bold"]
        assert [t.get_text() for t in bold] == ["'<s>'", "'<s>'"]
    heat = chart_of(page_texts("strict")["explain"], "map-3")
    (trace,) = heat["data"]
    assert trace["z"][5][6] is None and heat["layout"]["title"]["text"] == "layer 3, after"
    assert trace["z"][5][4] == pytest.approx(picture.weight[3, 5, 4], rel=1e-4)
    assert trace["x"][:3] == ["* 0 &#x27;&lt;s&gt;&#x27;", "1 &#x27;the&#x27;",
                              "* 2 &#x27;&lt;s&gt;&#x27;"]
    assert explain.map_layers(explain_result("none")[0]) == [0, DEPTH - 1]


def test_tables_of_explain_hold_the_numbers():
    page = page_texts("strict")["explain"]
    assert rows(page, "<caption>Attention")[3] == [
        "3", "0.30 ± 0.02", "0.3", "0.375", "6.5", "-4"]
    assert rows(page, "<caption>L2 norm, massive / other")[3] == [
        "3", "1,030 / 103", "230 / 23", "330 / 33", "430 / 43", "0.28"]
    assert rows(page, "<caption>Cosine between sequences")[3] == [
        "3", "0.897 / 0.103", "0.977 / 0.023", "0.967 / 0.033", "0.957 / 0.043",
        "2.03 / 143", "1.23 / 63", "1.33 / 73", "1.43 / 83"]
    assert rows(page, "<caption>Value updates from massive tokens")[3] == [
        "3", "0.87 ± 0.02", "0.8095", "0.43 ± 0.02", "0.6155", "0.23 ± 0.02"]
    assert rows(page, "<caption>Value updates from other tokens")[3][1] == "0.67 ± 0.02"
    line = next(l for l in written(explain.show, explain_result()[0]).splitlines()
                if l.split()[:1] == ["3"])
    assert line.split() == ["3", "0.30±0.02", "38%", "0.967", "0.28", "0.87±0.02", "0.43±0.02",
                            "23%"]


def test_the_constancy_table_is_there_with_and_without_bos():
    page = page_texts("strict")["explain"]
    for title, value in (("Without BOS", "811 ± 44.5"), ("With BOS", "923 ± 1.5")):
        (row,) = rows(page, f"{title}, 100 sequences of 256 tokens: massive (strict)")
        assert row[0] == "7" and row[3] == value
    text = written(explain.show, explain_result()[0])
    without, with_bos = text.split("Without BOS, 100")[1].split("With BOS, 100")
    assert "811 ± 44.5" in without and "923 ± 1.5" in with_bos
    result, _ = explain_result()
    result["locations"][0]["massive"] = []
    assert "256 tokens none found, strict or relaxed With BOS" in printed(explain.show, result)


# fold


def test_fold_says_what_happens_in_sentences():
    assert fold.verdict(fold_result()) == [
        "The first token '<s>' (id 1) is now k', v' in every head and layer. The other tokens' "
        "logits are unchanged: the largest difference is 4.0e-06 of the largest logit (allowed: "
        "1e-04).",
        "Massive (strict) before: dim 7; nothing is massive (strict) any more.",
    ]
    assert fold.verdict(fold_result("relaxed"))[1:] == [
        "No massive activations (strict), neither before nor after.",
        "Relaxed only: dim 7 before, none after.",
    ]


def test_a_changed_model_and_what_remains_are_said():
    assert "CHANGED" in printed(fold.show, fold_result(unchanged=False))
    sections = fold.fold_sections(fold_result(unchanged=False))
    assert 'class="warning"' in sections[0].body and "model</dd>" in sections[0].body
    assert 'class="warning"' not in fold.fold_sections(fold_result())[0].body
    remains = fold_result() | {"massive_after": [examples.massive(9, 500.0, 2, 4, DEPTH)]}
    assert "What remains (strict), by dimension and layer: dim 9, 2-4." in printed(
        fold.show, remains)


def test_tables_of_fold_hold_the_numbers():
    remains = fold_result() | {"massive_after": [
        examples.massive(d, 50.0, 2, 2, DEPTH, strict=False) for d in (3, 4)]}
    page = "".join(s.body for s in fold.fold_sections(remains))
    wanted = [["perplexity", "15.5", "15.6"], ["largest |h|", "900", "30"],
              ["dimensions, strict", "1", "0"], ["dimensions, relaxed only", "0", "2"]]
    assert rows(page, "folded</th>") == wanted
    text = written(fold.show, remains)
    assert all(" ".join(row) in " ".join(text.split()) for row in wanted)


# all


def test_names_with_dollars_are_drawn_as_they_are():
    for figure in (intervene_figures.draw_perplexity(intervene_result("nasty")),
                   explain_figures.draw_attention_maps(*explain_result("nasty"))):
        assert r"\$x" in figure_texts(figure)


def test_nothing_overlaps_and_nothing_is_cut(tmp_path):
    """Every text of every figure lies inside it; the bars' labels do not touch the frame."""
    result, picture = explain_result()
    with matplotlib.rc_context(figures.STYLE):
        drawn = [
            intervene_figures.draw_perplexity(intervene_result(zero=math.inf)),
            intervene_figures.draw_after_zero(intervene_result()),
            explain_figures.draw_attention_maps(result, picture),
            explain_figures.draw_shares(result), explain_figures.draw_norms(result),
            explain_figures.draw_updates(result),
        ]
        for figure in drawn:
            figure.draw_without_rendering()
            frame = figure.bbox.padded(1)
            for axes in figure.axes:
                texts = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label,
                         *axes.texts]
                for text in (t for t in texts if t.get_text()):
                    box = text.get_window_extent()
                    assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text.get_text()
                    assert frame.y0 <= box.y0 and box.y1 <= frame.y1, text.get_text()


def test_reports_are_imported_without_drawing_libraries():
    code = ("import sys, jax_massact.report; "
            "print([m for m in ('matplotlib', 'plotly') if m in sys.modules])")
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = headless.find()
    if executable is None:
        pytest.skip(f"no Chromium on the path (looked for {', '.join(headless.NAMES)})")
    browser = headless.Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["nasty", "none"])
def test_pages_open_without_a_request_or_a_complaint(kind, browser, tmp_path):
    found = kind != "none"
    pages = {
        "intervene": (intervene_result(kind), 1 + found, intervene.intervene_sections),
        "explain": (explain_result(kind)[0], 5 + 3 * found,
                    lambda result: explain.explain_sections(result, explain_result(kind)[1])),
        "fold": (fold_result(kind), 0, fold.fold_sections),
    }
    for name, (result, charts, sections) in pages.items():
        path = tmp_path / f"{name}.html"
        path.write_text(render_report("title", result, sections(result)), encoding="utf-8")
        page = browser.open(path)
        page.wait_for("document.documentElement.dataset.drawn === 'true'")
        assert page.evaluate("document.querySelectorAll('.chart').length") == charts
        assert page.evaluate("document.querySelectorAll('.js-plotly-plot').length") == charts
        assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
        asked = [u for u in page.requests if not u.startswith(("data:", "blob:"))]
        assert asked == [path.as_uri()] and page.complaints == []
        if name == "explain" and found:
            labels = page.evaluate("[...document.querySelectorAll('#map-3 .ytick')].map("
                                   "(t) => t.textContent)")
            assert any("</script>" in label for label in labels)
        if name == "intervene" and found:
            shown = page.evaluate("[...document.querySelectorAll('#perplexity .bartext')].map("
                                  "(t) => t.textContent)")
            assert shown == ["15.7", "5,000", "15.8", "21", "15.69"]


