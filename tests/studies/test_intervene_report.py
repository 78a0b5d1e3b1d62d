"""What the report of `intervene` says, and the numbers in its tables and charts."""

import math

import numpy as np
import pytest
import report_examples as examples
from causal_examples import DEPTH, intervene_result
from json_schema import read
from reports import chart_of, drawn, html_of, printed, rows, texts, written

from jax_massact.report.chart import Bars, Rule
from jax_massact.studies.intervene import figures
from jax_massact.studies.intervene import report as intervene
from jax_massact.studies.intervene.report import show
from jax_massact.studies.output import Outcome, write_files


def verdict(result) -> list[str]:
    return intervene.findings(result).lines


def line_data(axes) -> dict[str, np.ndarray]:
    return {line.get_label(): np.array(line.get_ydata(), dtype=float) for line in axes.lines}


def test_intervene_says_what_happens_in_sentences():
    assert verdict(intervene_result()) == [
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
    assert says in printed(show, intervene_result(verdict=verdict))


def test_what_comes_back_over_the_relaxed_threshold_is_said():
    result = intervene_result()
    back = examples.massive(7, -333.0, 4, 4, DEPTH, strict=False)
    result["after_zero"]["massive"].append(back)
    says = "Still, by the relaxed definition only, dim 7 is large after the edit: -333 after block"
    assert says in " ".join(verdict(result))
    back["peak_layer"] = 0  # before the edit, and so no news
    assert len(verdict(result)) == 3


def test_nothing_met_in_the_held_out_text_proves_nothing():
    result = intervene_result(zero=15.7, verdict="not needed")
    result["targets"][0]["activations"] = 0
    text = " ".join(verdict(result))
    assert "nothing was changed" in text and "not needed" not in text


def test_sequences_of_few_tokens_prove_nothing():
    result = intervene_result("none")
    assert "No massive activations found, strict or relaxed. There is nothing" in verdict(result)[0]
    result["data"]["window"], result["definition"]["outlier"]["share"] = 2, 0.25
    assert "Whether there are massive activations cannot be said" in verdict(result)[0]


def test_many_targets_are_counted():
    result = intervene_result()
    result["targets"] = [dict(result["targets"][0], layer=l, dim=l) for l in range(14)]
    text = written(show, result)
    assert "dim 3 after block 3 and 10 more" in " ".join(text.split())
    assert "They are needed" in text and "and 18 more, in the JSON file" in text


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
    page = html_of(intervene.sections(intervene_result()))
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
    text = written(show, intervene_result())
    assert "set to zero" in text and "x 318.5  2.8750  0.2200" in text
    assert ["1", "7", "delimiter", "850.2", "2.5", "5", "8"] in [
        line.split() for line in text.splitlines()]


def test_bars_and_trajectories_hold_the_numbers():
    result = intervene_result()
    (axes,) = drawn(figures.perplexity_chart(result)).axes
    ends = [bar.get_x() + bar.get_width() for bar in axes.patches]
    np.testing.assert_allclose(ends, list(result["perplexity"].values()))
    assert axes.get_xscale() == "log"
    assert chart_of(html_of(intervene.sections(result)), "perplexity")["data"][0]["x"] == [
        15.7, 5000, 15.8, 21, 15.69]
    # One standard error of the loss over sequences, and the perplexity of a uniform guess.
    loss, sequences = result["loss"]["zero"], result["data"]["sequences"]
    chart = figures.perplexity_chart(result)
    low, high = chart.panels[0].of(Bars)[0].intervals[1]
    error = loss["std"] / math.sqrt(sequences)
    np.testing.assert_allclose([low, high], [5000 * math.exp(-error), 5000 * math.exp(error)])
    (rule,) = chart.panels[0].of(Rule)
    assert rule.at == result["model"]["vocab_size"] and axes.get_xlim()[0] == 1.0
    assert "uniform guess" in rule.text and rule.axis == "x"
    wanted = result["after_zero"]["trajectories"][0]
    figure = drawn(figures.trajectory_chart(result))
    lines = line_data(figure.axes[0])
    np.testing.assert_allclose(lines["dim 7, original"], wanted["original"])
    np.testing.assert_allclose(lines["dim 7, set to zero"], wanted["zero"])
    assert "edit at layer 1" in lines and "after zeroing: needed" in texts(figure)
    traces = chart_of(html_of(intervene.sections(intervene_result())), "after_zero")["data"]
    assert [t["y"] for t in traces] == [wanted["original"], wanted["zero"]]


def test_the_largest_trajectories_are_drawn_apart():
    result = intervene_result()
    result["after_zero"]["trajectories"] = [
        {"dim": d, "original": [0.0, 10.0**d, math.nan], "zero": [0.0, 0.0, 1.0]} for d in range(6)
    ]
    figure = drawn(figures.trajectory_chart(result))
    text = texts(figure)
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
    assert word in printed(show, result)
    paths, _ = write_files("intervene", Outcome(result), tmp_path)
    assert read(paths[0])["perplexity"]["zero"] is None
    figure = drawn(figures.perplexity_chart(result))
    assert word in [t.get_text() for t in figure.axes[0].texts]
    bar = figure.axes[0].patches[1]
    left, right = figure.axes[0].get_xlim()
    assert left < bar.get_x() + bar.get_width() < right
    bars, ends = chart_of((tmp_path / "intervene.html").read_text(), "perplexity")["data"]
    assert ends["text"][1] == f" {word}" and bars["x"][1] >= 10
    assert bars["error_x"]["array"][1] == 0.0


def test_strict_and_relaxed_have_tables_of_their_own():
    # The strict example leaves a relaxed record once its targets are zero.
    text = written(show, intervene_result())
    assert "Relaxed only, once the targets are zero" in text
    assert "Massive (strict) once the targets are zero" not in text
    page = html_of(intervene.sections(intervene_result()))
    assert "Once the targets are zero: relaxed only: not massive by the strict definition" in page


def test_relaxed_is_never_called_massive_alone():
    result = intervene_result("relaxed")
    for text in (written(show, result), html_of(intervene.sections(result))):
        assert "assive (strict):" not in text and "massive (strict) again" not in text
    assert "relaxed" in verdict(result)[0]
    for chart in figures.charts(result):
        assert "(relaxed only)" in chart.title
