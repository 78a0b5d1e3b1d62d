"""Charts on the page as plotly's plain dictionaries, which `page.js` hands to plotly.js.

plotly.py's own figure classes validate each property, which takes longer than all the rest of the
report. Every text is escaped: plotly reads a little HTML in each.
"""

import base64
import html
import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from jax_massact.report import words
from jax_massact.report.chart import (
    GREY,
    MAX_NAMES,
    MIN_HEIGHT,
    ORANGE,
    Axis,
    Bars,
    Heat,
    Note,
    Numbers,
    Panel,
    Rule,
    Series,
    Surface,
    floats,
)

FONT = {"family": "system-ui, Segoe UI, Roboto, Liberation Sans, sans-serif", "size": 13}
# Neither paper nor ink has a colour here: the page is light or dark, and page.js gives the ink.
GRID, GRID_3D, CLEAR = "rgba(128,128,128,0.25)", "#9ca3af", "rgba(0,0,0,0)"
DASHES = {"-": "solid", "--": "dash", ":": "dot"}
SYMBOLS = {"o": "circle", ".": "circle", "s": "square", "D": "diamond", "^": "triangle-up",
           "X": "x", "": "circle"}
MAX_CODE = 65535
# Paper white to blue over the ordinary values, orange for what stands far out of them.
COLORSCALE = [[0, "#eaf3f9"], [0.45, "#9cc9e3"], [0.7, "#3d8fc4"], [0.85, "#e69f00"], [1, ORANGE]]


def figure_of(panel: Panel) -> dict[str, Any]:
    """`{"data": ..., "layout": ...}` of one panel."""
    traces: list[dict] = []
    layout = _layout(panel)
    for item in panel.items:
        match item:
            case Series():
                traces += _series(item, panel.y)
            case Bars():
                traces += _bars(item)
                layout["yaxis"] |= {"autorange": "reversed", "ticksuffix": "  ",
                                    "gridcolor": CLEAR}
            case Heat():
                traces.append(_heat(item, layout))
            case Rule():
                _rule(item, layout, panel)
            case Note():
                _annotate(layout, item.text, x=item.x, yref="paper", y=1, yanchor="top")
    if panel.empty and not any(np.isfinite(floats(s.y)).any() for s in panel.of(Series)):
        _annotate(layout, panel.empty, xref="paper", x=0.5, yref="paper", y=0.6)
    return {"data": traces, "layout": layout}


def text_of(text: str) -> str:
    """A text as plotly's HTML, with what cannot be printed spelled out."""
    return html.escape(words.printable(text), quote=False).replace("\n", "<br>")


def _layout(panel: Panel) -> dict[str, Any]:
    is_closest = any(s.group for s in panel.of(Series)) or not panel.x.whole
    title = {"text": text_of(panel.title), "font": {"size": 13}, "x": 0, "xanchor": "left"}
    return {
        "font": FONT, "template": "none", "paper_bgcolor": CLEAR, "plot_bgcolor": CLEAR,
        "margin": {"l": 72, "r": 16, "t": 36, "b": 56},
        "hovermode": "closest" if is_closest else "x unified",
        # Below the axis, where it covers neither titles nor buttons.
        "legend": {"orientation": "h", "x": 0, "y": -0.26, "yanchor": "top"},
        "modebar": {"bgcolor": CLEAR, "color": GREY, "activecolor": ORANGE},
        "xaxis": _axis(panel.x), "yaxis": _axis(panel.y) | {"automargin": True},
        "shapes": [], "annotations": [], "bargap": 0.35,
        **({"title": title} if panel.title else {}),
    }


def _axis(axis: Axis) -> dict[str, Any]:
    is_log = axis.scale == "log"
    found: dict[str, Any] = {
        "title": {"text": text_of(axis.title), "font": {"size": 13}, "standoff": 14},
        "gridcolor": GRID, "zeroline": axis.zero, "zerolinecolor": GREY,
        "rangemode": "tozero" if axis.zero else "normal", "tickformat": ",~g",
    }
    if is_log:
        found |= {"type": "log", "dtick": 1}
    if axis.scale == "symlog":
        marks = [0, *(sign * 10.0**power * axis.linear for power in range(8) for sign in (1, -1))]
        texts = list(map(words.number, marks))
        found |= {"tickvals": symlog(marks, axis.linear), "ticktext": texts}
    if axis.range:
        found["range"] = [math.log10(end) if is_log else end for end in axis.range]
    if axis.ticks:
        ticks = list(map(text_of, axis.ticks))
        found |= {"tickvals": list(range(len(ticks))), "ticktext": ticks}
    elif axis.whole and axis.range and axis.range[1] - axis.range[0] <= 16:
        found["dtick"] = 1
    elif axis.whole:
        found["nticks"] = 16
    return found


