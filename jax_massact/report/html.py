"""A self-contained page made of sections: everything it needs is inside the file.

A report is a list of `Section`s; a new kind of report adds sections and changes nothing here.
Text goes through `escape`, data through `script_json`: neither can close a tag it stands in.
"""

import html
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Any, NamedTuple

from jax_massact.report.encode import to_json

# The browser itself refuses whatever the page would load from elsewhere. Plotly draws through
# inline scripts and styles and saves its pictures through data and blob addresses.
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
DIGITS = 5  # significant digits of the numbers in charts


class Section(NamedTuple):
    """One part of a page.

    Attributes:
      anchor: the id it is linked by, unique on the page.
      title: plain text.
      body: HTML.
    """

    anchor: str
    title: str
    body: str


def render(title: str, subtitle: str, sections: Sequence[Section], footer: str) -> str:
    """The whole page as text. `title`, `subtitle` and `footer` are plain text."""
    from plotly.offline import get_plotlyjs

    links = "".join(f'<a href="#{s.anchor}">{escape(s.title)}</a>' for s in sections)
    bodies = "\n".join(
        f'<section id="{s.anchor}"><h2>{escape(s.title)}</h2>\n{s.body}\n</section>'
        for s in sections
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<link rel="icon" href="data:,">
<style>
{_asset("page.css")}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
<p class="soft">{escape(subtitle)}</p>
<nav>{links}</nav>
</header>
<main>
<noscript><p class="warning">The charts need JavaScript; text and tables do not.</p></noscript>
{bodies}
</main>
<footer>{escape(footer)}</footer>
<div id="tip" role="tooltip"></div>
<script>
{_asset("page.js")}</script>
</body>
</html>
"""


def escape(text: object) -> str:
    """Text as HTML; NUL and its like, which HTML cannot hold, are spelled out."""
    return html.escape(_spell_controls(str(text)), quote=True)


def script_json(identifier: str, value: Any) -> str:
    """A JSON block that no string inside can end: `<` is written as its JSON escape."""
    text = to_json(value, digits=DIGITS).replace("<", "\\u003c")
    return f'<script type="application/json" id="{identifier}">{text}</script>'


def chart(identifier: str, figure: dict, *, height: int, label: str) -> str:
    """A plotly figure, `{"data": ..., "layout": ...}`, drawn when the page opens."""
    return _canvas(identifier, "plot", figure, height, label)


def surface(identifier: str, spec: dict, *, layers: int, layer: int, height: int) -> str:
    """An interactive |h| surface with a slider over layers, and a switch to log height."""
    return (
        f'<div class="controls"><label>Layer <input type="range" id="{identifier}-layer" min="0" '
        f'max="{layers - 1}" value="{layer}"></label>'
        f'<output id="{identifier}-shown" for="{identifier}-layer">{layer}</output>'
        f'<label><input type="checkbox" id="{identifier}-log"> logarithmic height</label></div>'
        + _canvas(identifier, "surface", spec, height, "|h| over tokens and dimensions")
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, text: Sequence[str] = (), caption=""
) -> str:
    """A table of cells that are HTML already; the columns named in `text` are set flush left."""
    kinds = [' class="text"' if name in text else "" for name in head]
    ths = "".join(f"<th{k}>{escape(name)}</th>" for k, name in zip(kinds, head, strict=True))
    cells = [[f"<td{k}>{cell}</td>" for k, cell in zip(kinds, row, strict=True)] for row in rows]
    trs = "\n".join(f"<tr>{''.join(row)}</tr>" for row in cells)
    title = f"<caption>{escape(caption)}</caption>" if caption else ""
    return (
        f'<div class="scroll"><table>{title}<thead><tr>{ths}</tr></thead>\n'
        f"<tbody>\n{trs}\n</tbody></table></div>"
    )


def pairs(items: Iterable[tuple[str, object]]) -> str:
    """Terms and what they are, both plain text."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items) + "</dl>"


def paragraphs(lines: Iterable[str], kind: str = "") -> str:
    attribute = f' class="{kind}"' if kind else ""
    return "".join(f"<p{attribute}>{escape(line)}</p>" for line in lines)


def _canvas(identifier: str, kind: str, spec: dict, height: int, label: str) -> str:
    return (
        f'<figure style="margin:0"><div class="chart" id="{identifier}" data-kind="{kind}" '
        f'style="height:{height}px" role="img" aria-label="{escape(label)}"></div></figure>'
        f"{script_json(f'{identifier}-data', spec)}"
    )


def _spell_controls(text: str) -> str:
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def _asset(name: str) -> str:
    return resources.files("jax_massact.report").joinpath(name).read_text(encoding="utf-8")
