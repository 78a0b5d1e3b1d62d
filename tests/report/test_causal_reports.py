"""The reports of `intervene`, `explain` and `fold`: every result, the empty and the nasty."""

import copy
import dataclasses
import html

import numpy as np
import pytest
import report_examples as examples
from json_schema import read, violations
from rich.console import Console

from jax_massact.config import Definition
from jax_massact.probe.checkpoint import definition_info
from jax_massact.probe.explain_result import AttentionMap, ExplainResult, FoldResult
from jax_massact.probe.intervene_result import InterveneResult
from jax_massact.report import (
    print_explain,
    print_fold,
    print_intervene,
    write_explain_report,
    write_fold_report,
    write_intervene_report,
)
from jax_massact.report.explain import map_layers, share_series, update_series
from jax_massact.report.intervene import change

DEPTH, HEADS = 6, 2
NASTY = "</script><script>alert(1)</script>$x_1$"


def common(kind):
    base = {"strict": examples.strict_found, "none": examples.none_found,
            "relaxed": examples.relaxed_only, "nasty": examples.nasty}[kind]()
    keys = ("schema", "model", "data", "definition", "config", "seconds", "versions")
    result = {key: copy.deepcopy(base[key]) for key in keys}
    result["model"]["depth"] = DEPTH
    result["definition"] = definition_info(Definition())
    if kind == "nasty":
        result["model"]["name"] = NASTY
    strict = kind != "relaxed"
    token = NASTY if kind == "nasty" else "<s>"
    massive = [] if kind == "none" else [
        examples.massive(7, 900.0, 1, 3, DEPTH, strict=strict, token=token)
    ]
    return result, massive


def intervene_result(kind="strict", zero=5000.0, verdict="needed") -> InterveneResult:
    result, massive = common(kind)
    names = {"original": 15.7, "zero": zero, "mean": 15.8, "fraction_0.5": 21.0,
             "control_zero": 15.69}
    if not massive:
        names = {"original": 15.7}
    record = massive and {
        "layer": 1, "dim": 7, "strict": massive[0]["strict"], "activations": 8, "control_dim": 3,
        "control_activations": 8,
        "means": [{"kind": "first", "mean": 900.5, "std": 3.0, "count": 8}],
    }
    data = {
        "source": NASTY if kind == "nasty" else "a text", "calibration_sequences": 8,
        "sequences": 8, "window": 512, "stride": 511, "scored_tokens": 4088, "bos": True,
        "bos_setting": "auto", "bos_token": "<s>",
    }
    rises = np.linspace(0, 900, DEPTH).tolist()
    after = massive and {
        "verdict": verdict, "dims": [7] if "rebuilt" in verdict else [], "massive": massive,
        "trajectories": [{"dim": 7, "original": rises, "zero": [0.0] * DEPTH}],
    }
    return result | {
        "data": data, "massive": massive, "targets": [record] if massive else [],
        "perplexity": names, "after_zero": after or None,
        "loss": {n: {"mean": 2.75, "std": 0.22} for n in names},
    }


def explain_result(kind="strict") -> tuple[ExplainResult, AttentionMap]:
    result, massive = common(kind)
    some = bool(massive)
    spread = lambda mean: {"mean": mean, "std": 0.02}
    vector = {
        "norm_massive": 9e3 if some else None, "norm_other": 70.0,
        "cosine_massive": 0.99 if some else None, "cosine_other": 0.4,
        "dims_massive": 1.1 if some else None, "dims_other": 40.0,
    }
    update = lambda share: {
        "cosine": spread(0.91), "deviation": spread(0.4), "cosine_pooled": 0.9,
        "deviation_pooled": 0.41, "share": spread(share),
    }
    layers = [
        {
            "layer": l,
            "attention": {
                "sink_rate": spread(0.1 * l), "first": [0.1 * l] * HEADS,
                "massive": [0.125 * l] * HEADS if some else None, "extra": None,
                "logit_massive": [3.0] * HEADS if some else None, "logit_other": [-1.0] * HEADS,
            },
            "stream": vector, "normed": vector, "keys": vector, "values": vector,
            "value_drain": 0.25 if some else None,
            "massive_update": update(0.2) if some else None,
            "other_update": update(0.8) if some else None,
        }
        for l in range(DEPTH)
    ]
    places = [
        {"bos": bos, "sequences": 100, "sequence_length": 256, "massive": massive}
        for bos in (False, True)
    ]
    tokens = ["<s>", NASTY if kind == "nasty" else "the"] * 15
    weight = np.tril(np.ones((DEPTH, 30, 30), np.float32) / 30)
    picture = AttentionMap(weight, tokens, [some, *[False] * 29])
    return result | {
        "massive": massive, "massive_tokens": 1.0 if some else 0.0, "sink_epsilon": 0.3,
        "sink_length": 64, "sink_rate": spread(0.75), "layers": layers, "locations": places,
    }, picture


