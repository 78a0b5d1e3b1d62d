"""The contract of every study's report: each result, the empty, the hostile and the lone one."""

import io
import itertools
import os
import subprocess
import sys

import causal_examples
import matplotlib
import pytest
from json_schema import read, violations
from page_reader import read_page
from reports import STUDIES, drawn, html_of, texts, written

from jax_massact.report import matplotlib_painter
from jax_massact.report.chart import Series, Surface
from jax_massact.report.encode import write_text
from jax_massact.studies.output import Outcome, write_files

kinds = pytest.mark.parametrize("kind", ["none", "nasty", "single"])
studies = pytest.mark.parametrize("name", STUDIES)


@kinds
@studies
def test_a_report_is_written_whole_and_valid(name, kind, tmp_path, monkeypatch):
    monkeypatch.setitem(matplotlib_painter.STYLE, "savefig.dpi", 50)
    if kind != "nasty":  # a PDF takes longer than its PNG, which shows as well what can be drawn
        monkeypatch.setattr(matplotlib_painter, "draw", _png)
    study = STUDIES[name]
    made = study.make(kind)
    paths, failures = write_files(name, Outcome(made[0], made[1:]), tmp_path / "a" / "b")
    assert failures == []
    figures = [chart.name for chart in study.charts(kind)]
    assert set(figures) <= set(getattr(study.report, "FIGURES", ()))
    pages = [getattr(study.report, "PAGE", f"{name}.html")] * hasattr(study.report, "page")
    assert [p.name for p in paths] == [
        f"{name}.json", *pages, *(f"{n}.{s}" for n in figures for s in ("png", "pdf"))
    ]
    assert sorted(paths) == sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert violations(read(paths[0]), study.schema) == []
    for path in paths[1 + len(pages) :]:
        content = path.read_bytes()
        assert content.startswith(b"\x89PNG" if path.suffix == ".png" else b"%PDF-")
        assert b"/Type3" not in content
    if pages:
        text = paths[1].read_text(encoding="utf-8")
        page = read_page(text)
        assert "<script>alert" not in text and not page.tags("img") and not page.tags("b")
        assert not [s for s in page.tags("script") if "src" in s]
        assert len(page.tags("script")) == 2 + text.count('class="chart"')
        assert page.tags("section")[0]["id"] == "verdict" and len(page.tags("h1")) == 1
        anchors = [s["id"] for s in page.tags("section")]
        assert [a["href"] for a in page.tags("a")] == [f"#{anchor}" for anchor in anchors]
        ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
        assert len(ids) == len(set(ids))


def _png(chart) -> dict[str, bytes]:
    file = io.BytesIO()
    with matplotlib.rc_context(matplotlib_painter.STYLE):
        matplotlib_painter.figure_of(chart).savefig(file, format="png")
    return {"png": file.getvalue(), "pdf": b"%PDF-"}


@kinds
@studies
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_terminal_is_plain_text_of_80_columns(name, kind, encoding):
    study = STUDIES[name]
    text = study.text(kind, encoding=encoding)
    assert all(c.isprintable() or c == "\n" for c in text) and "…" not in text
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    if encoding == "ascii":
        assert text.isascii()


@studies
def test_strings_of_others_are_never_markup(name):
    """Square brackets, tags, dollars: they stand in the terminal, the page and on paper."""
    study = STUDIES[name]
    printed = "".join(study.text("nasty", width=400).split())
    assert "[q4]" in printed or "[red]" in printed
    if hasattr(study.report, "sections"):
        page = read_page(html_of(study.report.sections(*study.make("nasty"))))
        assert "</script>" in page.text and len(page.tags("script")) == len(page.blocks)
    for chart in study.charts("nasty"):
        figure = drawn(chart)
        assert not any(t.get_parse_math() for t in figure.findobj(match=_is_text))
        assert texts(figure).replace("\u2212", "-").isascii()  # matplotlib's own minus


def _is_text(artist) -> bool:
    return hasattr(artist, "get_parse_math")


@studies
def test_none_found_is_said_first_everywhere(name):
    study = STUDIES[name]
    if name == "compare":
        assert "nothing to intervene on" in study.text("none")
        return
    text = study.text("none")
    assert "No massive activations" in text.split("Verdict")[1].split("\n\n")[0]
    page = read_page(html_of(study.report.sections(*study.make("none"))))
    assert "No massive activations" in page.text


@studies
def test_one_sequence_or_seed_has_no_deviation(name):
    study = STUDIES[name]
    said = [study.text("single")]
    if hasattr(study.report, "sections"):
        said.append(html_of(study.report.sections(*study.make("single"))))
    for text in said:
        # Locations and means are over other numbers of sequences; the loss is one of batches.
        for end in ("Without BOS, 100", "What was changed", "minus the first"):
            text = text.split(end)[0]
        assert "±" not in text and "+-" not in text


