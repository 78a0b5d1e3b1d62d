"""The charts of the page as plotly's plain dictionaries.

plotly.py's own figure classes validate each property, which takes longer than all the rest of the
report; plotly.js reads the same dictionaries.
"""

import base64
import html
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_massact.report import words
from jax_massact.report.picture import (
    BLUE,
    GREY,
    LAYER_AXIS,
    MAX_NAMES,
    MIN_HEIGHT,
    ORANGE,
    PALETTE,
    TOPS,
    map_bin,
    spikes,
)
from jax_massact.results import ActivationMap, MassiveRecord
from jax_massact.studies.probe.result import ProbeResult

FONT = {"family": "system-ui, Segoe UI, Roboto, Liberation Sans, sans-serif", "size": 13}
MAX_CODE = 65535
MAX_TRAJECTORIES = 24  # of these, as many as there are colours are shown at first
# Paper white to blue over the ordinary values, orange for what stands far out of them.
COLORSCALE = [[0, "#eaf3f9"], [0.45, "#9cc9e3"], [0.7, "#3d8fc4"], [0.85, "#e69f00"], [1, ORANGE]]


def top_magnitudes(result: ProbeResult) -> dict:
    """The three largest magnitudes and the median of each layer, on a logarithmic axis."""
    layers = result["layers"]
    index = [layer["layer"] for layer in layers]
    traces = []
    for rank, color in enumerate(TOPS):
        entries = [layer["top"][rank] if rank < len(layer["top"]) else None for layer in layers]
        if not any(entries):
            continue
        traces.append(
            line(f"top-{rank + 1}", index, [e and e["magnitude"] for e in entries], color)
            | {
                "text": [
                    e and f"{_label(e['token'])} position {e['position']}, dim {e['dim']}"
                    for e in entries
                ],
                "hovertemplate": "%{y:.5~g} %{text}",
            }
        )
    traces.append(
        line("median", index, [layer["median"] for layer in layers], BLUE)
        | {"hovertemplate": "%{y:.4~g}"}
    )
    layout = layer_layout("magnitude (mean over sequences)", index, log=True)
    bound = result["definition"]["strict"]["magnitude"]
    if not bound > 0:  # nothing to draw on a logarithmic axis
        return {"data": traces, "layout": layout}
    layout["shapes"] = [
        {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": bound, "y1": bound,
         "line": {"color": GREY, "width": 1, "dash": "dash"}},
    ]
    layout["annotations"] = [
        {"xref": "paper", "x": 0, "y": math.log10(bound), "text": f"strict: > {bound:g}",
         "xanchor": "left", "yanchor": "bottom", "showarrow": False,
         "font": {"size": 11, "color": GREY}, "bgcolor": "rgba(255,255,255,0.8)"},
    ]
    return {"data": traces, "layout": layout}


def writers(result: ProbeResult) -> dict:
    """The signed value of each massive dimension by layer, its writer and its remover marked."""
    traces = []
    for number, record in enumerate(words.strongest(result)[:MAX_TRAJECTORIES]):
        traces += _trajectory(record, PALETTE[number % len(PALETTE)], shown=number < len(PALETTE))
    index = [layer["layer"] for layer in result["layers"]]
    layout = layer_layout("value (mean over sequences)", index)
    layout["hovermode"] = "closest"
    layout["yaxis"] |= {"zeroline": True, "zerolinecolor": GREY, "tickformat": ",~g",
                        "rangemode": "tozero"}
    return {"data": traces, "layout": layout}


def surface(result: ProbeResult, activation_map: ActivationMap) -> dict:
    """What page.js needs to draw |h| of any layer: compact codes, labels and the scene.

    The magnitudes travel as uint16 on a logarithmic scale, low + code * step = log |h|: a fifth
    of the size of their decimals, and exact to 0.02% over ten orders of magnitude.
    """
    codes, low, step = encode_magnitudes(activation_map.magnitude)
    labels = [f"{t}  {_label(token)}" for t, token in enumerate(activation_map.tokens)]
    starts = [int(d) for d in activation_map.first_dim]
    width = result["model"]["width"]
    ends = [*starts[1:], width]
    ticks = _ticks(len(labels))
    marks = _marks(result, activation_map)
    return {
        "codes": base64.b64encode(codes.astype("<u2").tobytes()).decode("ascii"),
        "shape": list(codes.shape),
        "low": low,
        "step": step,
        "max_code": MAX_CODE,
        "tokens": labels,
        "first_dim": starts,
        "bins": [
            f"dim {a}" if b - a <= 1 else f"dims {a} to {b - 1}"
            for a, b in zip(starts, ends, strict=True)
        ],
        "marks": marks,
        "max_names": MAX_NAMES,
        "min_height": MIN_HEIGHT,
        "colorscale": COLORSCALE,
        "layout": {
            "font": FONT, "margin": {"l": 0, "r": 0, "t": 0, "b": 0}, "showlegend": False,
            "uirevision": "keep",  # the view stays as it was turned when the layer changes
            "scene": {
                "xaxis": _axis_3d("dimension") | {"range": [0, width]},
                "yaxis": _axis_3d("token") | {
                    "tickvals": ticks,
                    "ticktext": [_label_3d(activation_map.tokens[t]) for t in ticks],
                },
                "zaxis": _axis_3d("|h|") | {"tickformat": ",~g", "rangemode": "tozero"},
                "aspectmode": "manual", "aspectratio": {"x": 1.5, "y": 1.1, "z": 0.8},
                "camera": {"eye": {"x": 1.2, "y": -1.75, "z": 0.8},
                           "center": {"x": 0, "y": 0, "z": -0.2}},
            },
        },
    }


