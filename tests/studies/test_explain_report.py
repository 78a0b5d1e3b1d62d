"""What the report of `explain` says, and the numbers in its tables and charts."""

import numpy as np
import pytest
from causal_examples import DEPTH, explain_result
from reports import chart_of, drawn, html_of, printed, rows, texts, written

from jax_massact.studies.explain import figures
from jax_massact.studies.explain import report as explain
from jax_massact.studies.explain.report import show


def verdict(result) -> list[str]:
    return explain.findings(result).lines


def line_data(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.array(line.get_ydata(), dtype=float) for line in axes.lines}


def test_explain_says_what_happens_in_sentences():
    assert verdict(explain_result()[0]) == [
        "Massive activations (strict) stand in the output of block 1 and after, at 1.5 tokens of "
        "a sequence on average.",
        "The sink rate is 0.75 ± 0.02: the share of heads whose mean attention to the first token "
        "exceeds 0.3 (first 64 queries). It is 0.5 or more in layers 5 (0.50).",
        "In layer 3 these tokens take 38% of the attention of the others; their keys have a mean "
        "cosine of 0.967 between sequences; their values have 0.28 times the norm of other "
        "tokens' values.",
        "What they add to that layer's attention output is 23% of it; its cosine to its mean over "
        "queries is 0.87 ± 0.02, its relative deviation from it 0.43 ± 0.02.",
    ]


def test_sinks_in_earlier_layers_are_not_hidden():
    result, picture = explain_result()
    for record in result["massive"]:
        record["first_layer"] = 3
    for layer, rate in zip(result["layers"], (0.1, 0.9, 0.86, 0.0, 0.7, 1.0), strict=True):
        layer["attention"]["sink_rate"]["mean"] = rate
    assert figures.map_layers(result) == [1, 3, 5]
    assert verdict(result)[1].endswith(
        "It is 0.5 or more in layers 1-2 (0.86 to 0.90), 4-5 (0.70 to 1.00); layers up to 3 do not "
        "see the massive activations yet."
    )
    titles = [panel.title for panel in figures.map_chart(result, picture).panels]
    assert titles[0] == "layer 1, before\nsink rate 0.90"
    for layer in result["layers"]:
        layer["attention"]["sink_rate"]["mean"] = 0.01 * layer["layer"]
    assert verdict(result)[1].endswith("It is highest in layer 5, 0.05.")
    assert figures.map_layers(result) == [3, 5]


def test_one_token_proves_nothing():
    result, _ = explain_result("none")
    result["data"]["sequence_length"] = 1
    assert verdict(result)[0].startswith("Whether there are massive activations cannot be said")


def test_series_hold_the_numbers_of_the_result():
    result, _ = explain_result()
    l = np.arange(DEPTH)
    figure = drawn(figures.share_chart(result))
    lines = line_data(figure.axes[0])
    np.testing.assert_allclose(lines["sink rate"], 0.1 * l)
    np.testing.assert_allclose(lines["on massive tokens"], 0.125 * l)
    np.testing.assert_allclose(lines["on the first token"], 0.1 * l)
    norms, cosines = drawn(figures.vector_chart(result)).axes
    assert norms.get_yscale() == "log"
    for name, start in (("stream", 100), ("normed", 20), ("keys", 30), ("values", 40)):
        x = start + l
        np.testing.assert_allclose(line_data(norms)[f"{name}, massive"], 10 * x)
        np.testing.assert_allclose(line_data(norms)[f"{name}, other"], x)
        np.testing.assert_allclose(line_data(cosines)[f"{name}, massive"], 1 - x / 1000)
        np.testing.assert_allclose(line_data(cosines)[f"{name}, other"], x / 1000)
    wanted = {"cosine": (0.9 - l / 100, 0.7 - l / 100), "deviation": (0.4 + l / 100, 0.6 + l / 100),
              "share": (0.2 + l / 100, 0.8 - l / 100)}
    page = html_of(explain.sections(*explain_result()))
    for axes, (field, (massive, other)) in zip(
        drawn(figures.update_chart(result)).axes, wanted.items(), strict=True
    ):
        np.testing.assert_allclose(line_data(axes)["massive tokens"], massive)
        np.testing.assert_allclose(line_data(axes)["other tokens"], other)
        assert len(axes.collections) == 2  # the bands
        traces = [t for t in chart_of(page, f"value_updates-{field}")["data"] if t["showlegend"]]
        np.testing.assert_allclose([t["y"] for t in traces], [massive, other])
    assert [t["name"] for t in chart_of(page, "attention_shares")["data"] if t["showlegend"]] == [
        "sink rate", "on massive tokens", "on the first token"]
    assert len(chart_of(page, "norms-norm")["data"]) == 8


