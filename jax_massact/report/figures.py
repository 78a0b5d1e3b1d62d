"""The three figures of a probe, as PNG for slides and PDF for papers.

Drawn with matplotlib's object interface: no pyplot, no global state.
"""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from jax_massact.report import words
from jax_massact.report.encode import write_bytes
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
    map_layer,
    spikes,
)
from jax_massact.results import (
    ActivationMap,
    LayerStats,
    MassiveRecord,
    ModelInfo,
)
from jax_massact.studies.probe.result import ProbeResult

WRITTEN, REMOVED = "^", "X"  # markers of the layer whose sublayer writes, and takes away
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # the one that comes with matplotlib
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
    "text.usetex": False,
    "pdf.fonttype": 42,  # TrueType: journals refuse the default, Type 3
    "savefig.dpi": 200,
    "figure.dpi": 100,
}


def save_probe_figures(
    result: ProbeResult, activation_map: ActivationMap, folder: Path
) -> list[Path]:
    """Draws `activation_map`, `top_magnitudes` and `writers`, each as PNG and PDF.

    Args:
      result: what the probe found.
      activation_map: |resid_post| of the first sequence, [L, tokens, bins].
      folder: where the files go; made when missing.

    Returns:
      The six files.
    """
    drawings = {
        "activation_map": lambda: draw_activation_map(result, activation_map),
        "top_magnitudes": lambda: draw_top_magnitudes(result),
        "writers": lambda: draw_writers(result),
    }
    return save_figures(drawings, folder)


def save_figures(drawings: Mapping[str, Callable[[], Figure]], folder: Path) -> list[Path]:
    """Draws each figure in the house style and saves it as PNG and PDF under its name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with matplotlib.rc_context(STYLE):
        for name, draw in drawings.items():
            figure = draw()
            paths += [_save(figure, folder / f"{name}.{suffix}") for suffix in ("png", "pdf")]
    return paths


def draw_activation_map(result: ProbeResult, activation_map: ActivationMap) -> Figure:
    """|h| over tokens x dimensions at `map_layer`, after figure 1 of Sun et al. (2024).

    One ridge a token: a massive activation is a spike with nothing beside it.
    """
    layer = map_layer(result)
    heights = np.nan_to_num(activation_map.magnitude[layer], nan=0.0, posinf=0.0)
    tokens, bins = heights.shape
    dims = np.asarray(activation_map.first_dim, dtype=float)
    places = [
        (position, record["dim"])
        for position, record in spikes(result, tokens)
        if record["first_layer"] <= layer <= record["last_layer"]
    ]
    figure = Figure(figsize=(6.4, 4.6))
    axes: Any = figure.add_axes((-0.04, -0.02, 1.0, 1.04), projection="3d", computed_zorder=False)
    ridges = np.zeros((tokens, bins + 2, 3))  # the two more close each ridge on the floor
    ridges[:, :, 0] = np.concatenate([dims[:1], dims, dims[-1:]])
    ridges[:, :, 1] = np.arange(tokens)[:, None]
    ridges[:, 1:-1, 2] = heights
    axes.add_collection3d(
        Poly3DCollection(
            list(ridges), facecolors="white", edgecolors=BLUE, linewidths=0.5, zorder=1
        )
    )
    top = float(heights.max(initial=0.0)) or 1.0
    _mark_spikes(axes, activation_map, heights, places, top)
    axes.set(
        xlim=(0, max(result["model"]["width"] - 1, 1)),
        ylim=(0, max(tokens - 1, 1)),
        zlim=(0, 1.05 * top),
    )
    axes.set_xlabel("dimension", labelpad=2)
    axes.set_zlabel("|h|", labelpad=11)
    # The zero is left out: it would lie on the label of the last token.
    axes.zaxis.set_major_formatter(lambda value, _: words.number(value) if value else "")
    ticks = _token_ticks(tokens, [position for position, _ in places])
    axes.set_yticks(ticks)
    axes.set_yticklabels(
        [figure_token(activation_map.tokens[t]) for t in ticks],
        fontsize=7, ha="left", va="center", rotation=0,
    )
    axes.tick_params(pad=0)
    axes.tick_params(axis="z", pad=5)
    axes.view_init(elev=22, azim=-58)
    axes.set_box_aspect((1.35, 1.0, 0.75))
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_facecolor("white")
        axis.pane.set_edgecolor("#d1d5db")
    figure.suptitle(
        figure_title(result["model"], f"|h| after block {layer}, first sequence"),
        x=0.02, y=0.97, ha="left", fontsize=10,
    )
    return figure


def draw_top_magnitudes(result: ProbeResult) -> Figure:
    """The three largest |h| and the median, layer by layer, as the paper's layerwise figure."""
    layers = result["layers"]
    index = [layer["layer"] for layer in layers]
    figure = Figure(figsize=(6.4, 3.6))
    axes = figure.add_axes((0.11, 0.14, 0.68, 0.74))
    axes.set_yscale("log")
    series = [
        (f"top-{k + 1}", positive([_top(layer, k, "magnitude") for layer in layers]), color)
        for k, color in enumerate(TOPS)
    ]
    series.append(("median", positive([layer["median"] for layer in layers]), BLUE))
    for (name, values, color), marker in zip(series, "osD^", strict=True):
        axes.plot(index, values, color=color, marker=marker, label=name)
    top, std = series[0][1], positive([_top(layer, 0, "magnitude_std") for layer in layers])
    low = np.where(top > std, top - std, np.nan)  # a logarithmic axis has no place for less
    axes.fill_between(index, low, top + std, color=ORANGE, alpha=0.15, linewidth=0)
    drawn = np.concatenate([values for _, values, _ in series])
    drawn = drawn[np.isfinite(drawn)]
    limits = (drawn.min() / 2, drawn.max() * 2) if drawn.size else (1.0, 10.0)
    bound = result["definition"]["strict"]["magnitude"]
    if limits[0] < bound < limits[1]:
        label = f"strict: > {words.number(bound)}"
        axes.axhline(
            bound, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1, label=label
        )
    axes.set(ylim=limits, xlabel=LAYER_AXIS, ylabel="magnitude (mean over sequences)")
    layer_ticks(axes, index)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), borderaxespad=0)
    axes.set_title(figure_title(result["model"], "largest magnitudes by layer"))
    return figure


