"""A plan as tables in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from jax_massact.plan.estimate import LEAST_EFFICIENCY, Memory, Plan
from jax_massact.report import words
from jax_massact.report.terminal import Sheet
from jax_massact.train.report import amount


def print_plan(plan: Plan, console: Console) -> None:
    """Memory, traffic, time and a verdict."""
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
    for note in plan["notes"]:
        sheet.line(f"Note: {note}", "dim")
    sheet.line(f"Figures of the device: {plan['source']}", "dim")
    sheet.headed("Verdict", *_verdict(plan))
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


def _verdict(plan: Plan) -> tuple[str, str]:
    """Words and style."""
    memory = plan["memory"]
    share = f"{amount(memory['total'])} of {amount(memory['available'])} on each device"
    if plan["fits"] == "yes":
        return f"fits: {share}", "green"
    help_ = (
        "--config.remat=true, a larger --config.accumulate, or more devices along fsdp or model "
        "take less"
    )
    if plan["fits"] == "tight":
        return f"tight: {share}; {help_}", "yellow"
    return f"does not fit: {share}; {help_}", "bold red"
