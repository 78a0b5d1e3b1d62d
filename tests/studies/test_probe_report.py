"""What the report of `probe` says, and the numbers in its tables and charts."""

import base64
import json
import math
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import report_examples as examples
from json_schema import read as read_json
from json_schema import violations
from page_reader import read_page as read
from reports import drawn, html_of, printed, rows, texts, written

from jax_massact.report import matplotlib_painter, plotly_painter
from jax_massact.report.chart import tallest_spikes
from jax_massact.report.encode import write_text
from jax_massact.studies.output import Outcome, write_files
from jax_massact.studies.probe import figures
from jax_massact.studies.probe.report import (
    findings,
    page,
    sections,
    show,
)
from jax_massact.studies.probe.result import ProbeResult


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setitem(matplotlib_painter.STYLE, "savefig.dpi", 40)


def write(result, folder: Path) -> Path:
    """The page alone."""
    return write_text(folder / "report.html", page(result, examples.activation_map(result)))


def write_all(result, activation_map, folder: Path) -> list[Path]:
    paths, failures = write_files("probe", Outcome(result, (activation_map,)), folder)
    assert failures == []
    return paths


def test_no_massive_activations_is_said_plainly():
    assert findings(examples.none_found()).lines == [
        "No massive activations found, strict or relaxed."
    ]


def test_one_token_cannot_be_told_from_an_outlier_feature():
    result = examples.none_found()
    result["data"]["sequence_length"] = 1
    (line,) = findings(result).lines
    assert line.startswith("Whether there are massive activations cannot be said: in sequences of")
    assert "counts as an outlier feature" in line and "No massive" not in line
    # A quarter of the tokens is the limit of these results: one of four is not more than that.
    result["data"]["sequence_length"] = 3
    assert "one token is more than 25% of them" in findings(result).lines[0]
    result["data"]["sequence_length"] = 4
    assert findings(result).lines == ["No massive activations found, strict or relaxed."]


def test_a_value_says_of_how_many_sequences_it_is():
    record = examples.massive(230, -472.8, 1, 2, 4, strict=False)
    record |= {"value_std": 28.8, "value_sequences": 10, "share_of_sequences": 0.1}
    result = examples.result([record], depth=4, sequences=10)
    row = next(l for l in written(show, result).splitlines() if l.split()[:1] == ["230"])
    assert row.split()[:7] == ["230", "1-2", "-472.8", "±", "28.8", "10", "286.5"]
    (cells,) = rows(html_of(sections(result, examples.activation_map(result))), "Relaxed only: not")
    assert cells[3:7] == ["-472.8 ± 28.8", "10", "286.5", "10%"]


def test_relaxed_hits_are_never_called_massive_without_the_word():
    lines = findings(examples.relaxed_only()).lines
    assert lines[0] == (
        "No massive activations found by the strict definition; "
        "1 dimension meets the relaxed one."
    )
    assert lines[1].startswith("Dimension 77 meets the relaxed definition only from layer 3 to 7")
    assert "written by the embedding" in lines[1] and "massive" not in lines[1]
    assert lines[2].startswith("2 outlier features") and lines[2].endswith("dim 13, 42.")


def test_verdict_puts_strict_first_and_lists_what_it_does_not_say_in_full():
    records = [examples.massive(d, 10.0 * d, 0, 1, 4, strict=d > 2) for d in range(1, 8)]
    lines = findings(examples.result(records, depth=4)).lines
    assert [line.split()[1] for line in lines[:3]] == ["7", "6", "5"]
    assert lines[3] == "2 more dimensions (massive (strict)): 4, 3."
    assert lines[4] == "2 more dimensions by the relaxed definition only: 2, 1."
    relaxed = examples.result([r for r in records if not r["strict"]], depth=4)
    assert [line.split()[1] for line in findings(relaxed).lines[1:]] == ["2", "1"]


def test_nonfinite_activations_are_reported_with_the_first_layer_and_no_verdict():
    found = findings(examples.broken_numbers())
    assert found.lines == [] and found.warning is not None
    assert found.warning.startswith("2,600 activations NaN or infinite, first at layer 4")
    assert findings(examples.strict_found()).warning is None


