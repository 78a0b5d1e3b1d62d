import io

from rich.console import Console

from jax_massact.report.terminal import Sheet


def printed(fill, encoding="utf-8", width=80) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    sheet = Sheet(Console(file=file, width=width))
    fill(sheet)
    sheet.close(["the end [/]"])
    file.seek(0)
    return file.read()


def test_nothing_is_markup_anywhere():
    name = "[q4] [/] [red]x :smile:"

    def fill(sheet: Sheet) -> None:
        sheet.line(name)
        sheet.headed("Head", name)
        sheet.title(name)
        sheet.table((name, "b"), [[name, "1"]], left=(name,))

    text = printed(fill, width=200)
    assert text.count(name) == 5 and text.rstrip().endswith("the end [/]")


def test_what_cannot_be_printed_is_spelled_out():
    text = printed(lambda sheet: sheet.line("\ud800 \x1b[31m 中"))
    assert "\\ud800 \\x1b[31m 中" in text
    assert "\\u4e2d" in printed(lambda sheet: sheet.line("中"), encoding="ascii")


def test_long_tables_are_cut_and_say_so():
    rows = [[str(i)] for i in range(13)]
    text = printed(lambda sheet: sheet.table(("a",), rows, most=10))
    assert "\n9" in text and "\n10" not in text and "and 3 more, in the JSON file" in text
    assert "more" not in printed(lambda sheet: sheet.table(("a",), rows))


def test_things_that_do_not_fit_beside_each_other_are_continued_below():
    names, numbers = ([f"{word} {i}" for i in range(7)] for word in ("thing", "0.0000 ± "))
    rows = [["a number", *numbers], ["another", *"abcdefg"]]
    text = printed(lambda sheet: sheet.beside(("", *names), rows), width=60)
    assert max(map(len, text.splitlines())) <= 60
    assert all(text.count(name) == 1 for name in (*names, *numbers))
    assert text.count("a number") == text.count("another") == 3


def test_wide_characters_take_two_columns_beside_each_other():
    names = [f"注意力机制与激活值{i}" for i in range(4)]
    rows = [["a number", *(f"{i}.00 ± 0.5" for i in range(4))]]
    lines = printed(lambda sheet: sheet.beside(("", *names), rows), width=60).splitlines()
    assert all(sum(name in line for line in lines) == 1 for name in names)
    assert sum("a number" in line for line in lines) == 4 // 2
