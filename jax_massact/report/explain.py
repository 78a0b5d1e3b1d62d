"""The report of `massact explain`: attention, norms, keys and values, value updates, locations."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console, Group, RenderableType
from rich.text import Text

from jax_massact.probe.explain_result import AttentionMap, ExplainLayer, ExplainResult, MeanStd
from jax_massact.report import words
from jax_massact.report.encode import to_json, write_text
from jax_massact.report.figures import figure_title, figure_token, layer_ticks, save_figures
from jax_massact.report.html import Section, chart, paragraphs, render, table
from jax_massact.report.page import massive_table, settings_body
from jax_massact.report.picture import BLUE, GREEN, GREY, LAYER_AXIS, ORANGE, PINK
from jax_massact.report.terminal import headed, massive_rows, plain_table, section_title, spelled

# One line of a picture: its name, its values by layer, its colour and style.
Series = tuple[str, list[float | None], str, str]
_VECTORS = (("stream", GREY), ("normed", BLUE), ("keys", ORANGE), ("values", GREEN))
_MAP_TOKENS = 24


def spread(value: MeanStd | None, plus_minus: str = " ± ") -> str:
    """`0.91 ± 0.01`, over sequences."""
    if value is None or not math.isfinite(value["mean"]):
        return "-"
    return f"{value['mean']:.2f}{plus_minus}{value['std']:.2f}"


def emergence(result: ExplainResult) -> int | None:
    """The first layer whose output holds massive activations: strict, or relaxed if none is."""
    records = [r for r in result["massive"] if r["strict"]] or result["massive"]
    return min((r["first_layer"] for r in records), default=None)


def _mean(values: Sequence[float] | None) -> float | None:
    return None if not values else float(np.mean(values))


def verdict(result: ExplainResult) -> list[str]:
    """The findings in sentences."""
    rate = result["sink_rate"]
    sink = (
        f"Sink rate {spread(rate)} over all heads (mean attention to the first token above "
        f"{result['sink_epsilon']:g}, first {result['sink_length']} queries)."
    )
    first = emergence(result)
    if first is None:
        return ["No massive activations found, strict or relaxed.", sink]
    strict = any(r["strict"] for r in result["massive"])
    depth = len(result["layers"])
    after = result["layers"][min(first + 2, depth - 1)]
    call = "Massive activations" if strict else "Activations over the relaxed threshold"
    lines = [
        f"{call} stand in the output of block {first} and after, at "
        f"{words.number(result['massive_tokens'])} token(s) of a sequence on average.",
        sink,
    ]
    share, keys = _mean(after["attention"]["massive"]), after["keys"]["cosine_massive"]
    if share is not None:
        lines.append(
            f"In layer {after['layer']} they take {words.percent(share)} of the attention of other "
            f"tokens; their keys have a mean cosine of {words.number(keys)} between sequences, "
            f"their values are {words.number(after['value_drain'])} times as long as others'."
        )
    update = after["massive_update"]
    if update is not None:
        lines.append(
            f"What they add to that layer's attention output is {words.percent(_of(update))} of "
            f"it, with a cosine of {spread(update['cosine'])} to its mean and a relative deviation "
            f"of {spread(update['deviation'])}."
        )
    return lines


def _of(update: Any) -> float:
    return update["share"]["mean"]


def print_explain(result: ExplainResult, console: Console) -> None:
    """Prints the verdict, a row for every layer, and where massive activations sit."""
    ascii_only = console.options.ascii_only
    spell = spelled if ascii_only else str
    plus_minus = "+-" if ascii_only else "±"  # no spaces: columns are narrow
    token_label = words.ascii_label if ascii_only else words.token_label
    parts: list[RenderableType] = [
        headed("Model", spell(words.model_line(result["model"]))),
        headed("Data", spell(words.data_line(result["data"], token_label))),
        headed("Verdict", spell("\n".join(verdict(result)))),
        section_title("Layers (attention of the block; means over sequences)"),
    ]
    rows = plain_table("layer", "sink rate", "massive", "cos K", "drain", "update cos", "deviation",
                       "share")
    for layer in result["layers"]:
        update = layer["massive_update"]
        rows.add_row(
            str(layer["layer"]),
            spread(layer["attention"]["sink_rate"], plus_minus),
            words.percent(_mean(layer["attention"]["massive"])),
            words.number(layer["keys"]["cosine_massive"]),
            words.number(layer["value_drain"]),
            spread(update and update["cosine"], plus_minus),
            spread(update and update["deviation"], plus_minus),
            words.percent(update and _of(update)),
        )
    parts.append(rows)
    for place in result["locations"]:
        bos = "with BOS" if place["bos"] else "without BOS"
        parts.append(section_title(
            f"Where they sit, {bos}: {place['sequences']} sequences of "
            f"{place['sequence_length']} tokens"
        ))
        records = [r for r in place["massive"] if r["strict"]] or place["massive"][:5]
        if records and not records[0]["strict"]:
            parts.append(Text("by the relaxed definition only", style="dim"))
        parts.append(
            massive_rows(records, place["sequences"], ascii_only)
            if records else Text("none found, strict or relaxed")
        )
    parts.append(Text("\n".join(words.definition(result["definition"])), style="dim"))
    console.print(Group(*parts))


def write_explain_report(
    result: ExplainResult, attention_map: AttentionMap, folder: Path
) -> list[Path]:
    """Writes `explain.json`, `explain.html` and the figures into `folder`.

    Raises:
      OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = render(
        f"What attention makes of massive activations in {result['model']['name']}",
        words.model_line(result["model"]),
        explain_sections(result, attention_map),
        ", ".join(f"{k.replace('_', ' ')} {words.number(s)} s"
                  for k, s in result["seconds"].items()),
    )
    drawings = {
        "attention_maps": lambda: draw_attention_maps(result, attention_map),
        "attention_shares": lambda: draw_shares(result),
        "norms": lambda: draw_norms(result),
        "value_updates": lambda: draw_updates(result),
    }
    return [
        write_text(folder / "explain.json", to_json(result, indent=2) + "\n"),
        write_text(folder / "explain.html", page),
        *save_figures(drawings, folder / "figures"),
    ]


