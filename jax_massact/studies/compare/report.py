"""Runs side by side: one table and four figures, from the plain result of a comparison."""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from rich.console import Console, RenderableType
from rich.console import Group as Lines
from rich.table import Table
from rich.text import Text

from jax_massact.report import words
from jax_massact.report.figures import save_figures
from jax_massact.report.picture import GREY, LAYER_AXIS, PALETTE
from jax_massact.studies.changes import CHANGES, ORIGINAL
from jax_massact.studies.compare.run import (
    Comparison,
    Group,
    RunRecord,
)

PANELS = {
    "top1": "top-1 magnitude",
    "ratio": "top-1 / median",
    "kurtosis": "kurtosis",
    "sink_rate": "sink rate",
}


def comparison_table(result: Comparison, *, ascii_only: bool = False) -> RenderableType:
    """One column a variant: validation loss and its spread, and what became of the activations.

    Args:
      ascii_only: spell out every character that is not ASCII.
    """
    groups, plus_minus = result["groups"], "+-" if ascii_only else "±"
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold", show_edge=False)
    table.add_column("")
    for group in groups:
        table.add_column(_short(group["name"]), justify="right")
    row = lambda label, cell: table.add_row(label, *(cell(group) for group in groups))
    seeds = _seeds(result)
    if seeds > 1:
        row("seeds", lambda group: str(len(group["runs"])))
    row("validation loss", lambda group: _mean_and_std(group, "validation_loss", plus_minus, 4))
    row("  std over batches", lambda group: words.number(_batch_spread(group)))
    row("  minus the first", lambda group: _difference(group, plus_minus))
    for name, label in (PANELS | {"value_drain": "value drain"}).items():
        row(label, lambda group, name=name: _mean_and_std(group, name, plus_minus))
    row("extra key / sink token", _to_extra)
    for name in ("ratio", "sink_rate"):
        row(f"{PANELS[name]} emerged", lambda group, name=name: _emerged(group, name))
    intervened = _intervened(result)
    if intervened:
        row("massive", _massive)
    if _changed(groups):
        row("  loss unchanged", lambda group: _loss_unchanged(group, plus_minus))
        for kind, change in CHANGES.items():
            row(f"  {change.short}", lambda group, kind=kind: _loss_change(group, kind, plus_minus))
    notes = [
        "Loss in nats per token; minus the first: on the same batches, with its standard error.",
        f"{plus_minus} elsewhere: standard deviation over seeds." if seeds > 1 else "One seed.",
        "Activations: after the last step, of the layer where each is largest (drain: smallest).",
        f"Sink rate: share of heads with mean attention to the first token above "
        f"{result['sink_epsilon']:g}, first {result['sink_tokens']} tokens; extra key / sink "
        "token: the same of those.",
        "Emerged: the step of the first measurement over the threshold, for each seed.",
    ]
    if _changed(groups):
        notes.append(
            "Massive: in how many runs; what changing these activations where they first appear "
            "adds to the loss of held-out rows. Control: as many ordinary ones set to zero. A "
            "dash: there is nothing to intervene on."
        )
    elif intervened:
        notes.append("Massive: none, strict or relaxed; there is nothing to intervene on.")
    return Lines(table, Text("\n".join(notes), style="dim"))


def show(result: Comparison, console: Console) -> None:
    """Prints the table."""
    console.print(comparison_table(result, ascii_only=console.options.ascii_only))


def figures(result: Comparison, *, folder: Path) -> list[Path]:
    """Draws `validation_loss`, `layers`, `emergence` and, if any were made, `interventions`.

    Each as PNG and PDF.

    Raises:
      OSError: the folder cannot be made or written to.
    """
    drawings = {
        "validation_loss": lambda: draw_validation(result),
        "layers": lambda: draw_layers(result),
        "emergence": lambda: draw_emergence(result),
    }
    if _intervened(result):
        drawings["interventions"] = lambda: draw_interventions(result)
    return save_figures(drawings, folder)