@studies
def test_every_text_lies_inside_its_figure_and_panels_have_room(name):
    study = STUDIES[name]
    made = study.make("strict")
    if name == "explain":  # an earlier layer with sinks gets a map of its own
        made[0]["massive"][0]["first_layer"] = 3
        made[0]["layers"][1]["attention"]["sink_rate"]["mean"] = 0.9
    for chart in study.report.charts(*made) if hasattr(study.report, "charts") else ():
        if isinstance(chart, Surface):  # what stands in space has no such place
            continue
        figure = drawn(chart)
        frame = figure.bbox.padded(1)
        titles = [axes._left_title.get_window_extent() for axes in figure.axes]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(titles, 2)
                       if a.width and b.width), chart.name
        for axes in figure.axes:
            rows = -(-len(chart.panels) // chart.columns)
            assert rows * axes.bbox.height > figure.bbox.height / 2, chart.name
            labels = [axes.title, axes._left_title, axes.xaxis.label, axes.yaxis.label, *axes.texts]
            for text in (t for t in [figure._suptitle, *labels] if t is not None and t.get_text()):
                box = text.get_window_extent()
                assert frame.x0 <= box.x0 and box.x1 <= frame.x1, text.get_text()
                assert frame.y0 <= box.y0 and box.y1 <= frame.y1, text.get_text()


def test_compare_says_how_long_runs_are_and_that_batches_were_the_same():
    result = causal_examples.compare_result()
    for run, steps in zip(result["groups"][1]["runs"], (40, 80), strict=True):
        run |= {"steps": steps, "tokens": 16 * steps, "validation_losses": [3.5, 3.5]}
    text = written(STUDIES["compare"].report.show, result)
    cells = {line[:24].strip(): line[24:].split() for line in text.splitlines()}
    row = lambda name: next(cells for label, cells in cells.items() if label.startswith(name))
    assert row("steps") == ["40", "40,", "80"] and row("tokens") == ["640", "640,", "1,280"]
    assert row("std over batches") == ["0.25", "same", "rows"]
    assert row("runs") == ["2", "2"] and row("seeds") == ["2", "2"]
    result["groups"][1]["runs"][1]["seed"] = 0
    result["groups"][1]["difference"] = None
    assert "a dash: other rows" in " ".join(written(STUDIES["compare"].report.show, result).split())


@studies
def test_what_is_not_finite_has_a_warning_first_and_no_verdict(name):
    study = STUDIES[name]
    result, *pictures = study.make("strict")
    result |= {"warnings": ["not finite is [this]: there is no verdict"], "notices": ["mind that"]}
    text = written(study.report.show, result)
    first = next(line for line in text.splitlines() if not line.startswith(("Model", "Data", " ")))
    assert first.startswith("Warning  not finite is [this]")
    assert "mind that" in text and "Verdict" not in text
    if hasattr(study.report, "sections"):
        html = html_of(study.report.sections(result, *pictures))
        assert html.index('<div class="warning">not finite is [this]') < html.index("Note: mind")
        assert '<div class="verdict' not in html


@pytest.mark.parametrize("name", ["probe", "explain"])
def test_nothing_of_an_older_report_stays(name, undrawn, tmp_path, monkeypatch):
    """A figure or page that cannot be made must not leave that of another model beside the JSON."""
    result, picture = STUDIES[name].make("strict")
    write_files(name, Outcome(result, (picture,)), tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) > 2
    (tmp_path / "figures" / "mine.png").write_bytes(b"of the user")

    def draw(chart):
        raise RuntimeError("no font")

    monkeypatch.setattr(matplotlib_painter, "draw", draw)
    paths, failures = write_files(name, Outcome(result, (None,)), tmp_path)
    assert [path.name for path in paths] == [f"{name}.json"] and len(failures) > 1
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == sorted([f"{name}.json", "figures/mine.png"])


def test_figures_that_a_result_does_not_have_are_removed(undrawn, tmp_path):
    for kind in ("strict", "none"):
        (result,) = STUDIES["intervene"].make(kind)
        write_files("intervene", Outcome(result), tmp_path)
        found = (tmp_path / "figures" / "after_zero.png").exists()
        assert found == (kind == "strict")


@pytest.mark.parametrize(("backend", "first"), [
    ("module://matplotlib_inline.backend_inline", ""),
    # A report is imported without the libraries that draw.
    ("nonsense", "import jax_massact.studies.probe.report; "),
], ids=["module", "nonsense"])
def test_the_backend_of_a_notebook_stops_nothing(backend, first):
    """It is inherited from the notebook, where its module may be installed; here it need not be."""
    code = first + (
        "import os, sys; print([m for m in ('matplotlib', 'plotly') if m in sys.modules]); "
        "from jax_massact.report.matplotlib_painter import draw; "
        "from jax_massact.report.chart import Chart, Panel; "
        "print(draw(Chart('a', 'b', 'c', [Panel([])]))['png'][:4], os.environ['MPLBACKEND'])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                         env=os.environ | {"MPLBACKEND": backend})
    assert out.stdout.splitlines() == ["[]", rf"b'\x89PNG' {backend}"]


# On the page of what was found, and of a result in which nothing was, which a probe's is not shown
# of: its scene takes as long as ten pages.
CHARTS = {
    ("probe", "nasty"): 3, ("intervene", "nasty"): 2, ("explain", "nasty"): 8, ("fold", "nasty"): 0,
    ("quantize", "nasty"): 4, ("intervene", "none"): 1, ("explain", "none"): 5,
}


@pytest.mark.browser
@pytest.mark.parametrize(("name", "kind"), CHARTS)
def test_pages_open_without_a_request_or_a_complaint(name, kind, browser, tmp_path):
    study = STUDIES[name]
    path = write_text(tmp_path / "page.html", study.report.page(*study.make(kind)))
    page = browser.open(path)
    page.wait_for("document.documentElement.dataset.drawn === 'true'")
    charts = CHARTS[name, kind]
    assert page.evaluate("document.querySelectorAll('.chart').length") == charts
    # Plotly makes the picture of the map, for paper, on a copy outside of the page's text.
    assert page.evaluate("document.querySelectorAll('main .js-plotly-plot').length") == charts
    # What goes beyond the window could not be read on a laptop.
    assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
    assert page.evaluate("document.querySelectorAll('[data-title*=hare i]').length") == 0
    if name == "probe":  # a scene cannot be printed; its picture can
        page.wait_for("document.querySelectorAll('img.printed[src]').length === 1")
    asked = [u for u in page.requests if not u.startswith(("data:", "blob:"))]
    assert asked == [path.as_uri()] and page.complaints == []
    for look in LOOKS.get((name, kind), ()):
        look(page)


def _labels(page):
    labels = page.evaluate("[...document.querySelectorAll('#chart-attention_maps-3 .ytick')]"
                           ".map((t) => t.textContent)")
    assert any("</script>" in label for label in labels)


def _perplexities(page):
    shown = page.evaluate("[...document.querySelectorAll('#chart-perplexity .textpoint')].map("
                          "(t) => t.textContent.trim())")
    assert shown == ["15.7", "5,000", "15.8", "21", "15.69"]


def _a_marked_token_tells_its_dimension(page):
    page.evaluate("document.querySelector('.prompt mark').focus()")
    shown = page.evaluate("document.getElementById('tip').innerText")
    assert "dim 5: 3,000 at layer 1" in shown and "dim 9: 900" in shown
    assert page.evaluate("getComputedStyle(document.getElementById('tip')).display") == "block"


def _the_browser_itself_refuses_the_network(page):
    outcome = page.evaluate("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')")
    assert outcome == "refused"
    assert any("Content Security Policy" in c for c in page.complaints)


LOOKS = {
    ("explain", "nasty"): [_labels], ("intervene", "nasty"): [_perplexities],
    ("probe", "nasty"): [
        _a_marked_token_tells_its_dimension, _the_browser_itself_refuses_the_network],
}


@pytest.mark.browser
def test_many_groups_are_told_apart_and_their_rows_can_be_read(browser, tmp_path):
    result = causal_examples.compare_result()
    result["groups"] = [group.copy() for group in 7 * result["groups"]][:13]
    for i, group in enumerate(result["groups"]):
        group["name"] = f"variant-{i}"
    text = written(STUDIES["compare"].report.show, result)
    assert all(group["name"] in text for group in result["groups"])
    for chart in ("layers", "emergence", "order"):
        (panel, *_) = next(c for c in STUDIES["compare"].report.charts(result)
                           if c.name == chart).panels
        looks = [(item.color, item.dash, item.marker) for item in panel.items
                 if isinstance(item, Series)]
        assert len(looks) == len(set(looks)) == 13
    page = browser.open(write_text(tmp_path / "page.html", STUDIES["compare"].report.page(result)))
    width = page.evaluate("document.querySelector('td.text').getBoundingClientRect().width")
    assert width > 100  # pixels; else its words are broken, letter by letter
    assert page.evaluate("document.body.scrollWidth <= window.innerWidth")
