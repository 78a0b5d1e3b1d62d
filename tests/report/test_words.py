import math

import pytest
import report_examples as examples

from jax_massact.report import words


@pytest.mark.parametrize(
    ("value", "text"),
    [(24926.4, "24,926"), (-1840.5, "-1,840"), (1.6543, "1.654"), (0.0, "0"), (3.2e-5, "3.20e-05"),
     (2.5e8, "2.50e+08"), (math.nan, "nan"), (-math.inf, "-inf"), (None, "-"), (7, "7")],
)
def test_number(value, text):
    assert words.number(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(1.0, "100%"), (0.0, "0%"), (0.004, "<1%"), (0.996, ">99%"), (0.75, "75%"), (math.nan, "nan")],
)
def test_percent_is_exact_at_both_ends(share, text):
    assert words.percent(share) == text


def test_sentence_says_what_where_who_and_until_when():
    record = examples.massive(507, 24926.0, 11, 28, 30)
    record["kinds"] = {"first": 0.99, "delimiter": 0.01, "other": 0.0}
    assert words.sentence(record) == (
        "Dimension 507 is massive (strict) from layer 11 to 28, written by the MLP of block 11 "
        "at the first token, removed by the MLP of block 29."
    )


def test_sentence_of_a_lasting_record_in_some_sequences():
    record = examples.massive(3, -800.0, 5, 5, 6, removed=False)
    record |= {"share_of_sequences": 0.5, "kinds": {"first": 0.3, "delimiter": 0.7, "other": 0.0}}
    assert words.sentence(record) == (
        "Dimension 3 is massive (strict) at layer 5 alone, written by the MLP of block 5 at "
        "delimiter tokens (70%) and the first token (30%), still there after the last block, "
        "in 50% of the sequences."
    )


def test_a_record_that_fades_is_neither_removed_nor_still_there():
    text = words.sentence(examples.massive(3, 800.0, 1, 4, 9, removed=False))
    assert text.endswith("removed by no single sublayer.")


def test_definition_states_every_threshold():
    definition = examples.none_found()["definition"]
    strict, relaxed, outlier = words.definition(definition)
    assert strict == (
        "strict (massive): |a| > 100 and |a| >= 1,000 x median, "
        "in more than 50% of the sequences at 2 layers or more"
    )
    assert relaxed.startswith("relaxed: |a| > 20 and |a| >= 100 x median")
    assert outlier.endswith("|a| >= 6 x median, at more than 25% of the tokens")
    assert words.definition(definition | {"min_layers": 1})[0].endswith("at 1 layer")


def test_nan_values_rank_last():
    records = [examples.massive(d, v, 0, 1, 4) for d, v in ((1, math.nan), (2, 5.0), (3, 9.0))]
    assert [r["dim"] for r in words.by_size(records, strict=True)] == [3, 2, 1]


def test_data_line_states_the_bos_choice():
    data = examples.strict_found()["data"]
    assert words.data_line(data).endswith("each beginning with BOS '<|im_start|>' (bos=auto)")
    data |= {"bos": False, "bos_setting": "false"}
    assert words.data_line(data).endswith("without BOS (bos=false)")


@pytest.mark.parametrize("token", examples.NASTY)
def test_labels_are_one_printable_line(token):
    assert words.token_label(token).isprintable()
    assert words.ascii_label(token).isascii() and words.ascii_label(token).isprintable()
    assert len(words.ascii_label(token * 9, 16)) <= 16


def test_printable_spells_out_what_no_terminal_and_no_page_can_hold():
    assert words.printable("a\x00\x1b[31m\ud800中\n\t") == "a\\x00\\x1b[31m\\ud800中\n\t"
    assert words.printable("中±", ascii_only=True) == "\\u4e2d\\xb1"


def test_batches_of_the_same_rows_have_no_spread():
    assert words.over_batches([2.5, 2.75], 0.177) == " +- 0.18 over batches"
    assert words.over_batches([2.5], None) == ""
    assert words.over_batches([2.5] * 20, 0.0) == " (20 batches of the same rows: no spread)"
