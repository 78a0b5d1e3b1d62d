"""The charts of `massact intervene`: perplexities as bars, and the values once set to zero."""

import math
from collections.abc import Sequence

from jax_massact.report import words
from jax_massact.report.chart import (
    PALETTE,
    Axis,
    Bars,
    Chart,
    Panel,
    Rule,
    Series,
    layers,
    titled,
    value_axis,
)
from jax_massact.studies.changes import change_of
from jax_massact.studies.interventions_result import InterveneResult, Trajectory

FIGURES = ("perplexity", "after_zero")
LEAST = 1.0  # no perplexity is less
PLACES = 4  # trajectories that are shown at first


def charts(result: InterveneResult) -> list[Chart]:
    """All of them, in reading order; the second one where anything was changed."""
    some = [] if result["after_zero"] is None else [trajectory_chart(result)]
    return [perplexity_chart(result), *some]


def perplexity_chart(result: InterveneResult) -> Chart:
    """Perplexity of every intervention, after table 3 of Sun et al. (2024)."""
    values = list(result["perplexity"].values())
    changes = [change_of(name) for name in result["perplexity"]]
    ends, high = bar_ends(values)
    losses = [result["loss"][name] for name in result["perplexity"]]
    sequences = result["data"]["sequences"]
    intervals = [interval(end, loss["std"] / math.sqrt(sequences), high) if end == value
                 else (end, end) for value, end, loss in zip(values, ends, losses, strict=True)]
    bars = Bars([c.words for c in changes], ends, intervals, [words.number(v) for v in values],
                [c.color for c in changes])
    axis = Axis(f"perplexity of {result['data']['scored_tokens']:,} held-out tokens", scale="log",
                range=(LEAST, high))
    guess = result["model"]["vocab_size"]
    items = [bars, *[Rule(guess, "x", f"uniform guess: {guess:,}")] * (guess < high)]
    return Chart(
        "perplexity", titled(result["model"]["name"], f"interventions{_relaxed(result)}"),
        "Perplexity of each intervention", [Panel(items, x=axis, height=110 + 42 * len(values))],
        size=(6.4, 1.0 + 0.4 * len(values)),
    )


def bar_ends(values: Sequence[float]) -> tuple[list[float], float]:
    """Where bars on a logarithmic axis end, and the end of the axis.

    What is not finite gets a bar longer than all others: its label says what it is.
    """
    finite = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    top = 10 * max(finite)
    return [v if math.isfinite(v) and v > 0 else top for v in values], 6 * top


def interval(value: float, error: float, end: float) -> tuple[float, float]:
    """One standard error of the loss to either side, as perplexities, far from the axis's end."""
    if not math.isfinite(error):
        return value, value
    factor = math.exp(min(error, math.log(end / value) / 2))
    return max(LEAST, value / factor), value * factor


def trajectory_chart(result: InterveneResult) -> Chart:
    """The value at the changed places, layer by layer: original, and after it was set to zero."""
    after = result["after_zero"]
    assert after is not None

    def size(trajectory: Trajectory) -> float:
        return max((abs(v) for v in trajectory["original"] if math.isfinite(v)), default=0.0)

    ranked = sorted(after["trajectories"], key=size, reverse=True)
    depth = result["model"]["depth"]
    lines: list[Series | Rule] = []
    for i, t in enumerate(ranked):
        color, name, shown = PALETTE[i % len(PALETTE)], f"dim {t['dim']}", i < PLACES
        lines.append(Series(f"{name}, original", range(len(t["original"])), t["original"], color,
                            "-", "o", shown=shown))
        lines.append(Series(f"{name}, set to zero", range(len(t["zero"])), t["zero"], color, "--",
                            "s", hollow=True, shown=shown))
    edited = [t["layer"] for t in result["targets"]]
    first, last = min(edited), max(edited)
    lines.append(Rule(first, "x", f"edit at layer {words.layer_span(first, last)}"))
    lines += [Rule(last, "x")] * (last > first)
    linear = result["definition"]["relaxed"]["magnitude"]
    axis = value_axis("mean value at the changed places", map(size, ranked[:PLACES]), linear)
    some = "" if len(ranked) <= PLACES else f" ({PLACES} largest of {len(ranked)})"
    return Chart(
        "after_zero",
        titled(result["model"]["name"], f"after zeroing{_verdict(result)}{_relaxed(result)}{some}"),
        "The value at the changed places, layer by layer, with and without the edit",
        [Panel(lines, x=layers(depth), y=axis)], size=(6.4, 3.4), legend="right",
    )


def _verdict(result: InterveneResult) -> str:
    after = result["after_zero"]
    return f": {after['verdict']}" if after is not None else ""


def _relaxed(result: InterveneResult) -> str:
    return " (relaxed only)" if words.strength(result["massive"]) == "relaxed" else ""
