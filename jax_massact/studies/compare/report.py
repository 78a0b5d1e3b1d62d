"""Runs side by side, in one table."""

import statistics
from collections.abc import Callable, Sequence

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.page import Lines, Section, Table, render
from jax_massact.report.terminal import Sheet
from jax_massact.studies.changes import CHANGES
from jax_massact.studies.compare.figures import (
    EMERGING,
    FIGURES,
    PANELS,
    changed,
    charts,
    intervened,
    losses,
    names,
)
from jax_massact.studies.compare.rounding import KINDS
from jax_massact.studies.compare.run import Comparison, Group

__all__ = ["FIGURES", "charts", "page", "sections", "show"]


def show(result: Comparison, console: Console) -> None:
    """Prints one column a variant: validation loss and its spread, and the activations."""
    sheet = Sheet(console)
    for warning in result["warnings"]:
        sheet.headed("Warning", warning, "bold red")
    head = ("", *names(result))
    sheet.beside(head, _rows(result, sheet.plus_minus))
    for notice in result["notices"]:
        sheet.line(f"Note: {notice}")
    sheet.close(_notes(result, sheet.plus_minus))


def sections(result: Comparison) -> list[Section]:
    """The page, part by part."""
    by_name = {chart.name: chart for chart in charts(result)}
    warnings = [words.withheld(result["warnings"])] if result["warnings"] else []
    said = [*warnings, Lines([f"Note: {line}" for line in result["notices"]])]
    table = Table(("", *names(result)), _rows(result, "±"), text=("",))
    changes = [by_name[name] for name in ("interventions",) if name in by_name]
    return [
        Section("verdict", "Side by side", [*said, table, Lines(_notes(result, "±"), "soft")]),
        Section("losses", "Loss", [*_differences(result), by_name["validation_loss"],
                                   by_name["training"]]),
        Section("layers", "Activations by layer", [by_name["layers"]]),
        Section("emergence", "Emergence", [by_name["emergence"], by_name["order"],
                                           _emergence(result)]),
        *([Section("interventions", "Interventions", changes)] if changes else []),
        Section("runs", "Runs", [_run_table(result)]),
    ]


def page(result: Comparison) -> str:
    """The page as text."""
    seconds = sum(run["seconds"] for group in result["groups"] for run in group["runs"])
    return render("massact compare", ", ".join(names(result)), sections(result),
                  f"trained in {seconds:,.0f} s in all")


def _differences(result: Comparison) -> list[Table]:
    """The paired test of every variant against the first."""
    rows = []
    for group, name in zip(result["groups"], names(result), strict=True):
        if (d := group["difference"]) is not None:
            seeds = ", ".join(f"{x:+.4f}" for x in d["by_seed"].values()) or "-"
            interval = "-" if d["low"] is None else f"{d['low']:+.4f} to {d['high']:+.4f}"
            rows.append([name, f"{d['mean']:+.4f}", interval, seeds])
    head = ("", "mean", "95% interval, over batches", "by seed")
    caption = f"Validation loss minus that of {names(result)[0]}, on the same rows (nats)"
    return [Table(head, rows, text=("",), caption=caption)] if rows else []


def _emergence(result: Comparison) -> Table:
    rows = [
        [words, *(_emerged(group, name) for group in result["groups"])]
        for name, words in EMERGING.items()
    ]
    return Table(("", *names(result)), rows, text=("",), caption="Step of emergence, of every run")


def _run_table(result: Comparison) -> Table:
    head = ("run", "seed", "parameters", "steps", "tokens", "loss", "seconds", "tokens/s", "device",
            "versions")
    rows = [
        [run["folder"], str(run["seed"]), f"{run['parameters']:,}", f"{run['steps']:,}",
         f"{run['tokens']:,}", words.number(run["validation_loss"]), f"{run['seconds']:,.0f}",
         f"{run['tokens_per_second']:,.0f}", run["device"],
         ", ".join(f"{name} {version}" for name, version in run["versions"].items())]
        for group in result["groups"] for run in group["runs"]
    ]
    return Table(head, rows, text=("run", "device", "versions"))


def _rows(result: Comparison, plus_minus: str) -> list[list[str]]:
    groups = result["groups"]
    found: list[list[str]] = []

    def row(label: str, cell: Callable[[Group], str]) -> None:
        found.append([label, *map(cell, groups)])

    if _runs(result) > 1:
        row("runs", lambda group: str(len(group["runs"])))
        row("seeds", lambda group: str(len({run["seed"] for run in group["runs"]})))
    row("steps", lambda group: _each(group, "steps"))
    row("tokens", lambda group: _each(group, "tokens"))
    row("validation loss", lambda group: _mean_and_std(group, "validation_loss", plus_minus, 4))
    row("  std over batches", _batch_spread)
    row("  minus the first", lambda group: _difference(group, plus_minus))
    for name, label in (PANELS | {"value_drain": "value drain"}).items():
        row(label, lambda group, name=name: _mean_and_std(group, name, plus_minus))
    row("extra key / sink token", _to_extra)
    for name in ("ratio", "sink_rate"):
        row(f"{PANELS[name]} emerged", lambda group, name=name: _emerged(group, name))
    if intervened(result):
        row("massive", _massive)
    if changed(groups):
        row("  loss unchanged", lambda group: _loss_unchanged(group, plus_minus))
        for kind, change in CHANGES.items():
            row(f"  {change.short}", lambda group, kind=kind: _loss_change(group, kind, plus_minus))
    if _rounded(groups):
        row("rounding adds to loss", lambda group: "")
        for kind, about in KINDS.items():
            row(f"  {about.words}", lambda group, kind=kind: _with_spread(
                _known(group["rounding_change"][kind]), plus_minus, "+.4f"))
    return found