def symlog(values: Iterable[float | None], linear: float) -> list[float]:
    """Where values stand on an axis that is linear up to `linear` and logarithmic beyond."""
    y = floats(values) / linear
    far = np.sign(y) * (1 + np.log10(np.maximum(abs(y), 1)))
    return np.where(abs(y) <= 1, y, far).tolist()


def _series(s: Series, axis: Axis) -> list[dict]:
    """The line, and before it its band."""
    name, group = text_of(s.name), s.group or s.name

    def places(values: Numbers) -> list[float]:
        if axis.scale == "symlog":
            return symlog(values, axis.linear)
        return floats(values, log=axis.scale == "log").tolist()

    # The number itself is told, not its place on the axis.
    value = "%{customdata:,.5~g}" if axis.scale == "symlog" else "%{y:,.5~g}"
    marker = {"size": 11 if not s.dash else 5, "symbol": SYMBOLS[s.marker], "color": s.color}
    if not s.dash and s.error is None:
        marker["line"] = {"color": "white", "width": 1}
    if s.hollow:
        marker["symbol"] += "-open"
    shown: dict[str, Any] = {"legendgroup": text_of(group)} if group else {}
    if not s.shown:
        shown["visible"] = "legendonly"
    line = {
        "type": "scatter", "name": name, "showlegend": bool(s.name),
        "x": list(s.x), "y": places(s.y),
        "mode": "+".join(["lines"] * bool(s.dash) + ["markers"] * bool(s.marker or not s.dash)),
        "line": {"color": s.color, "width": 2, "dash": DASHES.get(s.dash, "solid")},
        "marker": marker, "hovertemplate": value,
    } | shown
    if axis.scale == "symlog":
        line["customdata"] = floats(s.y).tolist()
    if s.hover is not None:
        line |= {"text": list(map(text_of, s.hover)), "hovertemplate": f"{value} %{{text}}"}
    if s.error is not None:
        line["error_y"] = {"array": list(s.error), "color": s.color}
    if s.low is None or s.high is None:
        return [line]
    edge = {"type": "scatter", "x": list(s.x), "mode": "lines", "line": {"width": 0},
            "showlegend": False, "hoverinfo": "skip"} | shown
    red, green, blue = (int(s.color[i : i + 2], 16) for i in (1, 3, 5))
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.15)"}
    return [
        edge | {"y": places(s.low)}, edge | fill | {"y": places(s.high)}, line,
    ]


def _bars(bars: Bars) -> list[dict]:
    """The bars, and their texts behind the ends of their intervals."""
    values, (low, high) = np.array(bars.values), np.array(bars.intervals).T
    y, shared = list(map(text_of, bars.names)), {"showlegend": False, "cliponaxis": False}
    interval = {"type": "data", "symmetric": False, "array": (high - values).tolist(),
                "arrayminus": (values - low).tolist(), "color": GREY, "thickness": 1.5}
    return [
        {"type": "bar", "orientation": "h", "y": y, "x": values.tolist(), "error_x": interval,
         "marker": {"color": list(bars.colors)}, "hoverinfo": "skip"} | shared,
        {"type": "scatter", "mode": "text", "y": y, "x": high.tolist(),
         "text": [f" {text_of(text)}" for text in bars.texts], "textposition": "middle right",
         "hoverinfo": "skip"} | shared,
    ]


def _heat(heat: Heat, layout: dict[str, Any]) -> dict:
    names = [
        text_of(f"{'* ' if mark else ''}{i} {words.token_label(name, 14)}")
        for i, (name, mark) in enumerate(zip(heat.names, heat.marked, strict=True))
    ]
    small = {"automargin": True, "tickfont": {"size": 9}, "showgrid": False, "zeroline": False,
             "constrain": "domain", "dtick": 1}
    for axis, title in (("xaxis", heat.column), ("yaxis", heat.row)):
        layout[axis] = small | {"title": {"text": text_of(title), "font": {"size": 11}}}
    layout["xaxis"]["tickangle"] = 90
    layout["yaxis"] |= {"autorange": "reversed", "scaleanchor": "x"}
    layout |= {"margin": {"l": 10, "r": 10, "t": 44, "b": 10}}
    row, column = text_of(heat.row), text_of(heat.column)
    return {
        "type": "heatmap", "z": heat.values.tolist(), "x": names, "y": names, "zmin": 0, "zmax": 1,
        "colorscale": [[0, "#f7fbff"], [0.5, "#6baed6"], [1, "#08306b"]],
        "colorbar": {"thickness": 12, "len": 0.7, "tickfont": {"size": 10}},
        "hovertemplate": f"{row} %{{y}}<br>{column} %{{x}}<br>%{{z:.3f}}<extra></extra>",
    }


