"""A plan as tables in the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from jax_massact.plan.estimate import LEAST_EFFICIENCY, Memory, Plan
from jax_massact.report import words
from jax_massact.report.terminal import headed, plain_table, section_title
from jax_massact.train.report import amount


def plan_table(plan: Plan) -> RenderableType:
    """Memory, traffic, time and a verdict."""
    mesh = ", ".join(f"{name} {size}" for name, size in plan["mesh"].items() if size > 1)
    tokens, seconds = plan["tokens"], plan["seconds"]
    parts = [
        headed("Devices", f"{plan['devices']} x {plan['device']}; mesh: {mesh or 'one device'}"),
        headed("Update", f"{plan['parameters']:,} parameters, {tokens:,} tokens, "
                         f"{plan['flops']:.3g} operations"),
        section_title("Memory of each device"), _memory(plan["memory"]),
        section_title("Traffic of each device, one update"), _traffic(plan),
        section_title("Time of one update"), _time(seconds),
        Text(_speed(plan)),
    ]
    parts += [Text(f"Note: {note}", style="dim") for note in plan["notes"]]
    parts += [Text(f"Figures of the device: {plan['source']}", style="dim"), _verdict(plan)]
    return Group(*parts)


def duration(seconds: float) -> str:
    """Milliseconds, to three digits."""
    if 0 < seconds < 1e-6:
        return "<0.001 ms"
    return f"{1000 * seconds:,.0f} ms" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


def _memory(memory: Memory) -> RenderableType:
    table = plain_table("", "bytes", "of the device", left=("",))
    labels = {
        "parameters": "parameters", "optimizer": "optimizer state", "gradients": "gradients",
        "activations": "activations, batch, workspace", "total": "in all",
        "available": "the device has",
    }
    for key, label in labels.items():
        table.add_row(label, amount(memory[key]), words.percent(memory[key] / memory["available"]))
    return table


def _traffic(plan: Plan) -> RenderableType:
    if not plan["traffic"]:
        return Text("none: one device")
    table = plain_table(
        "collective", "over devices along", "times", "bytes", "sent", "time",
        left=("collective", "over devices along"),
    )
    for row in plan["traffic"]:
        low, high = row["seconds"]
        table.add_row(
            row["kind"], _over(row), str(row["count"]), amount(row["bytes"]), amount(row["sent"]),
            _span(low, high),
        )
    return table


def _over(row: Mapping[str, Any]) -> str:
    axes = " x ".join(row["axes"])
    return f"{row['devices']}, {axes}" if axes else str(row["devices"])


def _span(low: float, high: float) -> str:
    one, other = duration(low), duration(high)
    return one if one == other else f"{one.removesuffix(' ms')} to {other}"


def _time(seconds: Mapping[str, Any]) -> RenderableType:
    table = plain_table("", "time", left=("",))
    low, high = seconds["communication"]
    for label, value in (
        ("arithmetic at the peak", duration(seconds["arithmetic"])),
        ("state read and written", duration(seconds["memory"])),
        ("communication", _span(low, high)),
        ("at least: the longest of these, all else behind it", duration(seconds["overlapped"])),
        ("their sum, at the peak", duration(seconds["added"])),
        (f"at most: their sum, at {words.percent(LEAST_EFFICIENCY)} of the peak",
         duration(seconds["slow"])),
    ):
        table.add_row(label, value)
    return table


def _speed(plan: Plan) -> str:
    (slow, fast), (low, high) = plan["tokens_per_second"], plan["mfu"]
    return (
        f"{slow:,.0f} to {fast:,.0f} tokens/s; MFU {words.percent(low)} to "
        f"{words.percent(high)}; latencies are not counted"
    )


def _verdict(plan: Plan) -> RenderableType:
    memory = plan["memory"]
    share = f"{amount(memory['total'])} of {amount(memory['available'])} on each device"
    if plan["fits"] == "yes":
        return headed("Verdict", f"fits: {share}", "green")
    help_ = (
        "--config.remat=true, a larger --config.accumulate, or more devices along fsdp or model "
        "take less"
    )
    if plan["fits"] == "tight":
        return headed("Verdict", f"tight: {share}; {help_}", "yellow")
    return headed("Verdict", f"does not fit: {share}; {help_}", "bold red")
