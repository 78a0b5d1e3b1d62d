"""The figures of `massact explain`: attention maps, shares, norms and value updates."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from jax_massact.report import words
from jax_massact.report.figures import (
    figure_title,
    figure_token,
    layer_ticks,
    positive,
    save_figures,
)
from jax_massact.report.picture import GREY, ORANGE
from jax_massact.studies.explain.report import (
    LAYER,
    MAP_TOKENS,
    UPDATE_LABELS,
    Series,
    map_layers,
    map_title,
    massive_call,
    share_series,
    update_series,
    vector_series,
)
from jax_massact.studies.explain.result import AttentionMap, ExplainResult


def save_explain_figures(
    result: ExplainResult, attention_map: AttentionMap, folder: Path
) -> list[Path]:
    """Draws `attention_maps`, `attention_shares`, `norms` and `value_updates`, as PNG and PDF."""
    drawings = {
        "attention_maps": lambda: draw_attention_maps(result, attention_map),
        "attention_shares": lambda: draw_shares(result),
        "norms": lambda: draw_norms(result),
        "value_updates": lambda: draw_updates(result),
    }
    return save_figures(drawings, folder)


def draw_attention_maps(result: ExplainResult, attention_map: AttentionMap) -> Figure:
    """Attention of the first tokens before and after massive activations appear, after the paper's
    figure of attention concentration; mean over heads. Massive tokens have a coloured label."""
    layers = map_layers(result)
    figure = Figure(figsize=(6.8, 3.8), layout="constrained")
    all_axes = figure.subplots(1, len(layers), squeeze=False)[0]
    names = [figure_token(t) for t in attention_map.tokens[:MAP_TOKENS]]
    massive = [i for i, m in enumerate(attention_map.massive[:MAP_TOKENS]) if m]
    ticks = _token_ticks(len(names), massive)
    image = None
    for axes, layer in zip(all_axes, layers, strict=True):
        weight = attention_map.weight[layer][:MAP_TOKENS, :MAP_TOKENS].copy()
        weight[np.triu_indices(len(weight), 1)] = np.nan
        image = axes.imshow(weight, vmin=0, vmax=1, cmap="Blues", interpolation="nearest")
        axes.grid(visible=False)
        axes.set_xticks(ticks, [names[t] for t in ticks], rotation=90, fontsize=6)
        axes.set_yticks(ticks, [names[t] for t in ticks], fontsize=6)
        for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
            for tick, label in zip(ticks, labels, strict=True):
                if tick in massive:
                    label.set(color=ORANGE, fontweight="bold")
        if massive:  # an empty unclipped line has no extent to lay out
            axes.plot(massive, [-0.9] * len(massive), linestyle="none", marker="v", markersize=4,
                      color=ORANGE, clip_on=False)
        axes.set_title(map_title(result, layer), fontsize=9, pad=10)
        axes.set_xlabel("key")
    all_axes[0].set_ylabel("query")
    if image is not None:
        figure.colorbar(image, ax=list(all_axes), shrink=0.7, label="attention, mean over heads")
    marked = f"; orange: {massive_call(result)}" if massive else ""
    figure.suptitle(figure_title(result["model"], f"attention, first sequence{marked}"), x=0.01,
                    ha="left", fontsize=10)
    return figure


def draw_shares(result: ExplainResult) -> Figure:
    """Sink rate, and the shares of attention on the first and on massive tokens, by layer."""
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    _lines(axes, share_series(result), "share (mean over heads)")
    axes.set_ylim(-0.02, 1.02)
    _legend(figure, axes)
    text = f"attention by layer (sink: > {result['sink_epsilon']:g})"
    axes.set_title(figure_title(result["model"], text))
    return figure


def draw_norms(result: ExplainResult) -> Figure:
    """Norms and cosines of stream, normed stream, keys and values: massive against other tokens."""
    figure = Figure(figsize=(6.8, 3.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    norms, cosines = (vector_series(result, measure) for measure in ("norm", "cosine"))
    _lines(left, norms, "L2 norm, mean over tokens", log=True)
    _lines(right, cosines, "mean cosine between sequences")
    _legend(figure, left)
    figure.suptitle(figure_title(result["model"], "from the norm to keys and values"), x=0.01,
                    ha="left", fontsize=10)
    return figure


def draw_updates(result: ExplainResult) -> Figure:
    """Value updates from massive tokens against the rest: how constant, and how much."""
    some = any(layer["massive_update"] for layer in result["layers"])
    figure = Figure(figsize=(6.8, 2.9), layout="constrained")
    title = figure_title(result["model"], "value updates")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    if not some:
        figure.text(0.5, 0.5, "No massive tokens, strict or relaxed: nothing to split",
                    ha="center", color=GREY)
        return figure
    for axes, (field, series) in zip(
        figure.subplots(1, 3), update_series(result).items(), strict=True
    ):
        _lines(axes, series, "", log=field == "deviation")
        axes.set_title(UPDATE_LABELS[field], fontsize=8.5)
    _legend(figure, figure.axes[0])
    return figure


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4),
                      fontsize=7.5)


def _lines(axes: Axes, series: Sequence[Series], label: str, *, log: bool = False) -> None:
    if log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: words.number(value))
    number = len(series)
    for i, s in enumerate(series):
        y = _floats(s.values, log)
        if not np.isfinite(y).any():
            continue
        x = np.arange(len(y))
        # Lines that coincide show one inside the other.
        width = 1.4 + 1.0 * (number - 1 - i) / max(number - 1, 1)
        axes.plot(x, y, s.style, color=s.color, label=s.name, linewidth=width,
                  marker="" if len(y) > 1 else "o")
        if s.std is not None:
            std = _floats(s.std, False)
            low = np.where(y > std, y - std, np.nan) if log else y - std
            axes.fill_between(x, low, y + std, color=s.color, alpha=0.15, linewidth=0)
    layer_ticks(axes, range(max((len(s.values) for s in series), default=1)))
    axes.set(xlabel=LAYER, ylabel=label)


def _floats(values: Sequence[float | None], log: bool) -> np.ndarray:
    if log:
        return positive(values)
    return np.array([math.nan if v is None else v for v in values], dtype=float)


def _token_ticks(tokens: int, massive: Sequence[int]) -> list[int]:
    """Every massive position, and every second that does not touch one."""
    others = [t for t in range(0, tokens, 2) if all(abs(t - m) > 1 for m in massive)]
    return sorted({*massive, *others})
