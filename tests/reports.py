"""The reports of all studies in one table, and how tests read them."""

import io
import json
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import causal_examples as causal
import matplotlib
import report_examples as probe_examples
from page_reader import read_page
from rich.console import Console

from jax_massact.report import matplotlib_painter, page
from jax_massact.studies.compare import report as compare
from jax_massact.studies.compare.run import Comparison
from jax_massact.studies.explain import report as explain
from jax_massact.studies.explain.result import ExplainResult
from jax_massact.studies.fold import report as fold
from jax_massact.studies.fold.result import FoldResult
from jax_massact.studies.intervene import report as intervene
from jax_massact.studies.interventions_result import InterveneResult
from jax_massact.studies.probe import report as probe
from jax_massact.studies.probe.result import ProbeResult
from jax_massact.studies.quantize import report as quantize
from jax_massact.studies.quantize.result import QuantizeResult


class Study(NamedTuple):
    """One study's report.

    Attributes:
      make: the result of a kind, and the pictures that its page and charts take.
    """

    schema: type
    report: ModuleType
    make: Callable[[str], tuple]

    def charts(self, kind: str) -> list:
        return self.report.charts(*self.make(kind)) if hasattr(self.report, "charts") else []

    def text(self, kind: str, **console: Any) -> str:
        return written(self.report.show, self.make(kind)[0], **console)


def _probe(kind: str) -> tuple:
    result = probe_examples.BY_KIND[kind]()
    return result, probe_examples.activation_map(result)


STUDIES = {
    "probe": Study(ProbeResult, probe, _probe),
    "intervene": Study(InterveneResult, intervene, lambda kind: (causal.intervene_result(kind),)),
    "explain": Study(ExplainResult, explain, causal.explain_result),
    "fold": Study(FoldResult, fold, lambda kind: (causal.fold_result(kind),)),
    "quantize": Study(QuantizeResult, quantize, lambda kind: (causal.quantize_result(kind),)),
    "compare": Study(Comparison, compare, lambda kind: (causal.compare_result(kind),)),
}


def written(show, result, encoding="utf-8", width=80, **console) -> str:
    """What is printed."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    show(result, Console(file=file, width=width, **console))
    file.seek(0)
    return file.read()


def printed(show, result, **console) -> str:
    """The same on one line."""
    return " ".join(written(show, result, **console).split())


def html_of(sections) -> str:
    """The page of these sections, without scripts."""
    text = page.render("title", "subtitle", sections, "footer")
    return text[text.index("<main>") : text.index("</main>")]


def rows(html: str, caption: str) -> list[list[str]]:
    """The cells of the table with this caption, or after this text."""
    body = html[html.index(caption) :].split("<tbody>")[1].split("</tbody>")[0]
    return [
        [read_page(cell.split("</td>")[0].split(">", 1)[1]).text for cell in row.split("<td")[1:]]
        for row in body.split("<tr>")[1:]
    ]


def chart_of(html: str, name: str) -> dict:
    """The plotly figure of a chart, or of one of its panels."""
    return json.loads(read_page(html).blocks[f"chart-{name}-data"])


def drawn(chart):
    """The chart as matplotlib draws it."""
    with matplotlib.rc_context(matplotlib_painter.STYLE):
        figure = matplotlib_painter.figure_of(chart)
        figure.draw_without_rendering()
    return figure


def texts(figure) -> str:
    """Every text of a figure of matplotlib."""
    found = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return " | ".join(text.get_text() for text in found)
