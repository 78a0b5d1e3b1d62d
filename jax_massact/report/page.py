"""A self-contained page: sections of parts, drawn by the template `page.html`.

A report is a list of `Section`s of the parts below; a new kind of report changes nothing here.
Every text is escaped by the template, every chart and its data by `script_json`: neither can close
a tag it stands in.
"""

import functools
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2
from markupsafe import Markup

from jax_massact.report import plotly_painter, words
from jax_massact.report.chart import Chart, Surface
from jax_massact.report.encode import to_json
from jax_massact.report.words import Findings

# The browser itself refuses whatever the page would load from elsewhere. Plotly draws through
# inline scripts and styles and saves its pictures through data and blob addresses.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
DIGITS = 5  # significant digits of the numbers in charts


class Piece(NamedTuple):
    """A part of a cell that is not broken: `code`, as a token is set, then text."""

    code: str
    text: str = ""


Cell = str | Sequence[Piece]


class Lines(NamedTuple):
    """Paragraphs; `kind` is a class of the style sheet, such as `soft`."""

    lines: Iterable[str]
    kind: str = ""


class Facts(NamedTuple):
    """Terms and what they are."""

    items: Iterable[tuple[str, object]]


class Table(NamedTuple):
    """A table; the columns named in `text` are set flush left and may be broken."""

    head: Sequence[str]
    rows: Iterable[Sequence[Cell]]
    text: Sequence[str] = ()
    caption: str = ""


class Token(NamedTuple):
    """A token of a text; `tip` is what pointing at it tells, `mark` how it stands out if at all."""

    text: str
    tip: str
    mark: str = ""


class Tokens(NamedTuple):
    """A text, token by token, with its whitespace made visible."""

    tokens: Sequence[Token]


class Picture(NamedTuple):
    """A picture of the page itself: a data address, what stands below it, and what it shows."""

    source: str
    caption: str
    about: str


class Pictures(NamedTuple):
    """Pictures beside each other, each `width` pixels wide; `sharp`: their pixels stay squares."""

    items: Sequence[Picture]
    width: int
    sharp: bool = False


Part = Findings | Lines | Facts | Table | Tokens | Pictures | Chart | Surface


class Section(NamedTuple):
    """One part of a page; `anchor` is the id it is linked by, unique on the page."""

    anchor: str
    title: str
    parts: Sequence[Part]


def render(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page as text."""
    from plotly.offline import get_plotlyjs

    return _template().render(
        title=title, subtitle=subtitle, sections=sections, footer=footer, policy=POLICY,
        plotly=Markup(get_plotlyjs()), style=Markup(_asset("page.css")),
        script=Markup(_asset("page.js")),
    )


def script_json(identifier: str, value: Any) -> Markup:
    """A JSON block that no string inside can end: `<` is written as its JSON escape."""
    text = to_json(value, digits=DIGITS).replace("<", "\\u003c")
    return Markup('<script type="application/json" id="{}">{}</script>').format(
        identifier, Markup(text)
    )


@functools.cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        # HTML cannot hold NUL and its like: they are spelled out.
        finalize=lambda x: words.printable(x) if type(x) is str else x,
    )
    environment.globals |= {
        "kind_of": lambda part: type(part).__name__, "script_json": script_json,
        "panel": plotly_painter.figure_of, "surface": plotly_painter.surface_of,
        "visible": _visible,
    }
    return environment.from_string(_asset("page.html"))


# How whitespace and its like are shown in a text: a pale sign, then the character itself.
VISIBLE = {"\n": "↵\n", "\t": "→\t", " ": "·", "\r": "␍"}


def _visible(text: str) -> list[tuple[str, str]]:
    """Characters as (pale sign, text), without a last line break."""
    pairs = []
    for character in text:
        sign = VISIBLE.get(character) or ("" if character.isprintable() else character)
        pairs.append((sign[:1], sign[1:] if sign else character))
    if text.endswith("\n"):
        pairs[-1] = (VISIBLE["\n"][0], "")
    return pairs or [("∅", "")]


def _asset(name: str) -> str:
    return resources.files("jax_massact.report").joinpath(name).read_text(encoding="utf-8")
