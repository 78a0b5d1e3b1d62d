"""The charts of `massact compare`: validation losses, layers, emergence and interventions."""

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from jax_massact.report.chart import (
    PALETTE,
    Axis,
    Chart,
    Note,
    Panel,
    Rule,
    Series,
    floats,
    layers,
)
from jax_massact.studies.changes import CHANGES, ORIGINAL
from jax_massact.studies.compare.run import Comparison, Group, RunRecord

FIGURES = ("validation_loss", "training", "layers", "emergence", "order", "interventions")
PANELS = {
    "top1": "top-1 magnitude",
    "ratio": "top-1 / median",
    "kurtosis": "kurtosis",
    "sink_rate": "sink rate",
}

Dash = Literal["-", "--", ":"]
LOOKS: tuple[tuple[Dash, str], ...] = (("-", "o"), ("--", "s"), (":", "D"))


class Look(NamedTuple):
    """How a group is drawn, and what it is called."""

    name: str
    color: str
    dash: Dash
    marker: str


# What emerges, in words; the thresholds are those of `train.watch.emergence`.
EMERGING = {
    "sink_rate": "sink rate", "value_drain": "value drain", "top1": "top-1 magnitude",
    "kurtosis": "kurtosis", "ratio": "top-1 / median", "relaxed": "relaxed", "strict": "strict",
}


def charts(result: Comparison) -> list[Chart]:
    """All of them, in reading order; interventions where any were made."""
    some = [intervention_chart(result)] if intervened(result) else []
    return [
        validation_chart(result), training_chart(result), layer_chart(result),
        emergence_chart(result), order_chart(result), *some,
    ]


def validation_chart(result: Comparison) -> Chart:
    """The validation loss of every run, with its standard error over the evaluation batches."""
    lines = []
    for index, (group, look) in enumerate(_looks(result)):
        for offset, run in zip(_spread(len(group["runs"])), group["runs"], strict=True):
            error = (run["validation_std"] or 0.0) / math.sqrt(len(run["validation_losses"]))
            lines.append(Series("", [index + offset], [run["validation_loss"]], look.color, "",
                                "o", error=[error]))
    title = "validation loss, standard error over batches"
    return _of_groups(result, "validation_loss", title, lines, "validation loss (nats)", 1.1)


def training_chart(result: Comparison) -> Chart:
    """Loss, learning rate and norm of the gradient over training, mean over seeds."""
    titles = {"loss": "loss of the batch (nats)", "lr": "learning rate",
              "grad_norm": "norm of the gradient"}

    def panel(name: str) -> Panel:
        lines = [
            _band(look.name, [run["training"][name] for run in group["runs"]],
                  group["runs"][0]["training"]["step"], look)
            for group, look in _looks(result)
        ]
        scale = "log" if name == "grad_norm" else "linear"
        return Panel(lines, x=Axis("step", whole=True), y=Axis(scale=scale), name=name,
                     title=titles[name])

    title = "over training"
    return Chart("training", title, title, [panel(name) for name in titles], size=(9.6, 3.4))


def order_chart(result: Comparison) -> Chart:
    """Which comes first: the step at which each quantity crossed its threshold, of every run."""
    groups = _looks(result)
    items: list[Series | Note] = []
    for (group, look), shift in zip(groups, _spread(len(groups)), strict=True):
        x, y = [], []
        for place, name in enumerate(EMERGING):
            for run in group["runs"]:
                if (step := run["emergence"].get(name)) is not None:
                    x.append(place + shift)
                    y.append(step)
        items.append(Series(look.name, x, y, look.color, "", look.marker))
    ticks = tuple(EMERGING.values())
    panel = Panel(items, x=Axis(ticks=ticks, range=(-0.5, len(ticks) - 0.5)),
                  y=Axis("first step over the threshold", zero=True))
    title = "what emerges first"
    return Chart("order", title, title, [panel], size=(9.6, 3.6))


def layer_chart(result: Comparison) -> Chart:
    """Top-1, ratio, kurtosis and sink rate of every layer at the last step, mean over seeds."""
    depth = max(len(run["layers"]["top1"]) for group in result["groups"] for run in group["runs"])

    def panel(name: str) -> Panel:
        lines = [_band(look.name, [run["layers"][name] for run in group["runs"]],
                       None, look, look.marker) for group, look in _looks(result)]
        return _panel(name, lines, layers(depth))

    return _four("layers", "after the last step, by layer", panel)