def _rule(rule: Rule, layout: dict[str, Any], panel: Panel) -> None:
    across, along = ("y", "x") if rule.axis == "y" else ("x", "y")
    is_log = getattr(panel, across).scale == "log"
    if is_log and not rule.at > 0:  # nothing to draw on a logarithmic axis
        return
    layout["shapes"].append({
        "type": "line", f"{along}ref": "paper", f"{along}0": 0, f"{along}1": 1,
        f"{across}0": rule.at, f"{across}1": rule.at,
        "line": {"color": GREY, "width": 1, "dash": "dash"},
    })
    at = math.log10(rule.at) if is_log else rule.at
    where = {f"{along}ref": "paper", along: int(along == "x"), across: at}
    if rule.text:
        anchor = "right" if along == "x" else "left"
        _annotate(layout, rule.text, xanchor=anchor, yanchor="bottom", **where)


def _annotate(layout: dict[str, Any], text: str, **where: Any) -> None:
    layout["annotations"].append({
        "text": text_of(text), "showarrow": False, "font": {"size": 11, "color": GREY},
        **where,
    })


def surface_of(surface: Surface) -> dict[str, Any]:
    """What page.js needs to draw any layer: compact codes, labels and the scene.

    The heights travel as uint16 on a logarithmic scale, low + code * step = log height: a fifth
    of the size of their decimals, and exact to 0.02% over ten orders of magnitude.
    """
    codes, low, step = encode_heights(surface.heights)
    starts = [int(d) for d in surface.first]
    ends = [*starts[1:], surface.width]
    rows = len(surface.rows)
    ticks = sorted({int(t) for t in np.linspace(0, rows - 1, min(rows, 10))})
    column, one = surface.axes[0], surface.column
    x, y, z = ({"title": {"text": text_of(title), "font": {"size": 13}}, "showbackground": False,
                "gridcolor": GRID_3D, "zerolinecolor": GRID_3D, "tickfont": {"size": 11},
                "showspikes": False} for title in (column, *surface.axes[1:]))
    return {
        "codes": base64.b64encode(codes.astype("<u2").tobytes()).decode("ascii"),
        "shape": list(codes.shape),
        "low": low,
        "step": step,
        "max_code": MAX_CODE,
        "rows": [text_of(f"{t}  {words.token_label(row)}") for t, row in enumerate(surface.rows)],
        "first": starts,
        "bins": [
            text_of(f"{one} {a}" if b - a <= 1 else f"{one}s {a} to {b - 1}")
            for a, b in zip(starts, ends, strict=True)
        ],
        "height": text_of(surface.axes[2]),
        "marks": [{"row": s.row, "column": s.column, "label": text_of(s.name), "first": s.first,
                   "last": s.last} for s in surface.spikes],
        "max_names": MAX_NAMES,
        "min_height": MIN_HEIGHT,
        "colorscale": COLORSCALE,
        "layout": {
            "font": FONT, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "showlegend": False,
            "paper_bgcolor": CLEAR,
            "uirevision": "keep",  # the view stays as it was turned when the layer changes
            "scene": {
                "xaxis": x | {"range": [0, surface.width]},
                "yaxis": y | {"tickvals": ticks,
                              "ticktext": [_webgl(surface.rows[t]) for t in ticks]},
                "zaxis": z | {"tickformat": ",~g", "rangemode": "tozero"},
                "aspectmode": "manual", "aspectratio": {"x": 1.5, "y": 1.1, "z": 0.8},
                "camera": {"eye": {"x": 1.2, "y": -1.75, "z": 0.8},
                           "center": {"x": 0, "y": 0, "z": -0.2}},
            },
        },
    }


def encode_heights(heights: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Codes in 1..65535 on a logarithmic scale; 0 for what is not positive and finite.

    Args:
      heights: float array of any shape.

    Returns:
      codes (uint16, the same shape), low and step: height = exp(low + code * step).
    """
    valid = np.isfinite(heights) & (heights > 0)
    logs = np.log(heights, out=np.zeros(heights.shape), where=valid)
    lowest = float(logs[valid].min()) if valid.any() else 0.0
    highest = float(logs[valid].max()) if valid.any() else 0.0
    step = max(highest - lowest, 1e-6) / (MAX_CODE - 1)
    codes = np.where(valid, np.rint((logs - lowest) / step) + 1, 0).astype(np.uint16)
    return codes, lowest - step, step


def _webgl(text: str) -> str:
    """A label where WebGL draws the text: tags are read there, but no entities."""
    return words.token_label(text, 14).replace("<", "‹").replace(">", "›")
