"""`massact train`: trains a model, shows how it goes, and can be stopped and taken up again."""

import contextlib
import functools
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import rich.console
import rich.progress

from jax_massact.cluster.exits import TEMPFAIL, exit_code, is_loss
from jax_massact.cluster.joining import Cluster, join
from jax_massact.cluster.sharing import is_first
from jax_massact.cluster.supervise import find_parent, supervise
from jax_massact.errors import UserError
from jax_massact.plan.report import show_layout
from jax_massact.report import words
from jax_massact.train.config import TrainConfig
from jax_massact.train.data import open_batches
from jax_massact.train.loop import Trained, train
from jax_massact.train.metrics import Row
from jax_massact.train.tensorboard import check_installed


def train_command(
    config: TrainConfig,
    workdir: Path,
    *,
    argv: Sequence[str],
    cluster: Cluster | None,
    timeout: int,
    heartbeat: int,
) -> int:
    """`massact train`, by this process or, for one of several, by a child of it; the exit code.

    Args:
      argv: the command's arguments, for the child.
      cluster: None for a run of one process.
      timeout, heartbeat: seconds, as for `joining.join`.

    Raises:
      UserError: as `run_train`.
    """
    if cluster is None:
        with exit_on_sigterm():
            return _code(run_train(config, workdir))
    parent = find_parent()
    if parent is None:
        return supervise(argv, cluster, timeout, heartbeat)
    try:
        with (
            exit_on_sigterm(),
            join(
                cluster,
                timeout=timeout,
                heartbeat=heartbeat,
                on_joined=parent.say_joined,
                on_failed=parent.say_failed,
            ),
        ):
            return _code(run_train(config, workdir))
    except BaseException as error:
        _leave(error)


def _code(trained: Trained) -> int:
    if trained.summary is not None:
        return 0
    return 130 if trained.stopped_by == signal.SIGINT else TEMPFAIL


def _leave(error: BaseException) -> NoReturn:
    """Ends this process at once: the usual end would wait for the others, which may be gone."""
    code = exit_code(error)
    if is_loss(error):
        line = str(error).splitlines()[0]
        print(f"massact: another process of this run has died ({line}). Started again, the run "
              "resumes from its last checkpoint", file=sys.stderr)
    elif isinstance(error, UserError):
        print(f"massact: {error}", file=sys.stderr)
    elif not isinstance(error, SystemExit | KeyboardInterrupt):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def run_train(
    config: TrainConfig, workdir: Path, console: rich.console.Console | None = None
) -> Trained:
    """Trains in `workdir`, or goes on with the run that is there.

    SIGTERM and Ctrl-C write a checkpoint first; a second Ctrl-C stops at once. Of several
    processes, the first speaks.

    Raises:
      UserError: a setting, the data, the folder or the devices do not allow it.
    """
    _say_once()
    quiet = not is_first()
    console = console or rich.console.Console(stderr=True, highlight=False, quiet=quiet)
    if config.tensorboard:
        check_installed()  # before text is read, which may take long
    batches = open_batches(config, console.print)
    console.print(
        f"{workdir}: {config.model.family}, attention {config.model.attention}, "
        f"{config.steps:,} steps of {config.batch_size} x {config.sequence_length} tokens"
    )
    with stop_on_signals() as stop, progress(console, config.steps) as show:
        about = functools.partial(show_layout, console)
        trained = train(
            config,
            batches,
            workdir,
            on_row=show,
            on_resumed=lambda step: console.print(f"taken up at step {step:,}"),
            on_compiled=about,
            stop=stop,
        )
        trained = trained._replace(stopped_by=stop.number)
    if trained.summary is None:
        console.print(
            f"stopped at step {int(trained.state.step):,}; the same command goes on from there"
        )
    else:
        console.print(in_words(trained.summary))
    return trained


@functools.cache
def _say_once() -> None:
    """Silences what reports a failed write several times more, with tracebacks."""
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    report = sys.unraisablehook

    def hook(found: Any) -> None:
        # From TensorStore's threads, which come back to an event loop that Orbax has given up.
        if found.object is not None or str(found.exc_value) != "Event loop is closed":
            report(found)

    sys.unraisablehook = hook


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
def stop_on_signals() -> Iterator["Asked"]:
    """Yields what says whether SIGTERM or SIGINT has come."""
    asked = Asked()
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def ask(number: int, frame: Any) -> None:
        del frame
        asked.number = asked.number or number
        signal.signal(signal.SIGINT, signal.default_int_handler)

    with _handling(ask, signal.SIGTERM, signal.SIGINT):
        yield asked


class Asked:
    """Whether this process was asked to stop.

    Attributes:
      number: of the first signal that did.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Until training handles it, and after: SIGTERM ends the process with 75, nothing is lost."""

    def leave(number: int, frame: Any) -> None:
        raise SystemExit(TEMPFAIL)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    with _handling(leave, signal.SIGTERM):
        yield


@contextlib.contextmanager
def _handling(handler: Callable[[int, Any], None], *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)


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
