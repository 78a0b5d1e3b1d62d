"""A plan as tables in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from jax_massact.plan.compiled import Compiled
from jax_massact.plan.estimate import LEAST_EFFICIENCY, TIGHT, Memory, Plan
from jax_massact.plan.probe import ProbePlan
from jax_massact.plan.remedies import Remedy
from jax_massact.report import words
from jax_massact.report.terminal import Sheet
from jax_massact.train.report import amount


def print_plan(
    plan: Plan,
    compiled: Compiled | None,
    remedy: tuple[Remedy, Plan] | None,
    console: Console,
) -> None:
    """Memory, traffic, time, what the compiler of TPUs made of it, and a verdict.

    Args:
      remedy: with which a run fits that does not, and the plan of that.
    """
    sheet = Sheet(console)
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1)
    sheet.headed("Devices", f"{plan['devices']} x {plan['device']}; mesh: {mesh or 'one device'}")
    sheet.headed("Update", f"{plan['parameters']:,} parameters, {plan['tokens']:,} tokens, "
                           f"{plan['flops']:.3g} operations")
    sheet.title("Memory of each device")
    sheet.table(("", "bytes", "of the device"), _memory(plan["memory"]), left=("",))
    sheet.title("Traffic of each device, one update")
    if plan["traffic"]:
        head = ("collective", "over devices along", "times", "bytes", "sent", "time")
        rows = [[row["kind"], _over(row), str(row["count"]), amount(row["bytes"]),
                 amount(row["sent"]), _span(*row["seconds"])] for row in plan["traffic"]]
        sheet.table(head, rows, left=head[:2])
    else:
        sheet.line("none: one device")
    sheet.title("Time of one update")
    sheet.table(("", "time"), _time(plan["seconds"]), left=("",))
    sheet.line(_speed(plan))
    if compiled is not None:
        _print_compiled(sheet, compiled)
    for note in plan["notes"]:
        sheet.line(f"Note: {note}", "dim")
    sheet.line(f"Figures of the device: {plan['source']}", "dim")
    memory = plan["memory"] if compiled is None else compiled["memory"]
    sheet.headed("Verdict", *_verdict(memory, plan, remedy))
    sheet.close()


def _print_compiled(sheet: Sheet, compiled: Compiled) -> None:
    memory = compiled["memory"]
    versions = ", ".join(f"{name} {version}" for name, version in compiled["versions"].items())
    sheet.title(f"Compiled for {compiled['topology']} in {compiled['seconds']:.0f} s ({versions})")
    labels = {
        "arguments": "state and batch", "outputs": "results in other places",
        "temporary": "temporary", "program": "the program", "total": "in all",
        "available": "the device has",
    }
    rows = [[label, amount(memory[key]), words.percent(memory[key] / memory["available"])]
            for key, label in labels.items()]
    sheet.table(("", "bytes", "of the device"), rows, left=("",))
    head = ("collective", "over devices along", "in the program", "asynchronous")
    rows = [[row["kind"], " x ".join(row["axes"]) or "-", str(row["count"]),
             str(row["asynchronous"])] for row in compiled["collectives"]]
    if rows:
        sheet.table(head, rows, left=head[:2])
    counted = [f"{compiled[key]:.3g} {unit}" for key, unit in
               (("flops", "operations"), ("bytes", "bytes moved")) if compiled[key] is not None]
    sheet.line(
        f"{compiled['kernels']} calls of Pallas kernels; by the compiler's count, which takes a "
        f"loop's body once: {', '.join(counted) or 'nothing'}"
    )


def print_probe_plan(name: str, plan: ProbePlan, console: Console) -> None:
    """What the compiler of TPUs made of a probe, the least time of a batch, and a verdict."""
    sheet, compiled = Sheet(console), plan["compiled"]
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1)
    sheet.headed("Devices", f"{compiled['topology']}; mesh: {mesh or 'one device'}")
    sheet.headed("Probe", f"{name}, {plan['parameters']:,} parameters, a batch of "
                          f"{' x '.join(map(str, plan['inputs']))}, {plan['flops']:.3g} operations")
    _print_compiled(sheet, compiled)
    seconds = plan["seconds"]
    sheet.title("Time of one batch, at least")
    sheet.table(("", "time"), [["arithmetic at the peak", duration(seconds["arithmetic"])],
                               ["weights read", duration(seconds["memory"])]], left=("",))
    memory = compiled["memory"]
    total, available = memory["total"], memory["available"]
    share = f"{amount(total)} of {amount(available)} on each device"
    if total <= TIGHT * available:
        sheet.headed("Verdict", f"fits: {share}", "green")
    else:
        word = "tight" if total <= available else "does not fit"
        sheet.headed("Verdict", f"{word}: {share}; --mesh=fsdp=-1 or model=-1 splits weights, a "
                                "smaller --config.batch_size the activations", "bold red")
    sheet.close()


def duration(seconds: float) -> str:
    """Milliseconds, to three digits."""
    if 0 < seconds < 1e-6:
        return "<0.001 ms"
    return f"{1000 * seconds:,.0f} ms" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _memory(memory: Memory) -> list[list[str]]:
    labels = {
        "parameters": "parameters", "optimizer": "optimizer state", "gradients": "gradients",
        "activations": "activations, batch, workspace", "total": "in all",
        "available": "the device has",
    }
    return [[label, amount(memory[key]), words.percent(memory[key] / memory["available"])]
            for key, label in labels.items()]


def _over(row: Mapping[str, Any]) -> str:
    axes = " x ".join(row["axes"])
    return f"{row['devices']}, {axes}" if axes else str(row["devices"])


def _span(low: float, high: float) -> str:
    one, other = duration(low), duration(high)
    return one if one == other else f"{one.removesuffix(' ms')} to {other}"


def _time(seconds: Mapping[str, Any]) -> list[list[str]]:
    return [
        ["arithmetic at the peak", duration(seconds["arithmetic"])],
        ["state read and written", duration(seconds["memory"])],
        ["communication", _span(*seconds["communication"])],
        ["at least: the longest of these, all else behind it", duration(seconds["overlapped"])],
        ["their sum, at the peak", duration(seconds["added"])],
        [f"at most: their sum, at {words.percent(LEAST_EFFICIENCY)} of the peak",
         duration(seconds["slow"])],
    ]


def _speed(plan: Plan) -> str:
    (slow, fast), (low, high) = plan["tokens_per_second"], plan["mfu"]
    return (
        f"{slow:,.0f} to {fast:,.0f} tokens/s; MFU {words.percent(low)} to "
        f"{words.percent(high)}; latencies are not counted"
    )


def _verdict(
    memory: Any, plan: Plan, remedy: tuple[Remedy, Plan] | None
) -> tuple[str, str]:
    """Words and style; `memory` is the compiler's where there is one, else the estimate's."""
    total, available = memory["total"], memory["available"]
    share = f"{amount(total)} of {amount(available)} on each device"
    if total <= TIGHT * available:
        return f"fits: {share}", "green"
    help_ = (
        "--config.remat=true, a larger --config.accumulate, or more devices along fsdp or model "
        "take less"
    )
    if total <= available:
        return f"tight: {share}; {help_}", "yellow"
    if remedy is not None:
        change, changed = remedy
        help_ = f"it would with {change.options}: {amount(changed['memory']['total'])} (estimate)"
    return f"does not fit: {share}, {amount(total - available)} too much; {help_}", "bold red"