def test_everything_a_researcher_asks_first():
    text = written(show, examples.strict_found())
    flat = " ".join(text.split())
    assert "smollm2-135m: llama, 134.5M parameters, 30 layers, width 576" in flat
    assert "each beginning with BOS '<|im_start|>' (bos=auto)" in flat
    assert "Dimension 507 is massive (strict) from layer 11 to 28, written by" in flat
    row = next(line for line in text.splitlines() if line.strip().startswith("507"))
    for cell in ("11-28", "24,926 ± 498.5", "15,107", "100%", "MLP 11", "MLP 29"):
        assert cell in row
    layers = text[text.index("\nLayers") :].splitlines()
    layer = next(line for line in layers if line.split()[:1] == ["12"])
    assert layer.split() == ["12", "24,926", "1,840", "24", "1.7", "68,599", "4", "2", "2", "2"]


def test_super_weights_are_named_with_their_share():
    result = examples.strict_found()
    flat = " ".join(written(show, result).split())
    assert (
        "Super weight: 74% of what the MLP of block 11 writes to dimension 507 comes through one "
        "weight, row 507 and column 1229 of down_proj."
    ) in flat
    assert "block row column expert weight unit share position" in flat
    assert "11 507 1229 - 5.875 2,571 74% 0" in flat
    cells, *_ = rows(html_of(sections(result, examples.activation_map(result))), ">Super weights<")
    assert cells[-1] == "blk.11.ffn_down.weight"
    result["super_weights"][0] |= {"expert": 3, "expert_share": 0.91}
    flat = " ".join(written(show, result).split())
    assert "of down_proj of expert 3." in flat and "3 (91%)" in flat
    assert "Super weight" not in written(show, examples.relaxed_only())


def test_dimensions_are_ordered_by_size():
    text = written(show, examples.strict_found())
    table = text[text.index("Massive activations (strict)") :]
    assert table.index("\n507") < table.index("\n308")


def test_relaxed_and_outliers_have_tables_of_their_own():
    text = written(show, examples.relaxed_only())
    assert "Massive activations (strict)" not in text
    assert "Relaxed only (not massive by the strict definition)" in text
    assert "Outlier features (large at most tokens)" in text
    assert "embedding" in text


def test_what_the_columns_mean_and_how_the_tables_relate_is_said():
    result = examples.relaxed_only()
    flat = lambda result: " ".join(written(show, result).split())
    of_page = lambda result: html_of(sections(result, examples.activation_map(result, bins=8)))
    means = "alue: the largest of each sequence, mean and deviation over n sequences"
    for text in (flat(result), of_page(result)):
        assert text.count(means) == 1 and "in both tables" not in text
    assert "2 outlier features, large at most tokens and so not massive activations" in flat(result)
    result["outlier_features"][1]["dim"] = 77  # which is relaxed, too
    for text in (flat(result), of_page(result)):
        assert "A dimension in both tables is large at most tokens, and over the" in text
    assert (
        "2 outlier features, large at most tokens: dim 13, 77. Massive or relaxed as well, at a "
        "few tokens where they are far larger: dim 77."
    ) in flat(result)
    assert means not in flat(examples.none_found())


def test_long_tables_are_cut_and_say_so():
    records = [examples.massive(d, 1e4 - d, 0, 2, 4, token=" a b") for d in range(300, 313)]
    text = written(show, examples.result(records, depth=4))
    assert "\n309 " in text and "\n310 " not in text
    assert "and 3 more, in the JSON file" in text
    assert "'␣a␣b'" in text
    assert "in the JSON file" not in written(show, examples.strict_found())


def test_none_found_is_a_result():
    text = written(show, examples.none_found())
    assert "No massive activations found, strict or relaxed." in text
    assert "Relaxed only" not in text and "Outlier" not in text


def test_warns_of_nonfinite_activations_before_all_else():
    text = printed(show, examples.broken_numbers())
    assert text.index("cannot be trusted") < text.index("Massive activations")
    assert "Verdict" not in text


def test_a_log_gets_no_control_codes_and_a_terminal_has_colours():
    text = written(show, examples.strict_found(), force_terminal=True,
                   color_system="standard")
    assert "\x1b[" in text


def test_markup_in_names_is_text():
    text = printed(show, examples.nasty(), width=120)
    assert "<b>$x$</b></title>[red]Ġ" in text and "onerror=alert(1)>[/]" in text
    assert "'[bold]中'" in text


def test_sections_and_their_links(tmp_path):
    html = read(write(examples.strict_found(), tmp_path))
    anchors = [s["id"] for s in html.tags("section")]
    assert anchors == ["verdict", "massive", "surface", "magnitudes", "writers",
                       "super-weights", "prompt", "outliers", "layers", "settings"]
    assert [a["href"] for a in html.tags("a")] == [f"#{anchor}" for anchor in anchors]
    assert "Dimension 507 is massive (strict) from layer 11 to 28" in html.text
    assert "data.sequences" in html.text and "0.10.2" in html.text


