"""The figures of `massact intervene`: perplexities as bars, and the values once set to zero."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from jax_massact.report import words
from jax_massact.report.figures import (
    far_apart,
    figure_title,
    layer_ticks,
    save_figures,
)
from jax_massact.report.picture import GREY, LAYER_AXIS, PALETTE
from jax_massact.studies.changes import change_of
from jax_massact.studies.intervene.report import (
    PLACES,
    bar_ends,
    edited_layers,
    largest_trajectories,
)
from jax_massact.studies.interventions_result import InterveneResult


def save_intervene_figures(result: InterveneResult, folder: Path) -> list[Path]:
    """Draws `perplexity` and, where anything was changed, `after_zero`, as PNG and PDF."""
    drawings = {"perplexity": lambda: draw_perplexity(result)}
    if result["after_zero"] is not None:
        drawings["after_zero"] = lambda: draw_after_zero(result)
    return save_figures(drawings, folder)


def draw_perplexity(result: InterveneResult) -> Figure:
    """Perplexity of every intervention on a logarithmic axis, after the paper's table 3."""
    names, values = list(result["perplexity"]), list(result["perplexity"].values())
    low, ends, high = bar_ends(values)
    figure = Figure(figsize=(6.4, 1.0 + 0.4 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    axes.barh(range(len(names)), np.array(ends) - low, left=low, height=0.62,
              color=[change_of(n).color for n in names])
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    for i, value in enumerate(values):
        axes.text(ends[i] * 1.15, i, words.number(value), va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [change_of(n).words.replace(": ", ":\n") for n in names])
    axes.set_axisbelow(True)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"perplexity of {result['data']['scored_tokens']:,} held-out tokens")
    axes.set_title(figure_title(result["model"], f"interventions{_relaxed(result)}"))
    return figure


def draw_after_zero(result: InterveneResult) -> Figure:
    """The value at the changed places, layer by layer: original, and after it was set to zero."""
    after = result["after_zero"]
    assert after is not None
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    trajectories = largest_trajectories(result)
    shown = trajectories[:PLACES]
    tallest = []
    for t, hue in zip(shown, PALETTE, strict=False):
        values = {name: np.array(t[name], dtype=float) for name in ("original", "zero")}
        layers = np.arange(len(values["original"]))
        axes.plot(layers, values["original"], color=hue, marker="o",
                  label=f"dim {t['dim']}, original")
        axes.plot(layers, values["zero"], color=hue, marker="s", markerfacecolor="white",
                  linestyle=(0, (3, 1.5)), label=f"dim {t['dim']}, set to zero")
        tallest.append(float(np.nanmax(np.abs(values["original"]), initial=0.0)))
    first, last = edited_layers(result)
    for layer in sorted({first, last}):
        label = f"edit at layer {words.layer_span(first, last)}" if layer == first else None
        axes.axvline(layer, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label=label, zorder=1)
    if far_apart(tallest):
        axes.set_yscale("symlog", linthresh=result["definition"]["relaxed"]["magnitude"] or 1)
    layer_ticks(axes, range(result["model"]["depth"]))
    axes.set(xlabel=LAYER_AXIS, ylabel="mean value at the changed places")
    axes.yaxis.set_major_formatter(lambda value, _: words.number(value))
    axes.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5))
    some = "" if len(shown) == len(trajectories) else f" ({PLACES} largest of {len(trajectories)})"
    text = f"after zeroing: {after['verdict']}{_relaxed(result)}{some}"
    axes.set_title(figure_title(result["model"], text))
    return figure


def _relaxed(result: InterveneResult) -> str:
    return " (relaxed only)" if words.strength(result["massive"]) == "relaxed" else ""