def test_an_extra_key_is_drawn_where_there_is_one():
    result, picture = explain_result()
    for layer in result["layers"]:
        layer["attention"]["extra"] = [0.5, 0.25]
    series = {s.name: s.y for s in figures.share_chart(result).panels[0].items}
    assert series["on the extra key"] == [0.375] * DEPTH
    page = html_of(explain.sections(result, picture))
    assert [row[4] for row in rows(page, "<caption>Attention")] == ["0.375"] * DEPTH


def test_maps_show_the_attention_before_and_after():
    result, picture = explain_result()
    figure = drawn(figures.map_chart(result, picture))
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title(loc) for axes in maps for loc in ("left", "center") if
            axes.get_title(loc)] == [
        "layer 1, before\nsink rate 0.10", "layer 3, after\nsink rate 0.30"]
    for axes, layer in zip(maps, (1, 3), strict=True):
        shown = np.ma.filled(axes.images[0].get_array(), np.nan)
        lower = np.tril_indices(24)
        np.testing.assert_allclose(shown[lower], picture.weight[layer][:24, :24][lower])
        assert np.isnan(shown[np.triu_indices(24, 1)]).all()
        assert list(axes.lines[0].get_xdata()) == [0, 2]  # the massive keys
        bold = [t for t in axes.get_xticklabels() if t.get_fontweight() == "bold"]
        assert [t.get_text() for t in bold] == ["'<s>'", "'<s>'"]
    heat = chart_of(html_of(explain.sections(*explain_result())), "attention_maps-3")
    (trace,) = heat["data"]
    assert trace["z"][5][6] is None
    assert heat["layout"]["title"]["text"] == "layer 3, after<br>sink rate 0.30"
    assert trace["z"][5][4] == pytest.approx(picture.weight[3, 5, 4], rel=1e-4)
    assert trace["x"][:3] == ["* 0 '&lt;s&gt;'", "1 'the'", "* 2 '&lt;s&gt;'"]
    assert figures.map_layers(explain_result("none")[0]) == [0, DEPTH - 1]


def test_tables_of_explain_hold_the_numbers():
    page = html_of(explain.sections(*explain_result()))
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
    line = next(l for l in written(show, explain_result()[0]).splitlines()
                if l.split()[:1] == ["3"])
    assert line.split() == ["3", "0.30±0.02", "38%", "0.967", "0.28", "0.87±0.02", "0.43±0.02",
                            "23%"]


def test_the_constancy_table_is_there_with_and_without_bos():
    page = html_of(explain.sections(*explain_result()))
    for title, value in (("Without BOS", "811 ± 44.5"), ("With BOS", "923 ± 1.5")):
        (row,) = rows(page, f"{title}, 100 sequences of 256 tokens: massive (strict)")
        assert row[0] == "7" and row[3] == value
    text = written(show, explain_result()[0])
    without, with_bos = text.split("Without BOS, 100")[1].split("With BOS, 100")
    assert "811 ± 44.5" in without and "923 ± 1.5" in with_bos
    result, _ = explain_result()
    result["locations"][0]["massive"] = []
    assert "256 tokens none found, strict or relaxed With BOS" in printed(show, result)


def test_nothing_found_leaves_nothing_to_split():
    result, picture = explain_result("none")
    assert "nothing to split" in texts(drawn(figures.update_chart(result)))
    page = html_of(explain.sections(result, picture))
    assert "None of these tokens is massive." in page and "chart-value_updates" not in page


def test_relaxed_is_never_called_massive_alone():
    result, picture = explain_result("relaxed")
    page = html_of(explain.sections(result, picture))
    for text in (written(show, result), page):
        assert "assive (strict):" not in text
    assert "relaxed" in verdict(result)[0]
    for chart in figures.charts(result, picture):
        text = texts(drawn(chart))
        assert "massive (relaxed)" in text
        assert "massive" not in text.replace("massive (relaxed)", "")
    for title in ("on massive (relaxed) tokens", "L2 norm, massive (relaxed) / other",
                  "Value updates from massive (relaxed) tokens", "marked with * are massive (rel"):
        assert title in page


def test_one_sequence_has_no_bands():
    bands = lambda kind: drawn(figures.share_chart(explain_result(kind)[0])).axes[0].collections
    assert not bands("single") and bands("strict")