def fold_result(kind="strict", unchanged=True) -> FoldResult:
    result, massive = common(kind)
    return result | {
        "first_token": NASTY if kind == "nasty" else "<s>", "first_token_id": 1,
        "logit_difference": 4e-6 if unchanged else 0.3, "allowed_difference": 1e-4,
        "unchanged": unchanged, "perplexity_original": 15.5, "perplexity_folded": 15.5,
        "massive_before": massive, "massive_after": [], "largest_before": 900.0,
        "largest_after": 30.0, "saved_to": "model",
    }


def printed(show, result, encoding="utf-8"):
    import io

    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(result, Console(file=file, width=80))
    file.seek(0)
    return " ".join(file.read().split())


KINDS = pytest.mark.parametrize("kind", ["strict", "none", "relaxed", "nasty"])


@KINDS
def test_every_report_is_written_whole_and_valid(kind, tmp_path):
    explained, picture = explain_result(kind)
    written = [
        (write_intervene_report(intervene_result(kind), tmp_path / "i"), InterveneResult,
         2 if kind == "none" else 4),
        (write_explain_report(explained, picture, tmp_path / "e"), ExplainResult, 8),
        (write_fold_report(fold_result(kind), tmp_path / "f"), FoldResult, 0),
    ]
    for paths, schema, figures in written:
        assert len(paths) == 2 + figures
        assert all(p.stat().st_size > 500 for p in paths)
        assert violations(read(paths[0]), schema) == []
        page = paths[1].read_text(encoding="utf-8")
        assert "<script>alert" not in page and page.count("<h1>") == 1
        if kind == "nasty":
            assert html.escape(NASTY) in page


@KINDS
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_the_terminal_says_it(kind, encoding):
    explained, _ = explain_result(kind)
    texts = [
        printed(print_intervene, intervene_result(kind), encoding),
        printed(print_explain, explained, encoding),
        printed(print_fold, fold_result(kind), encoding),
    ]
    for text in texts:
        assert "\x1b" not in text
        if kind == "none":
            assert "No massive activations" in text
        if kind == "relaxed":
            assert "relaxed" in text.lower().split("strict (massive)")[0]
    if kind == "strict":
        assert "x 318.5" in texts[0] and "+0.64%" in texts[0] and "-0.06%" in texts[0]
        assert "set to 0.5 of the mean" in texts[0] and "Needed:" in texts[0]
        assert "block 1 and after" in texts[1] and "38%" in texts[1] and "0.91" in texts[1]
        assert "unchanged" in texts[2] and "4.0e-06" in texts[2]


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ("needed", "no later block writes it again"),
        ("rebuilt", "Rebuilt: a later block writes dim 7 again"),
        ("needed and rebuilt", "Needed, though a later block writes dim 7 again"),
        ("not needed", "the model does without"),
    ],
)
def test_each_verdict_has_its_sentence(verdict, says):
    assert says in printed(print_intervene, intervene_result(verdict=verdict))


def test_an_infinite_perplexity_is_said_drawn_and_null_in_the_file(tmp_path):
    result = intervene_result(zero=float("inf"))
    assert "inf" in printed(print_intervene, result)
    assert read(write_intervene_report(result, tmp_path)[0])["perplexity"]["zero"] is None


def test_a_changed_model_is_called_changed():
    assert "CHANGED" in printed(print_fold, fold_result(unchanged=False))
    remains = fold_result() | {"massive_after": common("strict")[1]}
    text = printed(print_fold, remains)
    assert "What remains (strict): dim 7" in text and "delimiter" in text


def test_changes_are_percentages_below_twice():
    assert [change(v, 10.0) for v in (10.0, 9.99, 19.0, 20.0, 1e6)] == [
        "+0.00%", "-0.10%", "+90.00%", "x 2", "x 100,000"
    ]


def test_series_hold_the_numbers_of_the_result():
    result, _ = explain_result()
    series = {name: values for name, values, *_ in share_series(result)}
    np.testing.assert_allclose(series["on massive tokens"], 0.125 * np.arange(DEPTH))
    np.testing.assert_allclose(series["on the first token"], 0.1 * np.arange(DEPTH))
    assert [v for _, v, *_ in update_series(result)["share"]] == [[0.2] * DEPTH, [0.8] * DEPTH]
    assert map_layers(result) == [1, 3]
    assert map_layers(explain_result("none")[0]) == [0, DEPTH - 1]
    assert dataclasses.is_dataclass(Definition)
