import io

import pytest
import report_examples as examples
from rich.console import Console

from jax_massact.report.terminal import print_probe


class Terminal(io.StringIO):
    """A text stream that states an encoding, as a real one does."""

    def __init__(self, encoding: str = "utf-8") -> None:
        super().__init__()
        self._encoding = encoding

    @property
    def encoding(self) -> str:
        return self._encoding


def printed(result, width=80, encoding="utf-8", **console) -> str:
    stream = Terminal(encoding)
    print_probe(result, Console(file=stream, width=width, **console))
    return stream.getvalue()


def one_line(text: str) -> str:
    return " ".join(text.split())


def test_everything_a_researcher_asks_first():
    text = printed(examples.strict_found())
    flat = one_line(text)
    assert "smollm2-135m: llama, 134.5M parameters, 30 layers, width 576" in flat
    assert "each beginning with BOS '<|im_start|>' (bos=auto)" in flat
    assert "Dimension 507 is massive (strict) from layer 11 to 28, written by" in flat
    row = next(line for line in text.splitlines() if line.strip().startswith("507"))
    for cell in ("11-28", "24,926 ± 498.5", "15,107", "100%", "MLP 11", "MLP 29"):
        assert cell in row
    layer = next(line for line in text.splitlines() if line.split()[:1] == ["12"])
    assert layer.split() == ["12", "24,926", "1,840", "24", "1.7", "68,599", "4", "2", "2", "2"]


def test_dimensions_are_ordered_by_size():
    text = printed(examples.strict_found())
    table = text[text.index("Massive activations (strict)") :]
    assert table.index("\n507") < table.index("\n308")


def test_relaxed_and_outliers_have_tables_of_their_own():
    text = printed(examples.relaxed_only())
    assert "Massive activations (strict)" not in text
    assert "Relaxed only (not massive by the strict definition)" in text
    assert "Outlier features (large at most tokens: not massive activations)" in text
    assert "embedding" in text


def test_long_tables_are_cut_and_say_so():
    records = [examples.massive(d, 1e4 - d, 0, 2, 4, token=" a b") for d in range(300, 313)]
    text = printed(examples.result(records, depth=4))
    assert "\n309 " in text and "\n310 " not in text
    assert "and 3 more, in the JSON file" in text
    assert "'␣a␣b'" in text
    assert "in the JSON file" not in printed(examples.strict_found())


def test_none_found_is_a_result():
    text = printed(examples.none_found())
    assert "No massive activations found, strict or relaxed." in text
    assert "Relaxed only" not in text and "Outlier" not in text


def test_warns_of_nonfinite_activations():
    assert "cannot be trusted" in one_line(printed(examples.broken_numbers()))


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_fits_80_columns_and_loses_nothing(name):
    text = printed(examples.EXAMPLES[name]())
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    assert "…" not in text


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_a_log_gets_no_control_codes(name):
    text = printed(examples.EXAMPLES[name]())
    assert all(c.isprintable() or c == "\n" for c in text)
    assert "\x1b[" in printed(examples.strict_found(), force_terminal=True, color_system="standard")


@pytest.mark.parametrize("name", examples.EXAMPLES)
def test_a_terminal_without_unicode_gets_ascii(name):
    text = printed(examples.EXAMPLES[name](), encoding="ascii")
    assert text.isascii()


def test_markup_in_names_is_text():
    text = one_line(printed(examples.nasty(), width=120))
    assert "<b>$x$</b></title>[red]Ġ" in text and "onerror=alert(1)>[/]" in text
    assert "'[bold]中'" in text


def test_one_sequence_has_no_deviation():
    assert "±" not in printed(examples.smallest())