def share_series(result: ExplainResult) -> list[Series]:
    """Shares of attention mass and the sink rate, by layer."""
    layers = result["layers"]
    of = lambda name: [_mean(layer["attention"][name]) for layer in layers]
    rates: list[float | None] = [layer["attention"]["sink_rate"]["mean"] for layer in layers]
    series: list[Series] = [
        ("sink rate", rates, GREY, "--"),
        ("on massive tokens", of("massive"), ORANGE, "-"),
        ("on the first token", of("first"), BLUE, ":"),
    ]
    if layers and layers[0]["attention"]["extra"] is not None:
        series.append(("on the extra key", of("extra"), GREEN, "-"))
    return [s for s in series if any(v is not None for v in s[1])]


def norm_series(result: ExplainResult) -> list[Series]:
    """L2 norms by layer, massive tokens (full lines) and others (dotted)."""
    return [
        (f"{name}, {part}", [layer[name][f"norm_{part}"] for layer in result["layers"]], color,
         "-" if part == "massive" else ":")
        for name, color in _VECTORS for part in ("massive", "other")
    ]


def cosine_series(result: ExplainResult) -> list[Series]:
    """Mean cosine between tokens of different sequences, by layer."""
    return [
        (f"{name}, {part}", [layer[name][f"cosine_{part}"] for layer in result["layers"]], color,
         "-" if part == "massive" else ":")
        for name, color in _VECTORS for part in ("massive", "other")
    ]


def update_series(result: ExplainResult) -> dict[str, list[Series]]:
    """Constancy and share of the two parts of the value updates, by layer."""

    def by_layer(part: str, field: str) -> list[float | None]:
        updates = [layer[f"{part}_update"] for layer in result["layers"]]
        return [None if u is None else u[field]["mean"] for u in updates]

    return {
        field: [
            ("massive tokens", by_layer("massive", field), ORANGE, "-"),
            ("other tokens", by_layer("other", field), BLUE, ":"),
        ]
        for field in ("cosine", "deviation", "share")
    }


def explain_sections(result: ExplainResult, attention_map: AttentionMap) -> list[Section]:
    """The sections of the page, in reading order."""
    kind = "none"
    if result["massive"]:
        kind = "strict" if any(r["strict"] for r in result["massive"]) else "relaxed"
    lines = lambda key, series, label, log=False: chart(
        key, _chart(series, label, log), height=380, label=label
    )
    updates = update_series(result)
    sections = [
        Section(
            "verdict", "What was found",
            f'<div class="verdict {kind}">{paragraphs(verdict(result))}</div>'
            + paragraphs([words.data_line(result["data"])])
            + paragraphs(words.definition(result["definition"]), "soft"),
        ),
        Section(
            "maps", "Attention before and after",
            "".join(
                chart(f"map-{layer}", _heat(attention_map, layer), height=420,
                      label=f"attention of layer {layer}, mean over heads")
                for layer in map_layers(result)
            )
            + paragraphs(["First sequence, mean over heads. Massive tokens are marked with *."],
                         "soft"),
        ),
        Section("shares", "Where attention goes",
                lines("shares-chart", share_series(result), "share, mean over heads")),
        Section("norms", "From the norm to keys and values",
                lines("norms-chart", norm_series(result), "L2 norm", True)
                + lines("cosines-chart", cosine_series(result),
                        "mean cosine between sequences")),
    ]
    if any(layer["massive_update"] for layer in result["layers"]):
        body = "".join(
            lines(f"update-{field}", series, _UPDATE_LABELS[field], field == "deviation")
            for field, series in updates.items()
        )
        sections.append(Section("updates", "Value updates", body))
    if result["locations"]:
        body = ""
        for place in result["locations"]:
            bos = "With BOS" if place["bos"] else "Without BOS"
            caption = f"{bos}, {words.count(place['sequences'], 'sequence')} of " + words.count(
                place["sequence_length"], "token"
            )
            for strict, call in ((True, "massive (strict)"), (False, "relaxed only")):
                if records := words.by_size(place["massive"], strict=strict):
                    body += massive_table(records, place["sequences"], f"{caption}: {call}")
            if not place["massive"]:
                body += paragraphs([f"{caption}: none found, strict or relaxed."])
        sections.append(Section("locations", "Where they sit", body))
    sections += [
        Section("layers", "Every layer", _layer_table(result["layers"])),
        Section("settings", "Settings and versions", settings_body(result)),
    ]
    return sections


