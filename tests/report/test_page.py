import json

import numpy as np
import pytest
from page_reader import read_page
from reports import html_of

from jax_massact.report import plotly_painter
from jax_massact.report.chart import Axis, Chart, Heat, Note, Panel, Rule, Series, floats
from jax_massact.report.page import (
    Facts,
    Lines,
    Piece,
    Section,
    Table,
    Token,
    Tokens,
    render,
    script_json,
)
from jax_massact.report.words import Findings

HOSTILE = "</section><script>alert(1)</script>&\"'\x00\ud800[b]"
SHOWN = HOSTILE.replace("\x00", "\\x00").replace("\ud800", "\\ud800")


def test_sections_are_linked_and_hold_their_parts_in_order():
    page = render("title", "subtitle", [
        Section("one", "One & two", [Lines(["first"]), Table(("a",), [["cell"]], caption="below")]),
    ], "footer")
    assert '<section id="one"><h2>One &amp; two</h2>' in page
    assert '<a href="#one">One &amp; two</a>' in page
    main = page[page.index("<main>") :]
    assert main.index("first") < main.index("below") < main.index("cell") < main.index("footer")


@pytest.mark.parametrize("part", [
    Lines([HOSTILE]), Facts([(HOSTILE, 1), ("a", HOSTILE)]), Findings([HOSTILE], "none", HOSTILE),
    Table((HOSTILE,), [[HOSTILE], [[Piece(HOSTILE, HOSTILE)]]], (HOSTILE,), HOSTILE),
])
def test_no_text_can_become_a_tag(part):
    page = read_page(html_of([Section("one", HOSTILE, [part])]))
    assert SHOWN in page.text and not page.tags("script") and not page.tags("b")
    assert len(page.tags("section")) == 1


def test_a_text_is_shown_with_its_whitespace():
    html = html_of([Section("one", "One", [Tokens([
        Token("a b\n", "position 0"), Token("\t\x00", HOSTILE, "strict"), Token("", "empty"),
        Token("</mark>", "x"),
    ])])])
    assert '<span title="position 0">a<i>·</i>b<i>↵</i></span>\n<mark' in html
    page = read_page(html)
    (mark,) = page.tags("mark")
    assert mark["class"] == "strict" and mark["data-tip"] == SHOWN
    assert "→\t\\x00∅</mark>" in page.text


def test_script_json_cannot_be_closed_and_is_strict():
    block = script_json("x", {"a": "</script><!--", "b": 1.23456789, "c": float("nan")})
    assert block.count("<") == 2 and '"b":1.2346' in block and '"c":null' in block


def test_everything_is_inside_the_file_and_the_policy_is_strict():
    page = read_page(render(HOSTILE, HOSTILE, [], HOSTILE))
    assert not [s for s in page.tags("script") if "src" in s]
    assert [link["href"] for link in page.tags("link")] == ["data:,"]
    policy = next(m["content"] for m in page.tags("meta") if "http-equiv" in m)
    assert policy.startswith("default-src 'none'") and "http" not in policy
    assert not page.tags("img") and not page.tags("iframe") and len(page.tags("script")) == 2


def test_a_chart_is_one_plot_for_every_panel():
    line = Series(HOSTILE, [0, 1], [1.0, float("nan")], "#0072B2", hover=[HOSTILE, ""])
    chart = Chart("name", "on paper", HOSTILE,
                  [Panel([line], name="a", title=HOSTILE), Panel([line], name="b")])
    page = read_page(html_of([Section("one", "One", [chart])]))
    assert list(page.blocks) == ["chart-name-a-data", "chart-name-b-data"]
    assert [d["id"] for d in page.tags("div") if d.get("class") == "chart"] == [
        "chart-name-a", "chart-name-b"]
    (trace,) = json.loads(page.blocks["chart-name-a-data"])["data"]
    assert trace["y"] == [1.0, None]
    assert trace["name"].startswith("&lt;/section&gt;") and "<" not in trace["text"][0]


def test_plotly_gets_every_kind_of_item():
    x = Axis("layer", range=(-0.5, 2.5), whole=True)
    band = Series("band", [0, 1, 2], [1.0, 2.0, 3.0], "#D55E00", low=[0.5, 1.0, -2.0],
                  high=[2.0, 3.0, 4.0], error=[0.1, 0.2, 0.3], shown=False)
    log = plotly_painter.figure_of(Panel(
        [band, Rule(100.0, text="a < b"), Rule(0.0), Rule(1.0, "x"), Note(1.0, "two\nlines")], x=x,
        y=Axis(scale="log", range=(1.0, 1000.0)),
    ))
    low, high, line = log["data"]
    np.testing.assert_equal(low["y"], [0.5, 1.0, np.nan])  # a logarithmic axis has no -2
    assert high["y"] == [2.0, 3.0, 4.0] and high["fillcolor"] == "rgba(213,94,0,0.15)"
    assert line["error_y"]["array"] == [0.1, 0.2, 0.3]
    assert {t["visible"] for t in log["data"]} == {"legendonly"}
    layout = log["layout"]
    assert layout["yaxis"]["range"] == [0.0, 3.0] and layout["xaxis"]["dtick"] == 1
    # The rule at 0 has no place on a logarithmic axis.
    assert [(s["y0"], s["x0"]) for s in layout["shapes"]] == [(100.0, 0), (0, 1.0)]
    assert [a["text"] for a in layout["annotations"]] == ["a &lt; b", "two<br>lines"]
    assert layout["annotations"][0]["y"] == 2.0
    empty = plotly_painter.figure_of(Panel([], empty="nothing"))
    assert [a["text"] for a in empty["layout"]["annotations"]] == ["nothing"]
    heat = Heat(np.array([[1.0, np.nan], [0.5, 0.5]]), ["<s>", "a"], [True, False], "q", "k", "v")
    (trace,) = plotly_painter.figure_of(Panel([heat]))["data"]
    assert trace["x"] == ["* 0 '&lt;s&gt;'", "1 'a'"]


def test_an_axis_of_both_signs_is_logarithmic_beyond_its_linear_part_on_the_page_too():
    y = [-2000.0, -20.0, 0.0, 10.0, 200.0, None]
    figure = plotly_painter.figure_of(Panel(
        [Series("s", range(6), y, "#D55E00")], y=Axis(scale="symlog", linear=20.0)
    ))
    (trace,) = figure["data"]
    np.testing.assert_allclose(trace["y"], [-3.0, -1.0, 0.0, 0.5, 2.0, np.nan])
    np.testing.assert_equal(trace["customdata"], floats(y))
    assert trace["hovertemplate"].startswith("%{customdata")
    axis = figure["layout"]["yaxis"]
    ticks = dict(zip(axis["ticktext"], axis["tickvals"], strict=True))
    assert (ticks["0"], ticks["20"], ticks["-200"], ticks["2,000"]) == (0, 1, -2, 3)


def test_heights_survive_their_codes():
    height = np.array([[1e-6, 0.5, 24926.0], [0.0, np.nan, np.inf]])
    codes, low, step = plotly_painter.encode_heights(height)
    assert codes.dtype == np.uint16
    np.testing.assert_allclose(np.exp(low + codes[0] * step), height[0], rtol=2e-4)
    assert codes[1].tolist() == [0, 0, 0] and codes[0].min() == 1 and codes.max() == 65535
    assert plotly_painter.encode_heights(np.zeros((2, 2)))[0].tolist() == [[0, 0], [0, 0]]