def draw_writers(result: ProbeResult) -> Figure:
    """The signed value of each massive dimension by layer, with its writer and its remover."""
    records = words.strongest(result)
    shown = records[: len(PALETTE)]
    figure = Figure(figsize=(6.4, 3.4 + 0.15 * len(shown)))
    bottom = (0.6 + 0.15 * len(shown)) / figure.get_figheight()
    axes = figure.add_axes((0.13, bottom, 0.84, 0.9 - bottom))
    axes.axhline(0, color=GREY, linewidth=0.8)
    for record, color in zip(shown, PALETTE, strict=False):
        _trajectory(axes, record, color)
    if shown:
        if far_apart([r["value_mean"] for r in shown]):
            axes.set_yscale("symlog", linthresh=result["definition"]["relaxed"]["magnitude"] or 1)
        figure.legend(
            loc="lower left", bbox_to_anchor=(0.08, 0.0), fontsize=7.5, labelspacing=0.35,
            handlelength=2.4, handles=axes.get_legend_handles_labels()[0],
        )
        figure.legend(
            handles=[
                Line2D([], [], color=GREY, marker=marker, markersize=7, linestyle="none",
                       markeredgecolor="white", label=name)
                for name, marker in (("written", WRITTEN), ("removed", REMOVED))
            ],
            loc="lower right", bbox_to_anchor=(0.99, 0.0), fontsize=7.5, labelspacing=0.35,
            handletextpad=0.1,
        )
    else:
        axes.text(
            0.5, 0.6, "No massive activations found, strict or relaxed",
            transform=axes.transAxes, ha="center", color=GREY,
        )
    axes.set(xlabel=LAYER_AXIS, ylabel="value (mean over sequences)")
    axes.yaxis.set_major_formatter(lambda value, _: words.number(value))
    index = [layer["layer"] for layer in result["layers"]]
    layer_ticks(axes, index)
    some = "" if len(shown) == len(records) else f" ({len(shown)} largest of {len(records)})"
    axes.set_title(figure_title(result["model"], f"who writes what{some}"))
    return figure


def _save(figure: Figure, path: Path) -> Path:
    buffer = io.BytesIO()
    # No date in the file: the same result gives the same bytes.
    metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
    figure.savefig(buffer, format=path.suffix[1:], metadata=metadata)
    return write_bytes(path, buffer.getvalue())


def figure_text(text: str) -> str:
    """ASCII, so that every font has the glyphs, with the dollar of mathtext escaped."""
    return text.encode("ascii", errors="backslashreplace").decode().replace("$", r"\$")