def emergence_chart(result: Comparison) -> Chart:
    """The same over training, of the layer where each is largest; dashed: when it has emerged."""
    definition = result["definition"]
    marks = {"top1": definition["strict"]["magnitude"], "ratio": definition["relaxed"]["ratio"]}

    def panel(name: str) -> Panel:
        lines: list[Series | Rule] = [
            _band(look.name, [run["curves"][name] for run in group["runs"]],
                  group["runs"][0]["curves"]["step"], look)
            for group, look in _looks(result)
        ]
        if name in marks:
            lines.append(Rule(marks[name]))
        return _panel(name, lines, Axis("step", whole=True))

    return _four("emergence", "over training, of the layer where each is largest", panel)


def intervention_chart(result: Comparison) -> Chart:
    """The loss of every run's held-out rows: unchanged, and with its massive activations changed.

    A run without massive activations has the first alone.
    """
    kinds = {"original": ORIGINAL} | CHANGES
    items: list[Series | Note] = []
    for (kind, change), offset in zip(kinds.items(), _spread(len(kinds)), strict=True):
        x, y = [], []
        for index, group in enumerate(result["groups"]):
            for run in group["runs"]:
                if kind in (loss := losses(run)):
                    x.append(index + offset)
                    y.append(loss[kind])
        items.append(Series(change.short, x, y, change.color, "", "o"))
    items += [Note(index, "nothing\nmassive") for index, group in enumerate(result["groups"])
              if not changed([group]) and any(map(losses, group["runs"]))]
    title = "massive activations changed"
    return _of_groups(result, "interventions", title, items, "loss of held-out rows (nats)", 1.5)


def intervened(result: Comparison) -> bool:
    """Whether interventions were made on any run."""
    return any(run["interventions"] is not None for g in result["groups"] for run in g["runs"])


def changed(groups: Sequence[Group]) -> bool:
    """Whether there was anything to intervene on in any run."""
    return any(change is not None for group in groups for change in group["loss_change"]["zero"])


def losses(run: RunRecord) -> dict[str, float]:
    """The losses of a run's interventions; without targets, nothing but the original's."""
    found = run["interventions"]
    return {} if found is None else {name: x["mean"] for name, x in found["loss"].items()}


def names(result: Comparison, limit: int = 24) -> list[str]:
    """What each group is called: the end of its folder's name that no other group has."""
    paths = [group["name"].rstrip("/").split("/") for group in result["groups"]]
    ends: list[str] = []
    for parts in range(1, 1 + max(map(len, paths))):
        ends = ["/".join(path[-parts:]) for path in paths]
        if len(set(ends)) == len(ends):
            break
    return [end if len(end) <= limit else end[: limit - 3] + "..." for end in ends]


def _of_groups(
    result: Comparison, name: str, title: str, items: Sequence[Series | Note], y: str, width: float
) -> Chart:
    """One place a group on the x axis."""
    ticks = tuple(names(result))
    x = Axis(ticks=ticks, range=(-0.5, len(ticks) - 0.5))
    return Chart(name, title, title, [Panel(items, x=x, y=Axis(y))],
                 size=(2.6 + width * len(ticks), 3.4))


def _four(name: str, title: str, panel) -> Chart:
    return Chart(name, title, title, [panel(name) for name in PANELS], size=(7.2, 5.6), columns=2)


def _panel(name: str, items: Sequence[Series | Rule], x: Axis) -> Panel:
    y = Axis(range=(-0.03, 1.03)) if name == "sink_rate" else Axis(scale="log")
    return Panel(items, x=x, y=y, name=name, title=PANELS[name])


def _band(
    name: str, rows: Sequence[Sequence[float | None]], x: Sequence[float | None] | None,
    look: Look, marker: str = "",
) -> Series:
    """The mean over runs, and a band between the smallest and the largest.

    Runs of other lengths are cut to the shortest.
    """
    length = min(map(len, rows))
    values = np.array([floats(row[:length]) for row in rows])
    places = range(length) if x is None else [float(step or 0) for step in x[:length]]
    line = Series(name, places, values.mean(0).tolist(), look.color, look.dash, marker)
    if len(rows) == 1:
        return line
    low, high = values.min(0).tolist(), values.max(0).tolist()
    return dataclasses.replace(line, low=low, high=high)


def _looks(result: Comparison) -> list[tuple[Group, Look]]:
    """Each group with its look; beyond the palette's colors groups get other dashes and marks."""
    looks = itertools.cycle(itertools.product(LOOKS, PALETTE))
    return [(group, Look(name, color, dash, marker)) for group, name, ((dash, marker), color)
            in zip(result["groups"], names(result), looks, strict=False)]


def _spread(count: int) -> np.ndarray:
    return (np.arange(count) - (count - 1) / 2) * min(0.15, 0.6 / count)
