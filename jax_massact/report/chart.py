"""One description of a chart; `plotly_painter` draws it on the page, `matplotlib_painter` on paper.

The painters escape every text for their library: a name may hold `$`, `<` or anything else.
The colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
AMBER, GREY = "#E69F00", "#6b7280"
PALETTE = (BLUE, ORANGE, GREEN, PINK, AMBER, "#56B4E9", "#000000", "#8c8c00")
MAX_NAMES, MIN_HEIGHT = 4, 0.05  # spikes of a surface that get a name: number, share of the tallest

Numbers = Sequence[float | None]


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One axis of a panel.

    Attributes:
      title: what is measured, with its unit.
      scale: `log` leaves out what is not positive; `symlog` is linear up to `linear`.
      range: the two ends; None: as the data needs.
      ticks: names at 0, 1, 2 and so on, in place of numbers.
      whole: whether only whole numbers are marked, as for layers and steps.
      zero: whether 0 is always shown, with a line.
      linear: where `symlog` becomes logarithmic.
    """

    title: str = ""
    scale: Literal["linear", "log", "symlog"] = "linear"
    range: tuple[float, float] | None = None
    ticks: tuple[str, ...] = ()
    whole: bool = False
    zero: bool = False
    linear: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Series:
    """A line, or marks alone.

    Attributes:
      name: in the legend; empty: no entry of its own.
      y: None and what is not finite are gaps.
      dash: `-`, `--`, `:`, or nothing for marks alone.
      marker: `o s D ^ X .` as in matplotlib, or nothing; `hollow`: not filled.
      low, high: the edges of a band around the line.
      error: half the length of an error bar at each point.
      hover: text beside the number on the page, one for each point.
      about: what the legend adds on paper, where nothing can be pointed at.
      group: series of one group are hidden and shown together on the page.
      shown: False: on the page behind its legend entry, on paper not at all.
    """

    name: str
    x: Sequence[float]
    y: Numbers
    color: str
    dash: Literal["-", "--", ":", ""] = "-"
    marker: str = ""
    hollow: bool = False
    low: Numbers | None = None
    high: Numbers | None = None
    error: Sequence[float] | None = None
    hover: Sequence[str] | None = None
    about: str = ""
    group: str = ""
    shown: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class Bars:
    """Horizontal bars, the first on top, each with its name, its length and a text at its end.

    Attributes:
      intervals: the two ends of each bar's error bar.
    """

    names: Sequence[str]
    values: Sequence[float]
    intervals: Sequence[tuple[float, float]]
    texts: Sequence[str]
    colors: Sequence[str]


@dataclasses.dataclass(frozen=True, slots=True)
class Heat:
    """A square map of numbers in [0, 1]: rows and columns share their names.

    Attributes:
      values: [N, N]; NaN is left blank.
      marked: whose names stand out.
      row, column, value: what these are called.
    """

    values: np.ndarray
    names: Sequence[str]
    marked: Sequence[bool]
    row: str
    column: str
    value: str


@dataclasses.dataclass(frozen=True, slots=True)
class Rule:
    """A dashed line across the panel at one value of an axis."""

    at: float
    axis: Literal["x", "y"] = "y"
    text: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Note:
    """A grey text at the top of the panel, above `x`."""

    x: float
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Panel:
    """One pair of axes and what is drawn in it.

    Attributes:
      items: drawn in this order.
      name: tells the panels of a chart apart.
      title: above the panel.
      empty: the text where nothing can be drawn.
      height: pixels on the page.
    """

    items: Sequence[Series | Bars | Heat | Rule | Note]
    x: Axis = Axis()
    y: Axis = Axis()
    name: str = ""
    title: str = ""
    empty: str = ""
    height: int = 380

    def of(self, kind: type) -> list:
        """The items of one kind."""
        return [item for item in self.items if isinstance(item, kind)]


@dataclasses.dataclass(frozen=True, slots=True)
class Chart:
    """Panels that belong together: one file on paper, one plot each on the page.

    Attributes:
      name: of its files.
      title: on paper.
      label: what a screen reader says of it.
      size: inches on paper.
      columns: panels beside each other on paper.
      beside: whether the panels stand beside each other on the page.
      legend: where it stands on paper.
    """

    name: str
    title: str
    label: str
    panels: Sequence[Panel]
    size: tuple[float, float] = (6.4, 3.6)
    columns: int = 3
    beside: bool = False
    legend: Literal["below", "right"] = "below"


@dataclasses.dataclass(frozen=True, slots=True)
class Spike:
    """A place of a surface that is marked and named, from layer `first` to `last`."""

    row: int
    column: int
    name: str
    first: int
    last: int


@dataclasses.dataclass(frozen=True, slots=True)
class Surface:
    """Heights over rows and bins of a width: every layer on the page, one of them on paper.

    Attributes:
      heights: [layers, rows, bins], not negative.
      first: int [bins]: a bin reaches from its own first column to the next one's, or to `width`.
      rows: their names.
      layer: the one on paper, and first on the page.
      spikes: where several share a bin, the first of them has its name there.
      axes: what columns, rows and heights are called.
      column: what one column is called.
    """

    name: str
    title: str
    label: str
    heights: np.ndarray
    first: np.ndarray
    width: int
    rows: Sequence[str]
    layer: int
    spikes: Sequence[Spike]
    axes: tuple[str, str, str]
    column: str


def layers(depth: int, title: str = "layer (residual stream after the block, from 0)") -> Axis:
    """The axis of layers 0 to depth - 1."""
    return Axis(title, range=(-0.5, depth - 0.5), whole=True)


def titled(name: str, text: str, limit: int = 36) -> str:
    """`model: text`, of a long path its end."""
    if len(name) > limit:
        name = name.rstrip("/").rsplit("/", 1)[-1]
    name = name if len(name) <= limit else name[: limit - 3] + "..."
    return f"{name}: {text}"


def floats(values: Iterable[float | None], *, log: bool = False) -> np.ndarray:
    """Floats with NaN for every gap: None, what is not finite and, with `log`, not positive."""
    array = np.array([math.nan if v is None else v for v in values], dtype=float)
    return np.where(np.isfinite(array) & ((array > 0) | (not log)), array, np.nan)


def value_axis(title: str, values: Iterable[float], linear: float) -> Axis:
    """An axis with 0 on it, `symlog` if a linear one would flatten the smallest value onto 0."""
    sizes = [abs(v) for v in values if math.isfinite(v)]
    far_apart = bool(sizes) and max(sizes) > 30 * min(sizes)
    return Axis(title, scale="symlog" if far_apart else "linear", zero=True, linear=linear or 1)


def tallest_spikes(surface: Surface, layer: int) -> list[Spike]:
    """The spikes that are named at this layer: the tallest of each name, a few that stand out."""
    owner: dict[int, str] = {}
    tallest: dict[str, Spike] = {}
    height = lambda spike: float(surface.heights[layer, spike.row, spike.column])
    for spike in surface.spikes:
        if not spike.first <= layer <= spike.last:
            continue
        if owner.setdefault(spike.column, spike.name) != spike.name:
            continue
        if spike.name not in tallest or height(spike) > height(tallest[spike.name]):
            tallest[spike.name] = spike
    named = sorted(tallest.values(), key=height, reverse=True)[:MAX_NAMES]
    return [spike for spike in named if height(spike) >= MIN_HEIGHT * height(named[0])]
