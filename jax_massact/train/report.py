"""What `massact train` prints: the layout at the start, how the run goes, and its end."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import rich.progress
from rich.console import Console

from jax_massact.report import words
from jax_massact.report.terminal import Sheet
from jax_massact.train.config import TrainConfig
from jax_massact.train.layout import Layout, StepMemory, describe_layout, step_memory
from jax_massact.train.metrics import Row


def show_layout(console: Console, config: TrainConfig, mesh: Any, compiled: Any) -> None:
    """Prints `print_layout` of a run whose update is `compiled`."""
    print_layout(console, describe_layout(config, mesh), step_memory(compiled))


def print_layout(console: Console, layout: Layout, step: StepMemory | None) -> None:
    """Prints a row for each parameter (name, shape, layout, bytes on a device), and the totals.

    Args:
      step: the compiler's account of the update's memory; None: not known.
    """
    sheet = Sheet(console)
    head = ("parameter", "shape", "layout", "on a device")
    rows = [[row.name, " x ".join(map(str, row.shape)), row.layout, amount(row.bytes)]
            for row in layout.rows]
    sheet.table(head, rows, left=("parameter", "layout"))
    sheet.line(
        f"on each device: parameters {amount(layout.parameters)}, "
        f"optimizer state {amount(layout.optimizer)}"
    )
    if step is not None:
        sheet.line(
            f"one update, as compiled: arguments {amount(step.argument)}, outputs "
            f"{amount(step.output)} (of these {amount(step.alias)} in the arguments' place), "
            f"temporary {amount(step.temp)}; {amount(step.total)} in all"
        )
    sheet.close()


def amount(size: float) -> str:
    """Bytes as text, with the binary unit that reads best."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "B" or size >= 1000 else f"{size:.3g} {unit}"


def in_words(summary: dict[str, Any]) -> str:
    """A finished run's summary in two or three lines."""
    validation = summary["validation"]
    spread = words.over_batches(validation["losses"], validation["std"])
    lines = [
        f"validation loss {validation['loss']:.4f}{spread}; "
        f"{words.number(summary['tokens_per_second'])} tokens/s, "
        f"MFU {words.percent(summary['mfu'])}; the loop waited for data "
        f"{100 * summary['host_wait']:.2g}% of the time, watching took "
        f"{100 * summary['watching']:.2g}%"
    ]
    if skipped := summary["skipped"]:
        lines.append(f"{skipped} updates skipped, whose loss or gradient was not finite")
    if (watched := summary["watch"]) is not None:
        largest = lambda name: words.number(max(v for v in watched[name] if v is not None))
        lines.append(
            f"top-1 {largest('top1')}, ratio {largest('ratio')}, kurtosis {largest('kurtosis')}, "
            f"sink rate {largest('sink_rate')} (of the layer where each is largest)"
        )
        seen = [f"{name} at {step:,}" for name, step in summary["emergence"].items() if step]
        lines.append(f"emerged: {', '.join(seen) or 'nothing'}")
    return "\n".join(lines)


@contextlib.contextmanager
def progress(console: Console, steps: int) -> Iterator[Callable[[Row], None]]:
    """A progress bar on a terminal; in a log, a line for each twentieth and each validation."""
    if not console.is_terminal:
        seen = -1

        def line(row: Row) -> None:
            nonlocal seen
            part = 20 * row["step"] // steps
            if row["kind"] == "validation":
                console.print(f"step {row['step']:,}: validation loss {row['loss']:.4f}")
            elif row["kind"] == "skipped":
                console.print(_skipped(row))
            elif row["kind"] == "train" and part > seen:
                seen = part
                console.print(f"step {row['step']:,}: {_speed(row)}")

        yield line
        return
    columns = (
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TimeRemainingColumn(),
        rich.progress.TextColumn("{task.description}"),
    )
    with rich.progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("compiling", total=steps)

        def show(row: Row) -> None:
            if row["kind"] == "train":
                bar.update(task, completed=row["step"], description=_speed(row))
            elif row["kind"] == "validation":
                bar.console.print(f"step {row['step']:,}: validation loss {row['loss']:.4f}")
            elif row["kind"] == "skipped":
                bar.console.print(_skipped(row))

        yield show


def _skipped(row: Row) -> str:
    return (
        f"step {row['step']:,}: update skipped, loss {row['loss']}, gradient norm "
        f"{row['grad_norm']}, {row['in_a_row']} in a row"
    )


def _speed(row: Row) -> str:
    loss = words.number(row["loss"])
    rate = words.number(row["tokens_per_second"])
    return f"loss {loss}, {rate} tokens/s, MFU {words.percent(row['mfu'])}"
