"""`massact train`: trains a model, shows how it goes, and can be stopped and taken up again."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import rich.console
import rich.progress

from jax_massact.report import words
from jax_massact.train.config import TrainConfig
from jax_massact.train.data import open_batches
from jax_massact.train.loop import Trained, train
from jax_massact.train.metrics import Row
from jax_massact.train.tensorboard import check_installed


def run_train(
    config: TrainConfig, workdir: Path, console: rich.console.Console | None = None
) -> Trained:
    """Trains in `workdir`, or goes on with the run that is there.

    SIGTERM and Ctrl-C write a checkpoint first; a second Ctrl-C stops at once.

    Raises:
      UserError: a setting, the data, the folder or the devices do not allow it.
    """
    console = console or rich.console.Console(stderr=True, highlight=False)
    if config.tensorboard:
        check_installed()  # before text is read, which may take long
    batches = open_batches(config, console.print)
    console.print(
        f"{workdir}: {config.model.family}, attention {config.model.attention}, "
        f"{config.steps:,} steps of {config.batch_size} x {config.sequence_length} tokens"
    )
    with stop_on_signals() as stop, progress(console, config.steps) as show:
        trained = train(config, batches, workdir, on_row=show, stop=stop)
    if trained.resumed:
        console.print(f"taken up at step {trained.resumed:,}")
    if trained.summary is None:
        console.print(
            f"stopped at step {int(trained.state.step):,}; the same command goes on from there"
        )
    else:
        console.print(in_words(trained.summary))
    return trained


def in_words(summary: dict[str, Any]) -> str:
    """The end of a run in two or three lines."""
    validation = summary["validation"]
    spread = "" if validation["std"] is None else f" +- {validation['std']:.2g} over batches"
    lines = [
        f"validation loss {validation['loss']:.4f}{spread}; "
        f"{words.number(summary['tokens_per_second'])} tokens/s, "
        f"MFU {words.percent(summary['mfu'])}; the loop waited for data "
        f"{100 * summary['host_wait']:.2g}% of the time, watching took "
        f"{100 * summary['watching']:.2g}%"
    ]
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
def stop_on_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether SIGTERM or SIGINT has come."""
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return

    def ask(number: int, frame: Any) -> None:
        del number, frame
        asked.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def progress(console: rich.console.Console, steps: int) -> Iterator[Callable[[Row], None]]:
    """A bar on a terminal; in a log, a line every twentieth of the way and for every validation."""
    if not console.is_terminal:
        seen = -1

        def line(row: Row) -> None:
            nonlocal seen
            part = 20 * row["step"] // steps
            if row["kind"] == "validation":
                console.print(f"step {row['step']:,}: validation loss {row['loss']:.4f}")
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

        yield show


def _speed(row: Row) -> str:
    loss = words.number(row["loss"])
    rate = words.number(row["tokens_per_second"])
    return f"loss {loss}, {rate} tokens/s, MFU {words.percent(row['mfu'])}"