def encode_magnitudes(magnitude: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Codes in 1..65535 on a logarithmic scale; 0 for what is not positive and finite.

    Args:
      magnitude: float array of any shape.

    Returns:
      codes (uint16, the same shape), low and step: |h| = exp(low + code * step).
    """
    valid = np.isfinite(magnitude) & (magnitude > 0)
    logs = np.log(magnitude, out=np.zeros(magnitude.shape), where=valid)
    lowest = float(logs[valid].min()) if valid.any() else 0.0
    highest = float(logs[valid].max()) if valid.any() else 0.0
    step = max(highest - lowest, 1e-6) / (MAX_CODE - 1)
    codes = np.where(valid, np.rint((logs - lowest) / step) + 1, 0).astype(np.uint16)
    return codes, lowest - step, step


def _label(token: str, limit: int = 24) -> str:
    """A token for plotly, which reads a little HTML in every text."""
    return html.escape(words.token_label(token, limit), quote=False)


def _label_3d(token: str) -> str:
    """As `_label`, where WebGL draws the text: tags are read there, but no entities."""
    return words.token_label(token, 14).replace("<", "‹").replace(">", "›")


def _ticks(tokens: int, most: int = 10) -> list[int]:
    return sorted({int(t) for t in np.linspace(0, tokens - 1, min(tokens, most))})


def _marks(result: ProbeResult, activation_map: ActivationMap) -> list[dict]:
    """Every spike with its name, in the order in which dimensions take a bin."""
    return [
        {"row": position, "column": map_bin(activation_map, r["dim"]), "label": f"dim {r['dim']}",
         "first": r["first_layer"], "last": r["last_layer"]}
        for position, r in spikes(result, len(activation_map.tokens))
    ]


def _axis_3d(title: str) -> dict:
    return {
        "title": {"text": title, "font": {"size": 13}}, "showbackground": False,
        "gridcolor": "#e5e7eb",
        "zerolinecolor": "#e5e7eb", "tickfont": {"size": 11}, "showspikes": False,
    }


def layer_layout(
    y_title: str, index: Sequence[int], *, x_title: str = LAYER_AXIS, log: bool = False
) -> dict[str, Any]:
    """Axes of a chart over layers: plain, with the legend above."""
    scale = {"type": "log", "dtick": 1, "tickformat": ",~g"} if log else {}
    return {
        "font": FONT, "template": "none", "paper_bgcolor": "white", "plot_bgcolor": "white",
        "margin": {"l": 72, "r": 16, "t": 36, "b": 56}, "hovermode": "x unified",
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {
            "title": {"text": x_title, "font": {"size": 13}},
            "range": [index[0] - 0.5, index[-1] + 0.5],
            "gridcolor": "#e5e7eb", "zeroline": False,
            **({"dtick": 1} if len(index) <= 16 else {"nticks": 16}),
        },
        "yaxis": {
            "title": {"text": y_title, "font": {"size": 13}, "standoff": 14}, "automargin": True,
            "gridcolor": "#e5e7eb", "zeroline": False, **scale,
        },
    }


def line(
    name: str, x: Sequence[int], y: Sequence[float | None], color: str, dash: str = "solid"
) -> dict:
    """A line with a mark at every layer."""
    return {
        "type": "scatter", "mode": "lines+markers", "name": name, "x": list(x), "y": list(y),
        "line": {"color": color, "width": 2, "dash": dash}, "marker": {"size": 5},
    }


def _trajectory(record: MassiveRecord, color: str, *, shown: bool) -> list[dict]:
    """A line and the marks of its writer and remover, one entry of the legend for all three."""
    name = f"dim {record['dim']}" + ("" if record["strict"] else " (relaxed)")
    group = {"legendgroup": name, "visible": True if shown else "legendonly"}
    values = record["trajectory"]
    dash = "solid" if record["strict"] else "dash"
    curve = line(name, range(len(values)), values, color, dash) | group
    curve["hovertemplate"] = "layer %{x}: %{y:,.5~g}"
    traces = [curve]
    for event, verb, symbol in (
        (record["written_by"], "written", "triangle-up"), (record["removed_by"], "removed", "x"),
    ):
        if event is None:
            continue
        layer = max(event["layer"], 0)
        value = values[layer]
        if value is None or not math.isfinite(value):
            value = event["value"] if verb == "written" else 0.0
        traces.append(
            {
                "type": "scatter", "mode": "markers", "name": name, "showlegend": False,
                "x": [layer], "y": [value],
                "marker": {"symbol": symbol, "size": 13, "color": color,
                           "line": {"color": "white", "width": 1}},
                "hovertemplate": f"{verb} by {words.sublayer(event)}: "
                f"{words.number(event['value'])}",
            }
            | group
        )
    return traces
