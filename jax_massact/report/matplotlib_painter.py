"""Charts on paper: PNG for slides and PDF for papers, with matplotlib's objects and no pyplot."""

# ruff: noqa: E402
import contextlib
import io
import os
import sys
from collections.abc import Iterator
from typing import Any

# With an MPLBACKEND that names a module which this Python lacks, as one inherited from a notebook
# may, matplotlib cannot even be imported. No backend is needed here; elsewhere it stays in force.
backend = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
import matplotlib

if backend is not None:
    os.environ["MPLBACKEND"] = backend
    with contextlib.suppress(ValueError):
        matplotlib.rcParams["backend"] = backend

import numpy as np
from fontTools import subset
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from jax_massact.report import words
from jax_massact.report.chart import (
    BLUE,
    GREY,
    ORANGE,
    Axis,
    Bars,
    Chart,
    Heat,
    Note,
    Panel,
    Rule,
    Series,
    Surface,
    floats,
    tallest_spikes,
)

DASHED = (0, (4, 3))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # the one that comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "text.usetex": False,
    "text.parse_math": False,  # a dollar in a name is a dollar
    "pdf.fonttype": 42,  # TrueType: journals refuse the default, Type 3
    "savefig.dpi": 200,
    "figure.dpi": 100,
}


def draw(chart: Chart | Surface) -> dict[str, bytes]:
    """The content of its files by their kind, `png` and `pdf`; always the same bytes."""
    found = {}
    with matplotlib.rc_context(STYLE), _quick_fonts():
        figure = figure_of(chart)
        for kind, metadata in (("png", None), ("pdf", {"CreationDate": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, metadata=metadata)
            found[kind] = buffer.getvalue()
            figure.set_layout_engine("none")  # all is in its place
    return found


@contextlib.contextmanager
def _quick_fonts() -> Iterator[None]:
    """Leaves out of a PDF the tables of its font by which others would set text.

    Its glyphs have their places; to cut these tables takes longer than to draw a chart.
    """
    before = subset.Options._drop_tables_default
    subset.Options._drop_tables_default = [*before, "GDEF", "GPOS", "GSUB"]
    try:
        yield
    finally:
        subset.Options._drop_tables_default = before


def figure_of(chart: Chart | Surface) -> Figure:
    """The chart as a figure of matplotlib."""
    with matplotlib.rc_context(STYLE):
        return _surface(chart) if isinstance(chart, Surface) else _chart(chart)


def plain(text: str) -> str:
    """ASCII, so that every font has the glyphs."""
    return text.encode("ascii", errors="backslashreplace").decode()


def _chart(chart: Chart) -> Figure:
    figure = Figure(figsize=chart.size, layout="constrained")
    columns = min(chart.columns, len(chart.panels))
    grid = figure.subplots(-(-len(chart.panels) // columns), columns, squeeze=False)
    figure.suptitle(plain(chart.title), x=0.01, ha="left", fontsize=10)
    image = None
    for axes, panel in zip(grid.flat, chart.panels, strict=False):
        image = _panel(axes, panel) or image
    if image is not None:
        label = plain(chart.panels[0].of(Heat)[0].value)
        figure.colorbar(image, ax=list(grid.flat), shrink=0.7, label=label)
    _legend(figure, chart)
    return figure


def _panel(axes: Axes, panel: Panel) -> Any:
    """Draws a panel; returns the image of a heat map."""
    _axis(axes, "x", panel.x)
    _axis(axes, "y", panel.y)
    axes.set_title(plain(panel.title))
    image, log, drawn = None, panel.y.scale == "log", False
    lines = panel.of(Series)
    for number, item in enumerate(lines):
        finite = np.isfinite(floats(item.y, log=log))
        if item.shown and (finite.any() or not finite.size):  # without points: a legend entry
            drawn = True
            # Lines that coincide show one inside the other.
            width = 1.4 + (len(lines) - 1 - number) / max(len(lines) - 1, 1)
            _series(axes, item, width, log=log)
    for item in panel.items:
        if isinstance(item, Bars):
            _bars(axes, item)
        elif isinstance(item, Heat):
            image = _heat(axes, item)
        elif isinstance(item, Rule):
            _rule(axes, item)
        elif isinstance(item, Note):
            axes.annotate(plain(item.text), (item.x, 0.97), color=GREY, ha="center", va="top",
                          xycoords=("data", "axes fraction"), fontsize=8)
    if panel.empty and not drawn:
        axes.text(0.5, 0.6, plain(panel.empty), transform=axes.transAxes, ha="center", color=GREY)
    return image


def _axis(axes: Axes, name: str, axis: Axis) -> None:
    """Before anything is drawn: what a scale cannot show must not set the limits."""
    this = axes.xaxis if name == "x" else axes.yaxis
    linear = {"linthresh": axis.linear} if axis.scale == "symlog" else {}
    (axes.set_xscale if name == "x" else axes.set_yscale)(axis.scale, **linear)
    if axis.range:
        axes.set(**{f"{name}lim": axis.range})
    this.set_label_text(plain(axis.title))
    if axis.ticks:
        this.set_ticks(range(len(axis.ticks)), [plain(tick) for tick in axis.ticks])
        this.grid(visible=False)
    elif axis.whole:
        # As many as have room beside each other, at four digits.
        figure, grid = axes.get_figure(root=True), axes.get_gridspec()
        assert figure is not None and grid is not None
        ticks = max(4, int(1.9 * figure.get_figwidth() / grid.ncols))
        this.set_major_locator(MaxNLocator(integer=True, nbins=ticks, min_n_ticks=1))
    else:
        this.set_major_formatter(lambda value, _: _tick(value))
        this.set_minor_formatter(lambda value, _: "")
    if axis.zero:
        axes.axhline(0, color=GREY, linewidth=0.8)


def _tick(value: float) -> str:
    """`100,000`, `1e6`."""
    return words.number(value) if abs(value) < 1e6 else f"{value:.3g}".replace("e+0", "e")


def _series(axes: Axes, s: Series, width: float, *, log: bool) -> None:
    x, y = np.asarray(s.x, dtype=float), floats(s.y, log=log)
    is_mark = not s.dash and s.error is None
    style: dict[str, Any] = {
        "color": s.color, "linestyle": s.dash or "none", "linewidth": 1.6 if s.marker else width,
        "marker": s.marker or ("" if len(y) > 1 else "o"), "markersize": 7 if is_mark else 4,
        "markerfacecolor": "white" if s.hollow else s.color,
        "markeredgecolor": "white" if is_mark else s.color, "zorder": 3 if is_mark else 2,
        # Marks stand over the edge; an unclipped line without points has no extent to lay out.
        "clip_on": not (is_mark and len(y)),
        "label": plain(f"{s.name}{s.about}") if s.name else None,
    }
    if s.error is None:
        axes.plot(x, y, **style)
    else:
        axes.errorbar(x, y, s.error, capsize=3, **style)
    if s.low is not None and s.high is not None:
        axes.fill_between(x, floats(s.low, log=log), floats(s.high), color=s.color, alpha=0.15,
                          linewidth=0)


def _bars(axes: Axes, bars: Bars) -> None:
    low = axes.get_xlim()[0]
    rows = range(len(bars.names))
    values, intervals = np.array(bars.values), np.array(bars.intervals).T
    errors = np.abs(intervals - values)
    axes.barh(rows, values - low, left=low, height=0.62, color=list(bars.colors), xerr=errors,
              error_kw={"ecolor": GREY, "elinewidth": 1.2, "capsize": 3})
    axes.set_yticks(rows, [plain(name).replace(": ", ":\n") for name in bars.names])
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    for row, (_, high), text in zip(rows, bars.intervals, bars.texts, strict=True):
        axes.annotate(plain(text), (high, row), (6, 0), textcoords="offset points", va="center",
                      fontsize=8)


def _heat(axes: Axes, heat: Heat) -> Any:
    names = [words.ascii_label(name, 16) for name in heat.names]
    marked = [i for i, mark in enumerate(heat.marked) if mark]
    # Every marked place, and every second that does not touch one.
    others = [i for i in range(0, len(names), 2) if all(abs(i - m) > 1 for m in marked)]
    ticks = sorted({*marked, *others})
    image = axes.imshow(heat.values, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
    axes.grid(visible=False)
    axes.set_xticks(ticks, [names[t] for t in ticks], rotation=90, fontsize=6)
    axes.set_yticks(ticks, [names[t] for t in ticks], fontsize=6)
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        for tick, label in zip(ticks, labels, strict=True):
            if tick in marked:
                label.set(color=ORANGE, fontweight="bold")
    if marked:  # an empty unclipped line has no extent to lay out
        axes.plot(marked, [-0.9] * len(marked), linestyle="none", marker="v", color=ORANGE,
                  clip_on=False)
    axes.set(xlabel=plain(heat.column), ylabel=plain(heat.row))
    return image


def _rule(axes: Axes, rule: Rule) -> None:
    style = {"color": GREY, "linewidth": 0.9, "linestyle": DASHED, "zorder": 1,
             "label": plain(rule.text) or None}
    if rule.axis == "x":
        axes.axvline(rule.at, **style)
    elif (limits := axes.get_ylim())[0] < rule.at < limits[1]:  # else it would set the limits
        axes.axhline(rule.at, **style)


def _legend(figure: Figure, chart: Chart) -> None:
    """One entry for each name, of whichever panel."""
    entries = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    if not entries:
        return
    below = chart.legend == "below"
    columns = 4 if max(map(len, entries)) < 30 else 1
    figure.legend(
        list(entries.values()), list(entries),
        loc="outside lower center" if below else "outside right upper",
        ncols=min(len(entries), columns) if below else 1,
    )


def _surface(surface: Surface) -> Figure:
    """One ridge a row, after figure 1 of Sun et al. (2024), and a needle at every spike."""
    layer = surface.layer
    heights = np.nan_to_num(surface.heights[layer], nan=0.0, posinf=0.0)
    rows, bins = heights.shape
    columns = np.asarray(surface.first, dtype=float)
    figure = Figure(figsize=(6.4, 4.6))
    axes: Any = figure.add_axes((-0.04, -0.02, 1.0, 1.04), projection="3d", computed_zorder=False)
    ridges = np.zeros((rows, bins + 2, 3))  # the two more close each ridge on the floor
    ridges[:, :, 0] = np.concatenate([columns[:1], columns, columns[-1:]])
    ridges[:, :, 1] = np.arange(rows)[:, None]
    ridges[:, 1:-1, 2] = heights
    axes.add_collection3d(
        Poly3DCollection(
            list(ridges), facecolors="white", edgecolors=BLUE, linewidths=0.5, zorder=1
        )
    )
    top = float(heights.max(initial=0.0)) or 1.0
    here = [s for s in surface.spikes if s.first <= layer <= s.last]
    for spike in here:
        x, height = columns[spike.column], float(heights[spike.row, spike.column])
        axes.plot([x, x], [spike.row] * 2, [0, height], color=ORANGE, linewidth=1.8, zorder=2)
    for spike in tallest_spikes(surface, layer):
        height = float(heights[spike.row, spike.column])
        axes.text(columns[spike.column], spike.row, height + 0.02 * top, plain(spike.name),
                  color=ORANGE, ha="center", va="bottom", fontsize=8, fontweight="bold", zorder=3)
    ticks = _row_ticks(rows, sorted({s.row for s in here}))
    x, _, z = map(plain, surface.axes)
    axes.set(xlim=(0, max(surface.width - 1, 1)), ylim=(0, max(rows - 1, 1)), zlim=(0, 1.05 * top))
    axes.set_xlabel(x, labelpad=2)
    axes.set_zlabel(z, labelpad=11)
    # The zero is left out: it would lie on the label of the last row.
    axes.zaxis.set_major_formatter(lambda value, _: words.number(value) if value else "")
    axes.set_yticks(ticks, [words.ascii_label(surface.rows[t], 16) for t in ticks],
                    fontsize=7, ha="left", va="center", rotation=0)
    axes.tick_params(pad=0)
    axes.tick_params(axis="z", pad=5)
    axes.view_init(elev=22, azim=-58)
    axes.set_box_aspect((1.35, 1.0, 0.75))
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_facecolor("white")
        axis.pane.set_edgecolor("#d1d5db")
    figure.suptitle(plain(surface.title), x=0.02, y=0.97, ha="left", fontsize=10)
    return figure


def _row_ticks(rows: int, marked: list[int], spread: int = 6) -> list[int]:
    """Marked rows, then evenly spread ones wherever they do not touch those before."""
    gap = max(rows // 10, 1)
    ticks: list[int] = []
    for row in [*marked, *np.linspace(0, rows - 1, spread).astype(int).tolist()]:
        if all(abs(row - other) >= gap for other in ticks):
            ticks.append(row)
    return sorted(ticks)
