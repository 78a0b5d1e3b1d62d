"""The recorded results, tables and figures in the site's pages are those of today."""

import importlib.util
import re
from pathlib import Path

import pytest
from PIL import Image

PATH = Path(__file__).parents[2] / "docs" / "pages.py"
SPEC = importlib.util.spec_from_file_location("pages", PATH)
assert SPEC is not None and SPEC.loader is not None
pages = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(pages)
PAGES = pages.pages()
FIGURES = sorted({found for text in PAGES.values() for found in pages.FIGURE.findall(text)})
AGAIN = "run `python docs/pages.py`"


def unwrapped(text: str) -> str:
    """Each usage in one line: Python 3.13 breaks it in other places than 3.11 does."""
    return re.sub(r"^usage: .*?\n\n", lambda usage: " ".join(usage[0].split()), text,
                  flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_parts_of_a_page_are_those_of_today(page):
    text = PAGES[page]
    assert text.count("\n<!--") == 2 * len(pages.PART.findall(text)), "a part has no end"
    assert unwrapped(pages.written(page, text)) == unwrapped(text), AGAIN


def test_what_is_printed_does_not_depend_on_the_terminal(monkeypatch):
    narrow = pages.usage("plan"), pages.output("probe")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert (pages.usage("plan"), pages.output("probe")) == narrow


@pytest.mark.parametrize("study, name", FIGURES)
def test_a_figure_is_that_of_the_recorded_result(study, name):
    with Image.open(pages.drawn(study, name)) as image:
        assert image.info["Source"] == pages.digest(study), AGAIN


def test_every_figure_is_shown():
    shown = {pages.drawn(*figure).name for figure in FIGURES} | {"smollm2-135m.png"}
    assert shown == {path.name for path in (pages.DOCS / "figures").iterdir()}