_UPDATE_LABELS = {
    "cosine": "mean cosine to the mean update",
    "deviation": "deviation from the mean, relative",
    "share": "share of the attention output",
}


def _layer_table(layers: Sequence[ExplainLayer]) -> str:
    head = ("layer", "sink rate", "first", "massive", "logit massive", "logit other", "cos normed",
            "cos K", "cos V", "dims normed", "drain", "update cosine", "deviation", "share")
    rows = []
    for layer in layers:
        a, u = layer["attention"], layer["massive_update"]
        rows.append([
            str(layer["layer"]), spread(a["sink_rate"]), words.number(_mean(a["first"])),
            words.number(_mean(a["massive"])), words.number(_mean(a["logit_massive"])),
            words.number(_mean(a["logit_other"])),
            *(words.number(layer[n]["cosine_massive"]) for n in ("normed", "keys", "values")),
            words.number(layer["normed"]["dims_massive"]), words.number(layer["value_drain"]),
            spread(u and u["cosine"]), spread(u and u["deviation"]), spread(u and u["share"]),
        ])
    note = (
        "Attention and value updates are the block's own; stream, norm, keys and values are what "
        "enters it. Shares and logits are means over heads; ± is the standard deviation over "
        "sequences."
    )
    return table(head, rows) + paragraphs([note], "soft")


def map_layers(result: ExplainResult) -> list[int]:
    """The layers to picture: the block that writes, whose attention knows nothing of it yet, and
    the second after it."""
    first, depth = emergence(result), len(result["layers"])
    if first is None:
        return sorted({0, depth - 1})
    return sorted({first, min(first + 2, depth - 1)})


def _chart(series: list[Series], label: str, log: bool) -> dict:
    dashes = {"-": "solid", "--": "dash", ":": "dot"}
    return {
        "data": [
            {
                "type": "scatter", "mode": "lines", "name": name, "y": values,
                "x": list(range(len(values))), "line": {"color": color, "dash": dashes[style]},
                "hovertemplate": "%{y:.4~g}",
            }
            for name, values, color, style in series
        ],
        "layout": {
            "hovermode": "x unified",
            "xaxis": {"title": {"text": "layer (from 0)"}},
            "yaxis": {"title": {"text": label}, "type": "log" if log else "linear"},
            "margin": {"l": 70, "r": 20, "t": 10, "b": 50},
        },
    }


def _marked(attention_map: AttentionMap, label: Callable[[str], str]) -> list[str]:
    names = zip(attention_map.tokens, attention_map.massive, strict=True)
    return [f"{'* ' if massive else ''}{i} {label(t)}" for i, (t, massive) in enumerate(names)]


def _heat(attention_map: AttentionMap, layer: int) -> dict:
    names = _marked(attention_map, words.ascii_label)[:_MAP_TOKENS]
    weight = attention_map.weight[layer][:_MAP_TOKENS, :_MAP_TOKENS]
    rows = [[float(w) if s <= t else None for s, w in enumerate(row)]
            for t, row in enumerate(weight)]
    escaped = [name.replace("&", "&amp;").replace("<", "&lt;") for name in names]
    return {
        "data": [{
            "type": "heatmap", "z": rows, "x": escaped, "y": escaped, "zmin": 0, "zmax": 1,
            "colorscale": [[0, "#f7fbff"], [0.5, "#6baed6"], [1, "#08306b"]],
            "hovertemplate": "query %{y}<br>key %{x}<br>%{z:.3f}<extra></extra>",
        }],
        "layout": {
            "title": {"text": f"layer {layer}", "font": {"size": 13}},
            "yaxis": {"autorange": "reversed", "automargin": True, "tickfont": {"size": 9}},
            "xaxis": {"automargin": True, "tickfont": {"size": 9}},
            "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
        },
    }