def draw_validation(result: Comparison) -> Figure:
    """The validation loss of every run, with its standard error over the evaluation batches."""
    groups = result["groups"]
    figure = Figure(figsize=(1.6 + 1.1 * len(groups), 3.2), layout="constrained")
    axes = figure.subplots()
    for index, (group, color) in enumerate(zip(groups, _colors(groups), strict=True)):
        for offset, run in zip(_spread(len(group["runs"])), group["runs"], strict=True):
            losses = run["validation_losses"]
            error = (run["validation_std"] or 0.0) / math.sqrt(len(losses))
            axes.errorbar(index + offset, run["validation_loss"], error, color=color, fmt="o",
                          capsize=3)
    axes.set_xticks(range(len(groups)), [_short(group["name"]) for group in groups])
    axes.set(xlim=(-0.5, len(groups) - 0.5), ylabel="validation loss (nats)")
    axes.grid(visible=False, axis="x")
    axes.set_title("validation loss, standard error over batches")
    return figure


def draw_layers(result: Comparison) -> Figure:
    """Top-1, ratio, kurtosis and sink rate of every layer at the last step, mean over seeds."""
    figure, panels = _panels()
    for name, axes in panels.items():
        for group, color in zip(result["groups"], _colors(result["groups"]), strict=True):
            values = _array([run["layers"][name] for run in group["runs"]])
            layers = np.arange(values.shape[1])
            _line(axes, layers, values, color, _short(group["name"]), marker="o")
        axes.set_xlabel(LAYER_AXIS)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    return _legend(figure, panels)


def draw_emergence(result: Comparison) -> Figure:
    """The same over training, of the layer where each is largest; dashed: when it has emerged."""
    figure, panels = _panels()
    definition = result["definition"]
    marks = {"top1": definition["strict"]["magnitude"], "ratio": definition["relaxed"]["ratio"]}
    for name, axes in panels.items():
        for group, color in zip(result["groups"], _colors(result["groups"]), strict=True):
            values = _array([run["curves"][name] for run in group["runs"]])
            steps = np.asarray(group["runs"][0]["curves"]["step"])
            _line(axes, steps, values, color, _short(group["name"]))
        low, high = axes.get_ylim()
        if name in marks and low < marks[name] < high:
            axes.axhline(marks[name], color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), zorder=1)
        axes.set_xlabel("step")
    return _legend(figure, panels)


def draw_interventions(result: Comparison) -> Figure:
    """The loss of every run's held-out rows: unchanged, and with its massive activations changed.

    A run without massive activations has the first alone.
    """
    groups = result["groups"]
    kinds = {"original": ORIGINAL} | CHANGES
    figure = Figure(figsize=(2.6 + 1.5 * len(groups), 3.4), layout="constrained")
    axes = figure.subplots()
    for index, group in enumerate(groups):
        for run in group["runs"]:
            losses = _losses(run)
            for kind, offset in zip(kinds, _spread(len(kinds)), strict=True):
                if kind in losses:
                    axes.plot(index + offset, losses[kind], color=kinds[kind].color, marker="o",
                              markersize=5, alpha=0.8)
        if not _changed([group]):
            axes.annotate("nothing\nmassive", (index, 0.97), color=GREY, ha="center", va="top",
                          xycoords=("data", "axes fraction"), fontsize=8)
    axes.set_xticks(range(len(groups)), [_short(group["name"]) for group in groups])
    axes.set(xlim=(-0.5, len(groups) - 0.5), ylabel="loss of held-out rows (nats)")
    axes.margins(y=0.25)
    axes.grid(visible=False, axis="x")
    axes.set_title("massive activations changed")
    keys = [Line2D([], [], color=c.color, marker="o", linestyle="") for c in kinds.values()]
    names = [change.short for change in kinds.values()]
    figure.legend(keys, names, loc="outside lower center", ncols=len(kinds), fontsize=8)
    return figure


def _panels() -> tuple[Figure, dict[str, Axes]]:
    figure = Figure(figsize=(7.2, 5.2), layout="constrained")
    grid = figure.subplots(2, 2)
    panels = dict(zip(PANELS, grid.flat, strict=True))
    for name, axes in panels.items():
        axes.set_title(PANELS[name])
        if name == "sink_rate":
            axes.set_ylim(-0.03, 1.03)
        else:
            axes.set_yscale("log")
    return figure, panels


