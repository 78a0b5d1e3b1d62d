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
        "Massive (strict) before: dim 7; nothing is massive (strict) any more.",
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