def draw_attention_maps(result: ExplainResult, attention_map: AttentionMap) -> Figure:
    """Attention of the first tokens before and after massive activations appear, after the paper's
    figure of attention concentration; mean over heads."""
    layers = map_layers(result)
    figure = Figure(figsize=(6.8, 3.7), layout="constrained")
    all_axes = figure.subplots(1, len(layers), squeeze=False)[0]
    names = [figure_token(t) for t in attention_map.tokens[:_MAP_TOKENS]]
    image = None
    for axes, layer in zip(all_axes, layers, strict=True):
        weight = attention_map.weight[layer][:_MAP_TOKENS, :_MAP_TOKENS].copy()
        weight[np.triu_indices(len(weight), 1)] = np.nan
        image = axes.imshow(weight, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        axes.grid(visible=False)
        ticks = range(0, len(names), 2)
        axes.set_xticks(ticks, [names[t] for t in ticks], rotation=90, fontsize=6)
        axes.set_yticks(ticks, [names[t] for t in ticks], fontsize=6)
        for position in (i for i, m in enumerate(attention_map.massive[:_MAP_TOKENS]) if m):
            axes.annotate(
                "massive", (position, position), (position + 3, max(position - 1.2, -1.2)),
                color=ORANGE, fontsize=7, va="center", annotation_clip=False,
                arrowprops={"arrowstyle": "-", "color": ORANGE, "linewidth": 0.8},
            )
        first = emergence(result)
        when = "" if first is None else (", before" if layer <= first else ", after")
        axes.set_title(f"layer {layer}{when}", fontsize=9, pad=10)
        axes.set_xlabel("key")
    all_axes[0].set_ylabel("query")
    if image is not None:
        figure.colorbar(image, ax=list(all_axes), shrink=0.7, label="attention, mean over heads")
    figure.suptitle(figure_title(result["model"], "attention, first sequence"), x=0.01, ha="left",
                    fontsize=10)
    return figure


def draw_shares(result: ExplainResult) -> Figure:
    """Sink rate, and the shares of attention on the first and on massive tokens, by layer."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    _lines(axes, share_series(result), "share (mean over heads)")
    rates = [layer["attention"]["sink_rate"] for layer in result["layers"]]
    mean, std = (np.array([r[k] for r in rates]) for k in ("mean", "std"))
    axes.fill_between(np.arange(len(mean)), mean - std, mean + std, color=GREY, alpha=0.15,
                      linewidth=0)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(fontsize=8)
    text = f"attention by layer (sink: > {result['sink_epsilon']:g})"
    axes.set_title(figure_title(result["model"], text))
    return figure


def draw_norms(result: ExplainResult) -> Figure:
    """Norms and cosines of stream, normed stream, keys and values: massive against other tokens."""
    figure = Figure(figsize=(6.8, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _lines(left, norm_series(result), "L2 norm, mean over tokens")
    left.set_yscale("log")
    _lines(right, cosine_series(result), "mean cosine between sequences")
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=7)
    figure.suptitle(figure_title(result["model"], "from the norm to keys and values"), x=0.01,
                    ha="left", fontsize=10)
    return figure


def draw_updates(result: ExplainResult) -> Figure:
    """Value updates from massive tokens against the rest: how constant, and how much."""
    figure = Figure(figsize=(6.8, 2.9), layout="constrained")
    for axes, (field, series) in zip(
        figure.subplots(1, 3), update_series(result).items(), strict=True
    ):
        _lines(axes, series, "")
        axes.set_title(_UPDATE_LABELS[field], fontsize=8.5)
        if field == "deviation" and any(v for _, values, _, _ in series for v in values):
            axes.set_yscale("log")
    if any(layer["massive_update"] for layer in result["layers"]):
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8)
    else:
        figure.text(0.5, 0.5, "No massive tokens, strict or relaxed", ha="center", color=PINK)
    figure.suptitle(figure_title(result["model"], "value updates"), x=0.01, ha="left", fontsize=10)
    return figure


def _lines(axes: Axes, series: Sequence[Series], label: str) -> None:
    for name, values, color, style in series:
        y = np.array([math.nan if v is None else v for v in values], dtype=float)
        if np.isfinite(y).any():
            axes.plot(np.arange(len(y)), y, style, color=color, label=name)
    layer_ticks(axes, range(max(len(s[1]) for s in series)))
    axes.set_xlabel("layer (from 0)" if label != LAYER_AXIS else label)
    axes.set_ylabel(label)