def _legend(figure: Figure, panels: dict[str, Axes]) -> Figure:
    handles, labels = panels["top1"].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def _line(
    axes: Axes, x: np.ndarray, values: np.ndarray, color: str, label: str, marker: str | None = None
) -> None:
    """The mean over runs, and a band between the smallest and the largest."""
    mean = values.mean(0)
    axes.plot(x, mean, color=color, label=label, marker=marker)
    if len(values) > 1:
        axes.fill_between(
            x, values.min(0), values.max(0), color=color, alpha=0.15, linewidth=0
        )


def _array(rows: Sequence[Sequence[float | None]]) -> np.ndarray:
    """[runs, points]; runs of other lengths are cut to the shortest."""
    length = min(map(len, rows))
    return np.array([[math.nan if v is None else v for v in row[:length]] for row in rows])


def _colors(groups: Sequence[Group]) -> list[str]:
    return [PALETTE[i % len(PALETTE)] for i in range(len(groups))]


def _spread(count: int) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * min(0.15, 0.6 / count)


def _short(name: str, limit: int = 24) -> str:
    name = name.rstrip("/").rsplit("/", 1)[-1]
    return name if len(name) <= limit else name[: limit - 3] + "..."


def _seeds(result: Comparison) -> int:
    return max(len(group["runs"]) for group in result["groups"])


def _mean_and_std(group: Group, name: str, plus_minus: str, digits: int | None = None) -> str:
    mean, std = group["mean"][name], group["std"][name]
    text = words.number(mean) if digits is None or mean is None else f"{mean:.{digits}f}"
    return text if std is None else f"{text} {plus_minus} {std:.2g}"


def _batch_spread(group: Group) -> float | None:
    stds = [run["validation_std"] for run in group["runs"]]
    known = [std for std in stds if std is not None]
    return sum(known) / len(known) if known else None


def _difference(group: Group, plus_minus: str) -> str:
    difference = group["difference"]
    if difference is None:
        return "-"
    mean, error = difference
    return f"{mean:+.4f}" + ("" if error is None else f" {plus_minus} {error:.2g}")


def _to_extra(group: Group) -> str:
    return words.number(max(group["mean"][n] or 0.0 for n in ("extra_rate", "sink_token_rate")))


def _intervened(result: Comparison) -> bool:
    return any(run["interventions"] is not None for g in result["groups"] for run in g["runs"])


def _changed(groups: Sequence[Group]) -> bool:
    """Whether there was anything to intervene on in any run."""
    return any(change is not None for group in groups for change in group["loss_change"]["zero"])


def _losses(run: RunRecord) -> dict[str, float]:
    """The losses of a run's interventions; without targets, nothing but the original's."""
    found = run["interventions"]
    return {} if found is None else {name: x["mean"] for name, x in found["loss"].items()}


def _massive(group: Group) -> str:
    """`none`, `strict 3/3`, `strict 1/3, relaxed 1/3`."""
    found = [run["interventions"] for run in group["runs"]]
    strengths = [words.strength(one["massive"]) for one in found if one is not None]
    parts = [f"{name} {strengths.count(name)}/{len(found)}" for name in ("strict", "relaxed")
             if name in strengths]
    return ", ".join(parts) or "none"


def _loss_unchanged(group: Group, plus_minus: str) -> str:
    losses = [loss["original"] for run in group["runs"] if (loss := _losses(run))]
    return _with_spread(losses, plus_minus, ".4f")


def _loss_change(group: Group, kind: str, plus_minus: str) -> str:
    changes = [change for change in group["loss_change"][kind] if change is not None]
    return _with_spread(changes, plus_minus, "+.4f")


def _with_spread(values: list[float], plus_minus: str, form: str) -> str:
    if not values:
        return "-"
    text = f"{statistics.fmean(values):{form}}"
    return text if len(values) == 1 else f"{text} {plus_minus} {statistics.stdev(values):.2g}"


def _emerged(group: Group, name: str) -> str:
    steps = [run["emergence"][name] for run in group["runs"]]
    return ", ".join("-" if step is None else f"{step:,}" for step in steps)
