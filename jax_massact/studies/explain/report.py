"""The report of `massact explain`: attention, norms, keys and values, value updates, locations."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jax_massact.report import words
from jax_massact.report.charts import FONT, layer_layout, line
from jax_massact.report.html import (
    Section,
    chart,
    escape,
    paragraphs,
    table,
)
from jax_massact.report.picture import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
)
from jax_massact.report.sections import (
    massive_tables,
    render_report,
    settings_section,
    verdict_section,
)
from jax_massact.report.terminal import (
    headed,
    massive_parts,
    plain_table,
    section_title,
    spelled,
    verdict_style,
)
from jax_massact.studies.explain.result import (
    AttentionMap,
    ExplainResult,
    Location,
    MeanStd,
    UpdateStats,
    VectorStats,
)

LAYER = "layer (block, from 0)"
MAP_TOKENS = 24
VECTORS = (("stream", GREY), ("normed", BLUE), ("keys", ORANGE), ("values", GREEN))
UPDATE_LABELS = {
    "cosine": "mean cosine to the mean update",
    "deviation": "deviation from the mean, relative",
    "share": "share of the attention output",
}
_LOCATION_ROWS = 5  # of each definition, in the terminal


class Series(NamedTuple):
    """One line of a picture over layers.

    Attributes:
      name: of the legend.
      values: one for each layer; None is a gap.
      color: of the line.
      style: `-`, `--` or `:`, as matplotlib writes it.
      std: over sequences, for the band around the line; none for one sequence.
    """

    name: str
    values: list[float | None]
    color: str
    style: str
    std: list[float | None] | None = None


def spread(value: MeanStd | None, sequences: int, plus_minus: str = " ± ") -> str:
    """`0.91 ± 0.01`, over sequences; the mean alone when there is one."""
    if value is None or not math.isfinite(value["mean"]):
        return "-"
    mean = f"{value['mean']:.2f}"
    return mean if sequences == 1 else f"{mean}{plus_minus}{value['std']:.2f}"


def massive_call(result: ExplainResult) -> str:
    """`massive`; `massive (relaxed)` where nothing is more than that."""
    return "massive (relaxed)" if words.strength(result["massive"]) == "relaxed" else "massive"


def emergence(result: ExplainResult) -> int | None:
    """The first layer whose output holds massive activations: strict, or relaxed if none is."""
    records = words.by_size(result["massive"], strict=True) or result["massive"]
    return min((r["first_layer"] for r in records), default=None)


def map_layers(result: ExplainResult) -> list[int]:
    """The layers to picture: the block that writes, whose attention knows nothing of it yet, and
    the second after it; the first and the last where nothing is written."""
    first, depth = emergence(result), len(result["layers"])
    if first is None:
        return sorted({0, depth - 1})
    return sorted({first, min(first + 2, depth - 1)})


def map_title(result: ExplainResult, layer: int) -> str:
    """`layer 11, before`: of the massive activations."""
    first = emergence(result)
    if first is None:
        return f"layer {layer}"
    return f"layer {layer}, " + ("before" if layer <= first else "after")


def verdict(result: ExplainResult) -> list[str]:
    """The findings in sentences."""
    sequences = result["data"]["sequences"]
    sink = (
        f"The sink rate is {spread(result['sink_rate'], sequences)}: the share of heads whose mean "
        f"attention to the first token exceeds {result['sink_epsilon']:g} (first "
        f"{result['sink_length']} queries)."
    )
    first = emergence(result)
    if first is None:
        return ["No massive activations found, strict or relaxed.", sink]
    call = {
        "strict": "Massive activations (strict)",
        "relaxed": "Activations over the relaxed threshold only",
    }[words.strength(result["massive"])]
    number = result["massive_tokens"]
    tokens = f"{words.number(number)} token" + ("" if number == 1 else "s")
    lines = [
        f"{call} stand in the output of block {first} and after, at {tokens} of a sequence on "
        "average.",
        sink,
    ]
    return lines + _mechanism(result, map_layers(result)[-1])


def _mechanism(result: ExplainResult, at: int) -> list[str]:
    layer, sequences = result["layers"][at], result["data"]["sequences"]
    share, cosine = mean_of(layer["attention"]["massive"]), layer["keys"]["cosine_massive"]
    tokens = "these tokens" if massive_call(result) == "massive" else "these (relaxed) tokens"
    lines, parts = [], []
    if share is not None:
        parts.append(f"{tokens} take {words.percent(share)} of the attention of the others")
    if cosine is not None:
        parts.append(f"their keys have a mean cosine of {words.number(cosine)} between sequences")
    if layer["value_drain"] is not None:
        parts.append(f"their values have {words.number(layer['value_drain'])} times the norm of "
                     "other tokens' values")
    if parts:
        lines.append(f"In layer {at} {'; '.join(parts)}.")
    if (update := layer["massive_update"]) is not None:
        lines.append(
            f"What they add to that layer's attention output is "
            f"{words.percent(update['share']['mean'])} of it; its cosine to its mean over queries "
            f"is {spread(update['cosine'], sequences)}, its relative deviation from it "
            f"{spread(update['deviation'], sequences)}."
        )
    return lines


def mean_of(values: Sequence[float] | None) -> float | None:
    """Over heads."""
    return None if not values else float(np.mean(values))


def show(result: ExplainResult, console: Console) -> None:
    """Prints the verdict, a row for every layer, and where massive activations sit."""
    ascii_only = console.options.ascii_only
    spell = spelled if ascii_only else str
    token_label = words.ascii_label if ascii_only else words.token_label
    parts: list[RenderableType] = [
        headed("Model", spell(words.model_line(result["model"]))),
        headed("Data", spell(words.data_line(result["data"], token_label))),
        headed("Verdict", spell("\n".join(verdict(result))), verdict_style(result["massive"])),
        section_title("Layers (attention of the block; means over sequences and heads)"),
        _layers(result, "+-" if ascii_only else "±"),
    ]
    for place in result["locations"]:
        about = location_line(place)
        titles = (f"{about}: massive (strict)", f"{about}: relaxed only")
        parts += massive_parts(
            place["massive"], place["sequences"], ascii_only, titles, _LOCATION_ROWS
        )
        if not place["massive"]:
            parts += [section_title(about), Text("none found, strict or relaxed")]
    parts.append(Text("\n".join(words.definition(result["definition"])), style="dim"))
    console.print(Group(*parts))


def location_line(place: Location) -> str:
    """`With BOS, 100 sequences of 256 tokens`."""
    return (
        f"{'With' if place['bos'] else 'Without'} BOS, "
        f"{words.count(place['sequences'], 'sequence')} of "
        f"{words.count(place['sequence_length'], 'token')}"
    )


def _layers(result: ExplainResult, plus_minus: str) -> Table:
    sequences = result["data"]["sequences"]
    share = "relaxed" if massive_call(result) != "massive" else "massive"
    rows = plain_table("layer", "sink rate", share, "cos K", "drain", "update cos", "deviation",
                       "share")
    for layer in result["layers"]:
        u = layer["massive_update"]
        rows.add_row(
            str(layer["layer"]),
            spread(layer["attention"]["sink_rate"], sequences, plus_minus),
            words.percent(mean_of(layer["attention"]["massive"])),
            words.number(layer["keys"]["cosine_massive"]),
            words.number(layer["value_drain"]),
            spread(u and u["cosine"], sequences, plus_minus),
            spread(u and u["deviation"], sequences, plus_minus),
            words.percent(u and u["share"]["mean"]),
        )
    return rows


def page(result: ExplainResult, attention_map: AttentionMap) -> str:
    """The page, as HTML."""
    title = f"What attention makes of massive activations in {result['model']['name']}"
    return render_report(title, result, explain_sections(result, attention_map))


def figures(result: ExplainResult, attention_map: AttentionMap, *, folder: Path) -> list[Path]:
    """Draws the figures into `folder`."""
    from jax_massact.studies.explain.figures import save_explain_figures

    return save_explain_figures(result, attention_map, folder)


def share_series(result: ExplainResult) -> list[Series]:
    """The sink rate and the shares of attention mass, by layer."""
    layers, call = result["layers"], massive_call(result)
    of = lambda name: [mean_of(layer["attention"][name]) for layer in layers]
    series = [
        _with_band("sink rate", [layer["attention"]["sink_rate"] for layer in layers], GREY, "--",
                   result),
        Series(f"on {call} tokens", of("massive"), ORANGE, "-"),
        Series("on the first token", of("first"), BLUE, ":"),
        Series("on the extra key", of("extra"), GREEN, "-"),
    ]
    return [s for s in series if any(v is not None for v in s.values)]


def vector_series(result: ExplainResult, measure: str) -> list[Series]:
    """`norm`, `cosine` or `dims` of the vectors by layer: massive (full lines), other (dotted)."""
    series = [
        Series(f"{name}, {call}", [layer[name][f"{measure}_{part}"] for layer in result["layers"]],
               color, style)
        for name, color in VECTORS
        for part, call, style in (("massive", massive_call(result), "-"), ("other", "other", ":"))
    ]
    return [s for s in series if any(v is not None for v in s.values)]


def update_series(result: ExplainResult) -> dict[str, list[Series]]:
    """Constancy and share of the two parts of the value updates, by layer."""

    def part(name: str, key: str, field: str, color: str, style: str) -> Series:
        updates = [layer[key] for layer in result["layers"]]
        return _with_band(name, [u and u[field] for u in updates], color, style, result)

    return {
        field: [
            part(f"{massive_call(result)} tokens", "massive_update", field, ORANGE, "-"),
            part("other tokens", "other_update", field, BLUE, ":"),
        ]
        for field in UPDATE_LABELS
    }


def _with_band(
    name: str, values: Sequence[MeanStd | None], color: str, style: str, result: ExplainResult
) -> Series:
    means = [v and v["mean"] for v in values]
    stds = [v and v["std"] for v in values]
    return Series(name, means, color, style, None if result["data"]["sequences"] == 1 else stds)


def explain_sections(result: ExplainResult, attention_map: AttentionMap) -> list[Section]:
    """The sections of the page, in reading order."""
    call = massive_call(result)
    sections = [
        verdict_section(
            words.strength(result["massive"]), verdict(result),
            [("Data", words.data_line(result["data"]))], result["definition"],
        ),
        Section("maps", "Attention before and after", _maps(result, attention_map)),
        Section("shares", "Where attention goes",
                _lines("shares-chart", share_series(result), "share, mean over heads")),
        Section(
            "norms", "From the norm to keys and values",
            _lines("norms-chart", vector_series(result, "norm"), "L2 norm", log=True)
            + _lines("cosines-chart", vector_series(result, "cosine"),
                     "mean cosine between sequences")
            + paragraphs([f"Full lines: {call} tokens; dotted: the others. Stream: what enters the "
                          "block; normed: after its norm; keys: before rotary positions."], "soft"),
        ),
    ]
    if any(layer["massive_update"] for layer in result["layers"]):
        body = "".join(
            _lines(f"update-{field}", series, UPDATE_LABELS[field], log=field == "deviation")
            for field, series in update_series(result).items()
        )
        note = (f"The attention output is the sum of what {call} tokens add and of what the others "
                "add: their shares add up to 1.")
        sections.append(Section("updates", "Value updates", body + paragraphs([note], "soft")))
    if result["locations"]:
        body = "".join(
            massive_tables(place["massive"], place["sequences"], location_line(place))
            for place in result["locations"]
        )
        sections.append(Section("locations", "Where they sit", body))
    return [*sections, Section("layers", "Every layer", _layer_tables(result)),
            settings_section(result)]


def _maps(result: ExplainResult, attention_map: AttentionMap) -> str:
    maps = "".join(
        chart(f"map-{layer}", heat_chart(attention_map, layer, map_title(result, layer)),
              height=460, label=f"attention of {map_title(result, layer)}, mean over heads")
        for layer in map_layers(result)
    )
    marked = f"Tokens marked with * are {massive_call(result)}." if any(
        attention_map.massive[:MAP_TOKENS]) else "None of these tokens is massive."
    shown = min(MAP_TOKENS, len(attention_map.tokens))
    note = f"The first {words.count(shown, 'token')} of the first sequence, mean over heads. "
    return f'<div class="beside">{maps}</div>' + paragraphs([note + marked], "soft")


def _lines(key: str, series: Sequence[Series], label: str, *, log: bool = False) -> str:
    return chart(key, line_chart(series, label, log=log), height=380, label=label)


def line_chart(series: Sequence[Series], label: str, *, log: bool = False) -> dict:
    """The series over layers, each with its band."""
    dashes = {"-": "solid", "--": "dash", ":": "dot"}
    depth = max((len(s.values) for s in series), default=1)
    traces = []
    for s in series:
        trace = line(s.name, range(depth), s.values, s.color, dashes[s.style])
        trace |= {"mode": "lines", "hovertemplate": "%{y:.4~g}", "connectgaps": False}
        if s.std is not None:
            texts = ["" if v is None else f" ± {words.number(v)}" for v in s.std]
            trace |= {"text": texts, "hovertemplate": "%{y:.4~g}%{text}"}
        traces.append(trace)
    return {"data": traces, "layout": layer_layout(label, range(depth), x_title=LAYER, log=log)}


def heat_chart(attention_map: AttentionMap, layer: int, title: str) -> dict:
    """The attention of one layer, queries by keys; what a query cannot see is left blank."""
    names = [escape(name) for name in _marked(attention_map, words.ascii_label)]
    weight = attention_map.weight[layer][:MAP_TOKENS, :MAP_TOKENS]
    rows = [[float(w) if s <= t else None for s, w in enumerate(row)]
            for t, row in enumerate(weight)]
    axis = {"automargin": True, "tickfont": {"size": 9}, "showgrid": False, "zeroline": False,
            "constrain": "domain", "dtick": 1}
    return {
        "data": [{
            "type": "heatmap", "z": rows, "x": names, "y": names, "zmin": 0, "zmax": 1,
            "colorscale": [[0, "#f7fbff"], [0.5, "#6baed6"], [1, "#08306b"]],
            "colorbar": {"thickness": 12, "len": 0.7, "tickfont": {"size": 10}},
            "hovertemplate": "query %{y}<br>key %{x}<br>%{z:.3f}<extra></extra>",
        }],
        "layout": {
            "font": FONT, "template": "none", "paper_bgcolor": "white", "plot_bgcolor": "white",
            "title": {"text": title, "font": {"size": 13}, "x": 0, "xanchor": "left"},
            "yaxis": axis | {"autorange": "reversed", "scaleanchor": "x",
                             "title": {"text": "query", "font": {"size": 11}}},
            "xaxis": axis | {"tickangle": 90, "title": {"text": "key", "font": {"size": 11}}},
            "margin": {"l": 10, "r": 10, "t": 44, "b": 10},
        },
    }


def _marked(attention_map: AttentionMap, label: Callable[[str, int], str]) -> list[str]:
    names = zip(attention_map.tokens, attention_map.massive, strict=True)
    return [
        f"{'* ' if massive else ''}{i} {label(token, 14)}"
        for i, (token, massive) in zip(range(MAP_TOKENS), names, strict=False)
    ]


def _layer_tables(result: ExplainResult) -> str:
    call = massive_call(result)
    note = (
        "Attention and value updates are the block's own; stream, normed stream, keys and values "
        "are what enters it. Shares and logits are means over heads. Pooled: to the one mean of "
        "all sequences. Effective dimensions: (Σ x²)² / Σ x⁴."
        + ("" if result["data"]["sequences"] == 1 else " ± is the standard deviation over "
           "sequences.")
    )
    return (
        _attention_table(result)
        + _vector_table(result, f"L2 norm, {call} / other", ("norm",), drain=True)
        + _vector_table(
            result, f"Cosine between sequences and effective dimensions, {call} / other",
            ("cosine", "dims"),
        )
        + _update_table(result)
        + paragraphs([note], "soft")
    )


def _attention_table(result: ExplainResult) -> str:
    has_extra = any(layer["attention"]["extra"] is not None for layer in result["layers"])
    fields = ("first", "massive", *(("extra",) if has_extra else ()), "logit_massive",
              "logit_other")
    titles = {"first": "on the first token", "massive": f"on {massive_call(result)} tokens",
              "extra": "on the extra key", "logit_massive": f"logit to {massive_call(result)}",
              "logit_other": "logit to others"}
    rows = [
        [
            str(layer["layer"]),
            spread(layer["attention"]["sink_rate"], result["data"]["sequences"]),
            *(words.number(mean_of(layer["attention"][field])) for field in fields),
        ]
        for layer in result["layers"]
    ]
    return table(("layer", "sink rate", *(titles[f] for f in fields)), rows, caption="Attention")


def _vector_table(
    result: ExplainResult, caption: str, measures: Sequence[str], *, drain: bool = False
) -> str:
    def cell(stats: VectorStats, measure: str) -> str:
        massive, other = (stats[f"{measure}_{part}"] for part in ("massive", "other"))
        return f"{words.number(massive)} / {words.number(other)}"

    short = {"norm": "", "cosine": "cos ", "dims": "dims "}
    head = ["layer", *(f"{short[m]}{name}" for m in measures for name, _ in VECTORS)]
    rows = []
    for layer in result["layers"]:
        cells = [cell(layer[name], m) for m in measures for name, _ in VECTORS]
        rows.append([str(layer["layer"]), *cells])
        if drain:
            rows[-1].append(words.number(layer["value_drain"]))
    return table([*head, *(["value drain"] if drain else [])], rows, caption=caption)


def _update_table(result: ExplainResult) -> str:
    sequences = result["data"]["sequences"]

    def cells(u: UpdateStats | None) -> list[str]:
        if u is None:
            return ["-"] * 5
        return [
            spread(u["cosine"], sequences), words.number(u["cosine_pooled"]),
            spread(u["deviation"], sequences), words.number(u["deviation_pooled"]),
            spread(u["share"], sequences),
        ]

    columns = ("cosine", "cosine pooled", "deviation", "deviation pooled", "share")
    parts = (("massive_update", massive_call(result)), ("other_update", "other"))
    return "".join(
        table(("layer", *columns),
              [[str(layer["layer"]), *cells(layer[key])] for layer in result["layers"]],
              caption=f"Value updates from {call} tokens")
        for key, call in parts
    )
