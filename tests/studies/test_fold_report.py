"""What the report of `fold` says, and the numbers in its tables."""

import report_examples as examples
from causal_examples import DEPTH, fold_result
from reports import html_of, printed, rows, written

from jax_massact.studies.fold import report as fold
from jax_massact.studies.fold.report import show


def verdict(result) -> list[str]:
    return fold.findings(result).lines


def test_fold_says_what_happens_in_sentences():
    assert verdict(fold_result()) == [
        "The first token '<s>' (id 1) is now k', v' in every head and layer. The other tokens' "
        "logits are unchanged: the largest difference is 4.0e-06 of the largest logit (allowed: "
        "1e-04).",
        "Massive (strict) before: dim 7; no dimension is any more, by the share of sequences that "
        "the definition asks for.",
    ]
    assert verdict(fold_result("relaxed"))[1:] == [
        "No massive activations (strict), neither before nor after.",
        "Relaxed only: dim 7 before, none after.",
    ]


def test_a_changed_model_and_what_remains_are_said():
    assert "CHANGED" in printed(show, fold_result(unchanged=False))
    assert "The folded model is not the same" in printed(show, fold_result(unchanged=False))
    page = html_of(fold.sections(fold_result(unchanged=False)))
    assert '<div class="warning">' in page and "model</dd>" in page
    assert '<div class="warning">' not in html_of(fold.sections(fold_result()))
    remains = fold_result() | {"massive_after": [examples.massive(9, 500.0, 2, 4, DEPTH)]}
    assert "What remains (strict), by dimension and layer: dim 9, 2-4." in printed(
        show, remains)


def test_tables_of_fold_hold_the_numbers():
    remains = fold_result() | {"massive_after": [
        examples.massive(d, 50.0, 2, 2, DEPTH, strict=False) for d in (3, 4)]}
    page = html_of(fold.sections(remains))
    wanted = [["perplexity", "15.5", "15.6"], ["largest |h|", "900", "30"],
              ["dimensions, strict", "1", "0"], ["dimensions, relaxed only", "0", "2"]]
    assert rows(page, "folded</th>") == wanted
    text = written(show, remains)
    assert all(" ".join(row) in " ".join(text.split()) for row in wanted)


def test_strict_and_relaxed_have_tables_of_their_own():
    remains = fold_result() | {"massive_after": [
        examples.massive(9, 500.0, 2, 4, DEPTH), examples.massive(5, 50.0, 2, 2, DEPTH,
                                                                 strict=False)]}
    text = written(show, remains)
    strict, relaxed = text.split("What remains: massive (strict)")[1].split(
        "What remains: relaxed only")
    assert "\n  9 " in strict and "\n  5 " not in strict and "\n  5 " in relaxed


def test_a_later_token_that_becomes_massive_is_counted():
    again = fold_result() | {"massive_sequences_after": 2, "massive_first_after": 1}
    assert ("In 2 of 4 sequences a token is massive (strict) although k', v' exist, in 1 of them "
            "the first that is left: that depends on the text.") in printed(show, again)


def test_outlier_features_and_massive_activations_are_told_apart():
    feature = {"dim": 5, "first_layer": 1, "last_layer": 3, "share_of_tokens": 0.9,
               "share_of_sequences": 1.0, "magnitude": 40.0}
    study = {
        "before": [feature], "after": [feature], "stream_difference": 2.25e-6,
        "outliers_without_massive": [{"dim": 5, "original": [1.0, 188.0], "zeroed": [1.0, -12.0]}],
        "massive_without_outliers": [{"dim": 7, "original": [0.0, 900.0], "zeroed": [0.0, 890.0]}],
        "direct": [{"dim": 5, "layer": 1, "mean": 188.0, "direct": -63.0}],
    }
    text = printed(show, fold_result() | {"outliers": study})
    assert "Outlier features: dim 5 before, the same after; the other tokens' streams" in text
    assert "With the massive activations set to zero: dim 5 188 to -12." in text
    assert "With the outlier features set to zero: dim 7 900 to 890." in text
    assert "k', v' write directly: -63 of dim 5's 188 after block 1." in text
    page = html_of(fold.sections(fold_result() | {"outliers": study}))
    assert rows(page, "without detours") == [["5", "1", "188", "-63"]]


def test_what_reads_the_folded_model_is_said():
    text = printed(show, fold_result())
    assert "read by jax_massact alone; elsewhere would be lost: variant=kv_bias." in text
