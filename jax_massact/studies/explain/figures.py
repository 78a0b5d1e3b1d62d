"""The charts of `massact explain`: attention maps, shares, norms and value updates."""

from collections.abc import Sequence

import numpy as np

from jax_massact.report import words
from jax_massact.report.chart import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    Axis,
    Chart,
    Heat,
    Panel,
    Series,
    layers,
    titled,
)
from jax_massact.studies.explain.result import AttentionMap, ExplainResult, MeanStd

FIGURES = ("attention_maps", "attention_shares", "norms", "value_updates")
MAP_TOKENS = 24
HIGH_SINK_RATE = 0.5  # from here on a layer counts as one with attention sinks
VECTORS = {"stream": GREY, "normed": BLUE, "keys": ORANGE, "values": GREEN}
UPDATES = {
    "cosine": "mean cosine to the mean update",
    "deviation": "deviation from the mean, relative",
    "share": "share of the attention output",
}


def charts(result: ExplainResult, attention_map: AttentionMap) -> list[Chart]:
    """All of them, in reading order."""
    return [map_chart(result, attention_map), share_chart(result), vector_chart(result),
            update_chart(result)]


def massive_call(result: ExplainResult) -> str:
    """`massive`; `massive (relaxed)` where nothing is more than that."""
    return "massive (relaxed)" if words.strength(result["massive"]) == "relaxed" else "massive"


def emergence(result: ExplainResult) -> int | None:
    """The first layer whose output holds massive activations: strict, or relaxed if none is."""
    records = words.by_size(result["massive"], strict=True) or result["massive"]
    return min((r["first_layer"] for r in records), default=None)


def sink_rates(result: ExplainResult) -> list[float]:
    """Sink rate of every layer, mean over sequences."""
    return [layer["attention"]["sink_rate"]["mean"] for layer in result["layers"]]


def map_layers(result: ExplainResult) -> list[int]:
    """The layers to picture: the block that writes, whose attention knows nothing of it yet, and
    the second after it; of the layers before, the one with the highest sink rate, if it is high;
    the first and the last where nothing is written."""
    first, depth, rates = emergence(result), len(result["layers"]), sink_rates(result)
    if first is None:
        return sorted({0, depth - 1})
    before = [layer for layer in range(first) if rates[layer] >= HIGH_SINK_RATE]
    return sorted({first, min(first + 2, depth - 1),
                   *sorted(before, key=lambda layer: rates[layer])[-1:]})


def mean_of(values: Sequence[float] | None) -> float | None:
    """Over heads."""
    return None if not values else float(np.mean(values))


def map_chart(result: ExplainResult, attention_map: AttentionMap) -> Chart:
    """Attention of the first tokens before and after massive activations appear, after the figure
    of attention concentration of Sun et al. (2024); what a query cannot see is blank."""
    first, rates = emergence(result), sink_rates(result)
    names, massive = attention_map.tokens[:MAP_TOKENS], attention_map.massive[:MAP_TOKENS]

    def panel(layer: int) -> Panel:
        weight = attention_map.weight[layer][:MAP_TOKENS, :MAP_TOKENS].copy()
        weight[np.triu_indices(len(weight), 1)] = np.nan
        when = "" if first is None else ", before" if layer <= first else ", after"
        rate = f"sink rate {rates[layer]:.2f}"
        heat = Heat(weight, names, massive, "query", "key", "attention, mean over heads")
        return Panel([heat], name=str(layer), title=f"layer {layer}{when}\n{rate}",
                     height=460)

    marked = f"; orange: {massive_call(result)}" if any(massive) else ""
    panels = [panel(layer) for layer in map_layers(result)]
    return Chart(
        "attention_maps", titled(result["model"]["name"], f"attention, first sequence{marked}"),
        "attention, mean over heads", panels, size=(1.2 + 2.8 * len(panels), 3.8), beside=True,
    )


