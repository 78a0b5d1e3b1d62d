import math

import matplotlib
import numpy as np
import pytest
import report_examples as examples
from matplotlib.image import imread

from jax_massact.report import charts, figures, picture

NAMES = ["activation_map", "top_magnitudes", "writers"]


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_saves_three_figures_as_png_and_pdf(name, tmp_path):
    result = examples.EXAMPLES[name]()
    before = dict(matplotlib.rcParams)
    paths = figures.save_probe_figures(result, examples.activation_map(result), tmp_path / "figs")
    assert [p.name for p in paths] == [f"{n}.{s}" for n in NAMES for s in ("png", "pdf")]
    for path in paths:
        if path.suffix == ".pdf":
            content = path.read_bytes()
            assert content.startswith(b"%PDF-") and b"/Type3" not in content
        else:
            pixels = imread(path)
            assert pixels.shape[1] == 1280
            assert pixels[..., :3].std() > 0.02
    assert dict(matplotlib.rcParams) == before


def test_the_same_result_gives_the_same_bytes(tmp_path):
    result = examples.none_found()
    activation_map = examples.activation_map(result)
    first = figures.save_probe_figures(result, activation_map, tmp_path / "a")
    second = figures.save_probe_figures(result, activation_map, tmp_path / "b")
    assert [p.read_bytes() for p in first] == [p.read_bytes() for p in second]


def test_a_threshold_of_zero_is_allowed(tmp_path):
    result = examples.result([examples.massive(d, v, 0, 2, 4) for d, v in ((1, 5e3), (2, 2.0))])
    for name in ("strict", "relaxed"):
        result["definition"][name]["magnitude"] = 0.0
    activation_map = examples.activation_map(result)
    assert len(figures.save_probe_figures(result, activation_map, tmp_path)) == 6
    assert "shapes" not in charts.top_magnitudes(result)["layout"]


def test_a_map_of_nan_is_drawn(tmp_path):
    result = examples.broken_numbers()
    activation_map = examples.activation_map(result)
    activation_map.magnitude[4:] = math.nan
    assert len(figures.save_probe_figures(result, activation_map, tmp_path)) == 6


def test_names_that_no_font_and_no_formula_can_set(tmp_path):
    result = examples.nasty()
    result["model"]["name"] = r"中文 $\frac$"
    result["prompt"]["tokens"][0] = r"$\frac$ 🙂"
    activation_map = examples.activation_map(result)
    assert len(figures.save_probe_figures(result, activation_map, tmp_path)) == 6
    title = texts(figures.draw_top_magnitudes(result))
    assert r"\u4e2d\u6587 \$\frac\$: largest magnitudes" in title


def texts(axes) -> str:
    return " | ".join(text.get_text() for text in axes.findobj(matplotlib.text.Text))


def test_activation_map_shows_and_names_the_spike_at_the_peak_layer():
    result = examples.strict_found()
    figure = figures.draw_activation_map(result, examples.activation_map(result))
    figure.canvas.draw()
    (axes,) = figure.axes
    assert "after block 11" in texts(figure)
    assert "dim 507" in texts(axes) and "dim 308" not in texts(axes)  # 308 begins at block 12
    assert "'<|im_start|>'" in texts(axes)
    assert axes.get_zlim()[1] == pytest.approx(1.05 * 24926, rel=1e-3)


def test_map_layer_without_a_record_is_where_the_ratio_is_largest():
    result = examples.none_found()
    assert picture.map_layer(result) == 0
    result["layers"][17]["top"][0]["magnitude"] = 1e4
    assert picture.map_layer(result) == 17
    result["layers"][9]["top"][0]["magnitude"] = math.nan
    assert picture.map_layer(result) == 17
    assert picture.map_layer(examples.relaxed_only()) == 3


def test_map_bin_is_the_one_that_holds_the_dimension():
    activation_map = examples.ActivationMap(np.zeros((1, 1, 3)), np.array([0, 10, 20]), ["a"])
    assert [picture.map_bin(activation_map, d) for d in (0, 9, 10, 19, 20, 31)] == [
        0, 0, 1, 1, 2, 2
    ]


def test_top_magnitudes_draws_the_numbers_on_a_log_axis():
    result = examples.strict_found()
    (axes,) = figures.draw_top_magnitudes(result).axes
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
    figure = figures.draw_writers(result)
    (axes,) = figure.axes
    lines = {line.get_label(): line.get_ydata() for line in axes.lines}
    label = "dim 308: written by MLP 12 (-1,822), still there after the last block"
    values = np.array(lines[label])
    assert np.isnan(values[:12]).all() and values[12] == -1840.5
    assert "dim 507: written by MLP 11 (24,677), removed by MLP 29 (-24,427)" in lines
    assert "(relaxed)" in texts(figures.draw_writers(examples.relaxed_only()))
    assert "No massive activations found" in texts(figures.draw_writers(examples.none_found()))


def test_writers_shows_the_largest_and_says_how_many_there_are():
    records = [examples.massive(d, 3e4 / 3**d, 1, 4, 6) for d in range(11)]
    figure = figures.draw_writers(examples.result(records, depth=6))
    assert "(8 largest of 11)" in texts(figure)
    assert figure.axes[0].get_yscale() == "symlog"


def test_of_two_dimensions_in_one_bin_the_larger_is_named():
    result = examples.strict_found()
    activation_map = examples.activation_map(result)
    largest = max(result["massive"], key=lambda r: abs(r["value_mean"]))
    beside = dict(largest, dim=largest["dim"] - 1, value_mean=1.0)
    position = next(p for p, d in result["prompt"]["massive"] if d == largest["dim"])
    result["massive"].append(beside)
    result["prompt"]["massive"].insert(0, (position, beside["dim"]))
    bins = [picture.map_bin(activation_map, r["dim"]) for r in (largest, beside)]
    assert bins[0] == bins[1]
    (axes,) = figures.draw_activation_map(result, activation_map).axes
    assert f"dim {largest['dim']}" in texts(axes)
    assert f"dim {beside['dim']}" not in texts(axes)