def test_relaxed_and_outliers_are_called_by_their_names(tmp_path):
    html = read(write(examples.relaxed_only(), tmp_path))
    assert "Relaxed only: not massive by the strict definition" in html.text
    assert "dim 77 (relaxed)" in html.blocks["chart-writers-data"]
    assert "Massive (strict)" not in html.text
    assert html.tags("mark")[0]["class"] == "relaxed"
    assert "93%" in html.text


def test_many_records_are_drawn_in_part_and_said_so(tmp_path):
    records = [examples.massive(d, 1e4 - d, 0, 2, 4) for d in range(30)]
    html = read(write(examples.result(records, depth=4), tmp_path))
    data = json.loads(html.blocks["chart-writers-data"])["data"]
    lines = [t for t in data if t["name"].startswith("dim")]
    assert len(lines) == 24
    assert [t.get("visible", True) for t in lines] == [True] * 8 + ["legendonly"] * 16
    assert "The 24 largest of 30 are drawn." in html.text


def test_none_found_has_no_writers_section(tmp_path):
    html = read(write(examples.none_found(), tmp_path))
    assert "No massive activations found, strict or relaxed." in html.text
    assert "writers" not in [s["id"] for s in html.tags("section")]
    assert not html.tags("mark")


def test_text_cannot_become_a_tag(tmp_path):
    html = read(write(examples.nasty(), tmp_path))
    assert len(html.tags("script")) == 5  # plotly, three charts and the page's own
    assert not html.tags("b") and not html.tags("img")
    assert "</style><img src=x onerror=alert(1)>[/]" in html.text
    assert "<b>$x$</b></title>[red]Ġ" in html.text
    for name in ("chart-activation_map-data", "chart-top_magnitudes-data", "chart-writers-data"):
        json.loads(html.blocks[name])


def test_prompt_shows_every_token_and_marks_the_massive_ones(tmp_path):
    result = examples.nasty()
    html = read(write(result, tmp_path))
    marks = html.tags("mark")
    assert len(marks) == 10
    assert marks[0]["data-tip"].splitlines() == [
        "position 0", "dim 5: 3,000 at layer 1, mean over sequences",
        "dim 9: 900 at layer 1, mean over sequences",
    ]
    prompt = html.text[html.text.index("All tokens;") :]
    for shown in ("<|im_start|>", "</script>", "↵\n", "→\t", "···", "Ġthe", "中文", "\\x00",
                  "\\x1b[31m", "\\u202e", "\\ud800", "</mark>", "%{x}", "␍"):
        assert shown in prompt


def test_nan_is_null_in_the_charts(tmp_path):
    html = read(write(examples.broken_numbers(), tmp_path))
    data = json.loads(html.blocks["chart-top_magnitudes-data"])["data"]
    top = next(t for t in data if t.get("name") == "top-1")["y"]
    assert top[3] == 15 and top[4:] == [None] * 26
    assert "2,600 activations NaN or infinite" in html.text


def test_size_without_plotly_is_small(tmp_path):
    from plotly.offline import get_plotlyjs

    path = write(examples.strict_found(), tmp_path)
    assert path.stat().st_size - len(get_plotlyjs().encode()) < 700_000


@pytest.mark.parametrize("name", ["relaxed_only", "broken_numbers"])
def test_saves_three_figures_as_png_and_pdf(name, tmp_path):
    result = examples.EXAMPLES[name]()
    activation_map = examples.activation_map(result)
    if name == "broken_numbers":
        activation_map.magnitude[4:] = math.nan
    before = dict(matplotlib.rcParams)
    paths = write_all(result, activation_map, tmp_path / "figs")[2:]
    of_text = figures.FIGURES[:3]
    assert [p.name for p in paths] == [f"{n}.{s}" for n in of_text for s in ("png", "pdf")]
    for path in paths:
        if path.suffix == ".png":
            pixels = matplotlib.image.imread(path)
            assert pixels.shape[1] == 256 and pixels[..., :3].std() > 0.02
    assert dict(matplotlib.rcParams) == before


def test_the_same_result_gives_the_same_bytes():
    chart = figures.magnitude_chart(examples.none_found())
    assert matplotlib_painter.draw(chart) == matplotlib_painter.draw(chart)