def figure_title(model: ModelInfo, text: str, limit: int = 36) -> str:
    """The model's name and what is shown."""
    name = model["name"]
    if len(name) > limit:  # the end of a path says most
        name = name.rstrip("/").rsplit("/", 1)[-1]
    name = name if len(name) <= limit else name[: limit - 3] + "..."
    return figure_text(f"{name}: {text}")


def figure_token(token: str) -> str:
    """A token as a label of at most 16 characters."""
    return figure_text(words.ascii_label(token, 16))


def _top(layer: LayerStats, rank: int, field: str) -> float:
    return layer["top"][rank][field] if rank < len(layer["top"]) else math.nan


def positive(values: Sequence[float | None]) -> np.ndarray:
    """Floats for a logarithmic axis: what is not positive and finite becomes a gap."""
    array = np.array([math.nan if v is None else v for v in values], dtype=float)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)


def layer_ticks(axes: Axes, index: Sequence[int]) -> None:
    """Layers as whole numbers on the x axis."""
    axes.set_xlim(index[0] - 0.5, index[-1] + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=12, min_n_ticks=1))


def _mark_spikes(
    axes: Any,
    activation_map: ActivationMap,
    heights: np.ndarray,
    places: Sequence[tuple[int, int]],
    top: float,
) -> None:
    """Redraws each massive activation as a needle, and names the tallest of each dimension."""
    tallest: dict[int, tuple[float, float, int]] = {}
    owner: dict[int, int] = {}
    for position, dim in places:
        column = map_bin(activation_map, dim)
        x, height = float(activation_map.first_dim[column]), float(heights[position, column])
        axes.plot([x, x], [position, position], [0, height], color=ORANGE, linewidth=1.8, zorder=2)
        if owner.setdefault(column, dim) == dim and height > tallest.get(dim, (0.0,))[0]:
            tallest[dim] = (height, x, position)
    named = sorted(tallest.items(), key=lambda item: -item[1][0])[:MAX_NAMES]
    for dim, (height, x, position) in named:
        if height < MIN_HEIGHT * top:
            break
        axes.text(
            x, position, height + 0.02 * top, f"dim {dim}",
            color=ORANGE, ha="center", va="bottom", fontsize=8, fontweight="bold", zorder=3,
        )


def _token_ticks(tokens: int, massive: Sequence[int], spread: int = 6) -> list[int]:
    """Massive positions, then evenly spread ones wherever they do not touch those before."""
    gap = max(tokens // 10, 1)
    ticks: list[int] = []
    for position in [*massive, *np.linspace(0, tokens - 1, spread).astype(int).tolist()]:
        if all(abs(position - other) >= gap for other in ticks):
            ticks.append(position)
    return sorted(ticks)


def far_apart(values: Sequence[float], factor: float = 30.0) -> bool:
    """Whether a linear axis would flatten the smallest value into the zero line."""
    sizes = [abs(v) for v in values if math.isfinite(v)]
    return bool(sizes) and max(sizes) > factor * min(sizes)


def _trajectory(axes: Axes, record: MassiveRecord, color: str) -> None:
    values = np.array([math.nan if v is None else v for v in record["trajectory"]], dtype=float)
    relaxed = "" if record["strict"] else " (relaxed)"
    writer, remover = record["written_by"], record["removed_by"]
    label = (
        f"dim {record['dim']}{relaxed}: written by {words.sublayer(writer)} "
        f"({words.number(writer['value'])})"
    )
    if remover is None:
        label += f", {words.unremoved(record)}"
    else:
        label += f", removed by {words.sublayer(remover)} ({words.number(remover['value'])})"
    style = "-" if record["strict"] else (0, (4, 2))
    axes.plot(
        np.arange(len(values)), values, color=color, linestyle=style, marker=".", label=label
    )
    written = _value_at(values, max(writer["layer"], 0), writer["value"])
    _mark(axes, max(writer["layer"], 0), written, WRITTEN, color)
    if remover is not None:
        end = record["last_layer"]
        removed = _value_at(values, remover["layer"], 0.0)
        axes.plot(
            [end, remover["layer"]], [_value_at(values, end, math.nan), removed],
            color=color, linestyle=":", linewidth=1,
        )
        _mark(axes, remover["layer"], removed, REMOVED, color)


def _value_at(values: np.ndarray, layer: int, otherwise: float) -> float:
    return float(values[layer]) if np.isfinite(values[layer]) else otherwise


def _mark(axes: Axes, layer: int, value: float, marker: str, color: str) -> None:
    axes.plot(
        layer, value, marker=marker, markersize=8, color=color,
        markeredgecolor="white", linestyle="none", zorder=3, clip_on=False,
    )