def _notes(result: Comparison, plus_minus: str) -> list[str]:
    several = _runs(result) > 1
    notes = [
        "Loss in nats per token; minus the first: on the same rows, with its standard error over "
        "batches; a dash: other rows, and so no difference.",
        f"{plus_minus} elsewhere: standard deviation over runs." if several else "One seed.",
        "Activations: after the last step, of the layer where each is largest (drain: smallest).",
        f"Sink rate: share of heads with mean attention to the first token above "
        f"{result['sink_epsilon']:g}, first {result['sink_tokens']} tokens; extra key / sink "
        "token: the same of those.",
        "Emerged: the step of the first measurement over the threshold, for each seed.",
    ]
    if changed(result["groups"]):
        notes.append(
            "Massive: in how many runs; what changing these activations where they first appear "
            "adds to the loss of held-out rows. Control: as many ordinary ones set to zero. A "
            "dash: there is nothing to intervene on."
        )
    elif intervened(result):
        notes.append("Massive: none, strict or relaxed; there is nothing to intervene on.")
    if _rounded(result["groups"]):
        notes.append("W8A8: weights in int8 with a scale for each output, activations in int8 with "
                     "one range for a sequence; fp8: e4m3; what it adds to the loss of the same "
                     "held-out rows.")
    return notes


def _runs(result: Comparison) -> int:
    return max(len(group["runs"]) for group in result["groups"])


def _mean_and_std(group: Group, name: str, plus_minus: str, digits: int | None = None) -> str:
    mean, std = group["mean"][name], group["std"][name]
    text = words.number(mean) if digits is None or mean is None else f"{mean:.{digits}f}"
    return text if std is None else f"{text} {plus_minus} {std:.2g}"


def _each(group: Group, field: str) -> str:
    """The number of each run, once where they all have the same."""
    numbers = [run[field] for run in group["runs"]]
    return ", ".join(f"{n:,}" for n in (numbers[:1] if len(set(numbers)) == 1 else numbers))


def _batch_spread(group: Group) -> str:
    """The mean over runs; batches of the same rows have no spread."""
    runs = [run for run in group["runs"] if run["validation_std"] is not None]
    if runs and all(len(set(run["validation_losses"])) == 1 for run in runs):
        return "same rows"
    spreads = [std for run in runs if (std := run["validation_std"]) is not None]
    return words.number(statistics.fmean(spreads) if spreads else None)


def _difference(group: Group, plus_minus: str) -> str:
    difference = group["difference"]
    if difference is None:
        return "-"
    error = difference["error"]
    return f"{difference['mean']:+.4f}" + ("" if error is None else f" {plus_minus} {error:.2g}")


def _to_extra(group: Group) -> str:
    return words.number(max(group["mean"][n] or 0.0 for n in ("extra_rate", "sink_token_rate")))


def _massive(group: Group) -> str:
    """`none`, `strict 3/3`, `strict 1/3, relaxed 1/3`; a dash where that was not measured."""
    found = [one for run in group["runs"] if (one := run["interventions"]) is not None]
    if not found:
        return "-"
    strengths = [words.strength(one["massive"]) for one in found]
    parts = [f"{name} {strengths.count(name)}/{len(found)}" for name in ("strict", "relaxed")
             if name in strengths]
    return ", ".join(parts) or "none"


def _loss_unchanged(group: Group, plus_minus: str) -> str:
    unchanged = [loss["original"] for run in group["runs"] if (loss := losses(run))]
    return _with_spread(unchanged, plus_minus, ".4f")


def _loss_change(group: Group, kind: str, plus_minus: str) -> str:
    return _with_spread(_known(group["loss_change"][kind]), plus_minus, "+.4f")


def _known(changes: Sequence[float | None]) -> list[float]:
    return [change for change in changes if change is not None]


def _rounded(groups: Sequence[Group]) -> bool:
    """Whether any run was rounded."""
    return any(_known(changes) for group in groups for changes in group["rounding_change"].values())


def _with_spread(values: list[float], plus_minus: str, form: str) -> str:
    if not values:
        return "-"
    text = f"{statistics.fmean(values):{form}}"
    return text if len(values) == 1 else f"{text} {plus_minus} {statistics.stdev(values):.2g}"


def _emerged(group: Group, name: str) -> str:
    steps = [run["emergence"].get(name) for run in group["runs"]]
    return ", ".join("-" if step is None else f"{step:,}" for step in steps)