def test_a_threshold_of_zero_is_allowed():
    result = examples.result([examples.massive(d, v, 0, 2, 4) for d, v in ((1, 5e3), (2, 2.0))])
    for name in ("strict", "relaxed"):
        result["definition"][name]["magnitude"] = 0.0
    for chart in figures.charts(result, examples.activation_map(result)):
        drawn(chart)
    (panel,) = figures.magnitude_chart(result).panels
    assert plotly_painter.figure_of(panel)["layout"]["shapes"] == []


def test_names_that_no_font_and_no_formula_can_set():
    result = examples.nasty()
    result["model"]["name"] = r"中文 $\frac$"
    result["prompt"]["tokens"][0] = r"$\frac$ 🙂"
    for chart in figures.charts(result, examples.activation_map(result)):
        assert r"\u4e2d\u6587 $\frac$: " in texts(drawn(chart))


def test_activation_map_shows_and_names_the_spike_at_the_peak_layer():
    result = examples.strict_found()
    figure = drawn(figures.map_chart(result, examples.activation_map(result)))
    (axes,) = figure.axes
    assert "after block 11" in texts(figure)
    assert "dim 507" in texts(axes) and "dim 308" not in texts(axes)  # 308 begins at block 12
    assert "'<|im_start|>'" in texts(axes)
    assert axes.get_zlim()[1] == pytest.approx(1.05 * 24926, rel=1e-3)


def test_map_layer_without_a_record_is_where_the_ratio_is_largest():
    result = examples.none_found()
    assert figures.map_layer(result) == 0
    result["layers"][17]["top"][0]["magnitude"] = 1e4
    assert figures.map_layer(result) == 17
    result["layers"][9]["top"][0]["magnitude"] = math.nan
    assert figures.map_layer(result) == 17
    assert figures.map_layer(examples.relaxed_only()) == 3


def test_map_bin_is_the_one_that_holds_the_dimension():
    activation_map = examples.ActivationMap(np.zeros((1, 1, 3)), np.array([0, 10, 20]), ["a"])
    assert [figures.map_bin(activation_map, d) for d in (0, 9, 10, 19, 20, 31)] == [
        0, 0, 1, 1, 2, 2
    ]


def test_top_magnitudes_draws_the_numbers_on_a_log_axis():
    result = examples.strict_found()
    (axes,) = drawn(figures.magnitude_chart(result)).axes
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line for line in axes.lines}
    for rank in range(3):
        expected = [layer["top"][rank]["magnitude"] for layer in result["layers"]]
        np.testing.assert_allclose(lines[f"top-{rank + 1}"].get_ydata(), expected)
    np.testing.assert_allclose(
        lines["median"].get_ydata(), [layer["median"] for layer in result["layers"]]
    )
    low, high = axes.get_ylim()
    assert low < 0.5 and high > 24926


def test_writers_draws_signed_values_and_says_who():
    result = examples.strict_found()
    figure = drawn(figures.writer_chart(result))
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    label = "dim 308: written by MLP 12 (-1,822), still there after the last block"
    values = np.array(lines[label])
    assert np.isnan(values[:12]).all() and values[12] == -1840.5
    assert "dim 507: written by MLP 11 (24,677), removed by MLP 29 (-24,427)" in lines
    assert "(relaxed)" in texts(drawn(figures.writer_chart(examples.relaxed_only())))
    nothing = figures.writer_chart(examples.none_found())
    assert "None found, strict or relaxed" in texts(drawn(nothing))


def test_writers_shows_the_largest_and_says_how_many_there_are():
    records = [examples.massive(d, 3e4 / 3**d, 1, 4, 6) for d in range(11)]
    figure = drawn(figures.writer_chart(examples.result(records, depth=6)))
    assert "(8 largest of 11)" in texts(figure)
    assert figure.axes[0].get_yscale() == "symlog"


def test_of_two_dimensions_in_one_bin_the_larger_is_named_on_paper():
    result = examples.strict_found()
    activation_map = examples.activation_map(result)
    largest = max(result["massive"], key=lambda r: abs(r["value_mean"]))
    beside = dict(largest, dim=largest["dim"] - 1, value_mean=1.0)
    position = next(p for p, d in result["prompt"]["massive"] if d == largest["dim"])
    result["massive"].append(beside)
    result["prompt"]["massive"].insert(0, (position, beside["dim"]))
    surface = figures.map_chart(result, activation_map)
    assert len({figures.map_bin(activation_map, r["dim"]) for r in (largest, beside)}) == 1
    assert [s.name for s in tallest_spikes(surface, surface.layer)] == [f"dim {largest['dim']}"]


