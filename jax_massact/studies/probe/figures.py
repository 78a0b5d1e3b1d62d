"""The charts of a probe: the activation map, the largest magnitudes, and who writes what."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_massact.report import words
from jax_massact.report.chart import (
    AMBER,
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    PINK,
    Axis,
    Chart,
    Panel,
    Rule,
    Series,
    Spike,
    Surface,
    layers,
    titled,
    value_axis,
)
from jax_massact.results import ActivationMap, LayerStats, MassiveRecord
from jax_massact.studies.probe.images_report import norm_chart
from jax_massact.studies.probe.result import ProbeResult

FIGURES = ("activation_map", "top_magnitudes", "writers", "token_norms")
TOPS = ((ORANGE, "o"), (AMBER, "s"), (PINK, "D"))  # top-1, top-2, top-3
MAX_TRAJECTORIES = 24  # of these, as many as there are colours are shown at first


def charts(
    result: ProbeResult, activation_map: ActivationMap, pictured: Sequence[Any] = ()
) -> list[Chart | Surface]:
    """All of them, in reading order; of images, the norms of their tokens come last."""
    del pictured
    found = [map_chart(result, activation_map), magnitude_chart(result), writer_chart(result)]
    images = result.get("images")
    return found if images is None else [*found, norm_chart(result, images)]


def map_chart(result: ProbeResult, activation_map: ActivationMap) -> Surface:
    """|h| of the first sequence over tokens and dimensions, after figure 1 of Sun et al. (2024)."""
    layer = map_layer(result)
    return Surface(
        name="activation_map",
        title=titled(result["model"]["name"], f"|h| after block {layer}, first sequence"),
        label="|h| over tokens and dimensions",
        heights=activation_map.magnitude,
        first=activation_map.first_dim,
        width=result["model"]["width"],
        rows=activation_map.tokens,
        layer=layer,
        spikes=_spikes(result, activation_map),
        axes=("dimension", "token", "|h|"),
        column="dim",
    )


def map_layer(result: ProbeResult) -> int:
    """The layer to picture: the strongest record's peak, else the largest top-1 over median."""
    if records := words.strongest(result["massive"]):
        return records[0]["peak_layer"]

    def ratio(layer: LayerStats) -> float:
        top, median = (layer["top"][0]["magnitude"] if layer["top"] else 0.0), layer["median"]
        return top / median if median > 0 and math.isfinite(top) else 0.0

    return max(result["layers"], key=ratio)["layer"]


def _spikes(result: ProbeResult, activation_map: ActivationMap) -> list[Spike]:
    """Each massive activation of the map, the largest dimension first."""
    places: dict[int, list[int]] = {}
    for position, dim in result["prompt"]["massive"]:
        if position < len(activation_map.tokens):
            places.setdefault(dim, []).append(position)
    ranked = words.ranked(result["massive"])
    return [
        Spike(position, map_bin(activation_map, r["dim"]), f"dim {r['dim']}", r["first_layer"],
              r["last_layer"])
        for r in ranked for position in places.get(r["dim"], [])
    ]


def map_bin(activation_map: ActivationMap, dim: int) -> int:
    """The bin of the map that holds dimension `dim`."""
    return int(np.searchsorted(activation_map.first_dim, dim, side="right")) - 1


def magnitude_chart(result: ProbeResult) -> Chart:
    """The three largest magnitudes and the median, layer by layer."""
    stats = result["layers"]
    x = [layer["layer"] for layer in stats]
    lines: list[Series | Rule] = []
    for rank, (color, marker) in enumerate(TOPS):
        entries = [layer["top"][rank] if rank < len(layer["top"]) else None for layer in stats]
        if not any(entries):
            continue
        y = [e and e["magnitude"] for e in entries]
        band: dict[str, Any] = {}
        if rank == 0:
            band = {"low": [e and e["magnitude"] - e["magnitude_std"] for e in entries],
                    "high": [e and e["magnitude"] + e["magnitude_std"] for e in entries]}
        hover = ["" if e is None else f"{words.token_label(e['token'])} position {e['position']}, "
                 f"dim {e['dim']}" for e in entries]
        lines.append(Series(f"top-{rank + 1}", x, y, color, marker=marker, hover=hover, **band))
    lines.append(Series("median", x, [layer["median"] for layer in stats], BLUE, marker="^"))
    bound = result["definition"]["strict"]["magnitude"]
    lines.append(Rule(bound, text=f"strict: > {words.number(bound)}"))
    panel = Panel(lines, x=layers(len(stats)), height=400,
                  y=Axis("magnitude (mean over sequences)", scale="log"))
    return Chart(
        "top_magnitudes", titled(result["model"]["name"], "largest magnitudes by layer"),
        "The three largest magnitudes and the median, layer by layer", [panel], legend="right",
    )


def writer_chart(result: ProbeResult) -> Chart:
    """The signed value of each massive dimension by layer, with its writer and its remover."""
    records = words.strongest(result["massive"])[:MAX_TRAJECTORIES]
    first = records[: len(PALETTE)]
    lines: list[Series] = []
    for number, record in enumerate(records):
        lines += _trajectory(record, PALETTE[number % len(PALETTE)], shown=number < len(PALETTE))
    if lines:
        lines += [Series(name, [], [], GREY, dash="", marker=marker)
                  for name, marker in (("written", "^"), ("removed", "X"))]
    linear = result["definition"]["relaxed"]["magnitude"]
    rows = len(records) // 5  # five names fit in a row of the legend
    panel = Panel(
        lines, x=layers(len(result["layers"])), height=400 + 24 * rows,
        y=value_axis("value (mean over sequences)", [r["value_mean"] for r in first], linear),
        empty="None found, strict or relaxed",
    )
    total = len(result["massive"])
    some = f" ({len(first)} largest of {total})" if len(first) < total else ""
    return Chart(
        "writers", titled(result["model"]["name"], f"who writes what{some}"),
        "Value of each massive dimension, layer by layer", [panel],
        size=(6.4, 3.6 + 0.15 * len(first)),
    )


def _trajectory(record: MassiveRecord, color: str, *, shown: bool) -> list[Series]:
    """A line and the marks of its writer and remover, one entry of the legend for all three."""
    name = f"dim {record['dim']}" + ("" if record["strict"] else " (relaxed)")
    writer, remover, values = record["written_by"], record["removed_by"], record["trajectory"]
    end = words.unremoved(record) if remover is None else (
        f"removed by {words.sublayer(remover)} ({words.number(remover['value'])})"
    )
    about = f": written by {words.sublayer(writer)} ({words.number(writer['value'])}), {end}"
    dash = "-" if record["strict"] else "--"
    lines = [Series(name, range(len(values)), values, color, dash, ".", about=about, shown=shown)]

    def value(layer: int, otherwise: float) -> float:
        found = values[layer]
        return otherwise if found is None or not math.isfinite(found) else found

    def mark(event: Any, verb: str, marker: str, otherwise: float) -> Series:
        layer = max(event["layer"], 0)
        hover = f"{verb} by {words.sublayer(event)}: {words.number(event['value'])}"
        return Series("", [layer], [value(layer, otherwise)], color, "", marker, hover=[hover],
                      group=name, shown=shown)

    lines.append(mark(writer, "written", "^", writer["value"]))
    if remover is not None:
        last = record["last_layer"]
        ends = [value(last, math.nan), value(remover["layer"], 0.0)]
        lines.append(Series("", [last, remover["layer"]], ends, color, ":", group=name,
                            shown=shown))
        lines.append(mark(remover, "removed", "X", 0.0))
    return lines