def share_chart(result: ExplainResult) -> Chart:
    """The sink rate and the shares of attention mass, by layer."""
    call = massive_call(result)
    of = lambda name: [mean_of(layer["attention"][name]) for layer in result["layers"]]
    rates: list[MeanStd | None] = [layer["attention"]["sink_rate"] for layer in result["layers"]]
    lines = [
        _with_band("sink rate", rates, GREY, "--", result),
        _line(f"on {call} tokens", of("massive"), ORANGE),
        _line("on the first token", of("first"), BLUE, ":"),
        _line("on the extra key", of("extra"), GREEN),
    ]
    axis = Axis("share (mean over heads)", range=(-0.02, 1.02))
    text = f"attention by layer (sink: > {result['sink_epsilon']:g})"
    return Chart("attention_shares", titled(result["model"]["name"], text),
                 "share of attention, mean over heads", [_panel(result, lines, axis)])


def vector_chart(result: ExplainResult) -> Chart:
    """Norms and cosines of stream, normed stream, keys and values: massive tokens, and others."""

    def panel(measure: str, axis: Axis) -> Panel:
        lines = [
            _line(f"{name}, {call}", [layer[name][f"{measure}_{part}"]
                                      for layer in result["layers"]], color, dash)
            for name, color in VECTORS.items()
            for part, call, dash in (("massive", massive_call(result), "-"),
                                     ("other", "other", ":"))
        ]
        return _panel(result, lines, axis, name=measure)

    panels = [panel("norm", Axis("L2 norm, mean over tokens", scale="log")),
              panel("cosine", Axis("mean cosine between sequences"))]
    return Chart("norms", titled(result["model"]["name"], "from the norm to keys and values"),
                 "from the norm to keys and values", panels, size=(6.8, 3.9))


def update_chart(result: ExplainResult) -> Chart:
    """Value updates from massive tokens against the rest: how constant, and how much."""

    def panel(field: str, title: str) -> Panel:
        lines = [
            _with_band(name, [layer[key] and layer[key][field] for layer in result["layers"]],
                       color, dash, result)
            for name, key, color, dash in (
                (f"{massive_call(result)} tokens", "massive_update", ORANGE, "-"),
                ("other tokens", "other_update", BLUE, ":"),
            )
        ]
        axis = Axis(scale="log" if field == "deviation" else "linear")
        return _panel(result, lines, axis, name=field, title=title,
                      empty="No massive tokens, strict or relaxed:\nnothing to split")

    panels = [panel(field, title) for field, title in UPDATES.items()]
    some = any(layer["massive_update"] for layer in result["layers"])
    return Chart("value_updates", titled(result["model"]["name"], "value updates"),
                 "value updates", panels if some else panels[:1], size=(6.8, 2.9))


def _panel(result: ExplainResult, lines: Sequence[Series], y: Axis, **about: str) -> Panel:
    some = [s for s in lines if any(v is not None for v in s.y)]
    axis = layers(len(result["layers"]), "layer (block, from 0)")
    return Panel(some, x=axis, y=y, **about)  # pyright: ignore[reportArgumentType]


def _line(name: str, values: Sequence[float | None], color: str, dash: str = "-") -> Series:
    return Series(name, range(len(values)), values, color, dash)  # pyright: ignore[reportArgumentType]


def _with_band(
    name: str, values: Sequence[MeanStd | None], color: str, dash: str, result: ExplainResult
) -> Series:
    """Mean and, of several sequences, a band of one standard deviation."""
    x, means = range(len(values)), [v and v["mean"] for v in values]
    if result["data"]["sequences"] == 1:
        return _line(name, means, color, dash)
    return Series(
        name, x, means, color, dash,  # pyright: ignore[reportArgumentType]
        low=[v and v["mean"] - v["std"] for v in values],
        high=[v and v["mean"] + v["std"] for v in values],
        hover=["" if v is None else f"± {words.number(v['std'])}" for v in values],
    )