def test_surface_spec_holds_the_map():
    result = examples.strict_found()
    activation_map = examples.activation_map(result)
    spec = plotly_painter.surface_of(figures.map_chart(result, activation_map))
    codes = np.frombuffer(base64.b64decode(spec["codes"]), "<u2").reshape(spec["shape"])
    decoded = np.exp(spec["low"] + codes * spec["step"])
    np.testing.assert_allclose(decoded, activation_map.magnitude, rtol=2e-4)
    assert spec["bins"][0] == "dims 0 to 3" and spec["bins"][-1] == "dims 571 to 575"
    mark = next(m for m in spec["marks"] if m["label"] == "dim 507")
    assert (mark["row"], mark["first"], mark["last"]) == (0, 11, 28)
    assert activation_map.first_dim[mark["column"]] <= 507


def test_the_schema_walk_sees_what_is_wrong(tmp_path):
    result = examples.strict_found()
    result["layers"][0]["median"] = "1.5"  # type: ignore[typeddict-item]
    result["massive"][0]["written_by"].pop("layer")  # type: ignore[misc]
    result["data"]["extra"] = 1  # type: ignore[typeddict-unknown-key]
    found = violations(json.loads(json.dumps(result)), ProbeResult)
    assert sorted(v.split(":")[0] for v in found) == [
        "$.data.extra", "$.layers[0].median", "$.massive[0].written_by.layer"
    ]


def test_nan_is_null_in_the_file(tmp_path):
    result = examples.broken_numbers()
    paths = write_all(result, examples.activation_map(result), tmp_path)
    written = read_json(paths[0])
    assert written["layers"][4]["median"] is None
    assert written["massive"][0]["value_mean"] is None
    assert written["layers"][3]["median"] == result["layers"][3]["median"]


def test_a_second_report_replaces_the_first(tmp_path):
    for make in (examples.strict_found, examples.none_found):
        result = make()
        paths = write_all(result, examples.activation_map(result), tmp_path)
    assert read_json(paths[0])["massive"] == []
    assert "Dimension 507" not in paths[1].read_text(encoding="utf-8")


# Inked pixels of the WebGL canvas: an empty or a lost context has none.
INK = """(async () => {
  const canvas = document.querySelector('#chart-activation_map canvas');
  const size = {format: 'png', width: 500, height: 400};
  const url = await Plotly.toImage('chart-activation_map', size);
  const image = new Image(); image.src = url; await image.decode();
  const flat = document.createElement('canvas'); flat.width = 500; flat.height = 400;
  const context = flat.getContext('2d'); context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, 500, 400).data;
  let ink = 0;
  for (let i = 0; i < pixels.length; i += 4)
    if (pixels[i + 3] > 128 && pixels[i] < 200 && pixels[i + 2] > pixels[i] + 20) ink += 1;
  return canvas ? ink : -1;
})()"""


@pytest.mark.browser
def test_surface_is_drawn_and_follows_the_slider(browser, tmp_path):
    result = examples.strict_found()
    # Dim 505 shares the bin of dim 507 (dims 504 to 507); it stands alone at layers 5 to 10.
    result["massive"].insert(0, examples.massive(505, 300.0, 5, 20, 30))
    result["prompt"]["massive"].insert(0, (0, 505))
    page = browser.open(write(result, tmp_path))
    page.wait_for("document.documentElement.dataset.drawn === 'true'")
    assert page.evaluate(INK) > 5000
    tallest = "Math.max(...document.getElementById('chart-activation_map').data[0].z.flat())"
    names = "document.getElementById('chart-activation_map').data[1].text"
    assert page.evaluate(tallest) == pytest.approx(24926, rel=1e-3)
    move = """((layer) => { const s = document.getElementById('chart-activation_map-layer');
      s.value = layer; s.dispatchEvent(new Event('input')); })"""
    # Of two dimensions in one bin the larger is named.
    both = ["dim 308", "dim 507"]
    for layer, named in ((11, ["dim 507"]), (7, ["dim 505"]), (20, both), (0, [])):
        page.evaluate(f"{move}({layer})")
        assert sorted(page.evaluate(names)) == named, layer
    assert page.evaluate(tallest) < 10
    assert page.evaluate("document.getElementById('chart-activation_map-shown').value") == "0"
    page.evaluate("document.getElementById('chart-activation_map-log').click()")
    kind = "document.getElementById('chart-activation_map')._fullLayout.scene.zaxis.type"
    page.wait_for(f"{kind} === 'log'")
    assert page.complaints == []
