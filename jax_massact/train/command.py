"""`massact train`: trains a model and shows progress; a run that was stopped is resumed."""

import functools
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, NoReturn

import rich.console

from jax_massact.cluster.exits import exit_code, is_loss
from jax_massact.cluster.joining import join
from jax_massact.cluster.processes import TEMPFAIL, Cluster
from jax_massact.cluster.sharing import is_first
from jax_massact.cluster.supervise import Parent
from jax_massact.errors import UserError
from jax_massact.jax_switches import missing_device
from jax_massact.report.console import make_console
from jax_massact.report.ending import show_ending
from jax_massact.train.config import TrainConfig
from jax_massact.train.data import open_batches
from jax_massact.train.loop import FILES, Trained, train
from jax_massact.train.report import in_words, progress, show_layout
from jax_massact.train.signals import exit_on_sigterm, stop_on_signals
from jax_massact.train.tensorboard import check_installed


def train_command(
    config: TrainConfig,
    workdir: Path,
    *,
    cluster: Cluster | None,
    parent: Parent | None,
    timeout: int,
    heartbeat: int,
) -> int:
    """Runs `massact train`; returns the exit code.

    Args:
      cluster: None for a run of one process.
      parent: the one that supervises this process of several.
      timeout, heartbeat: seconds, as for `joining.join`.

    Raises:
      UserError: as `run_train`.
    """
    if cluster is None or parent is None:
        with exit_on_sigterm():
            return _run(config, workdir)
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
            return _run(config, workdir)
    except BaseException as error:
        _leave(error)


def _run(config: TrainConfig, workdir: Path) -> int:
    trained = run_train(config, workdir)
    if trained.summary is not None:
        written = [name for name in FILES if (workdir / name).exists()]
        console = make_console(stderr=True, quiet=not is_first())
        show_ending(console, workdir, written, then=["probe", str(workdir)])
    return code_of(trained)


def code_of(trained: Trained) -> int:
    """The exit code of a run that has ended or was stopped."""
    if trained.summary is not None:
        return 0
    return 130 if trained.stopped_by == signal.SIGINT else TEMPFAIL


def _leave(error: BaseException) -> NoReturn:
    """Ends this process at once: the usual end would wait for the others, which may be gone."""
    error = missing_device(error) or error
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
    """Trains in `workdir`, or resumes the run that is there.

    SIGTERM and Ctrl-C write a checkpoint first; a second Ctrl-C stops at once. Of several
    processes, only the first prints.

    Raises:
      UserError: a setting, the data, the folder or the devices do not allow it.
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir {workdir} is a file; expected: a folder, or a new name")
    _say_once()
    quiet = not is_first()
    console = console or make_console(stderr=True, quiet=quiet)
    if config.tensorboard:
        check_installed()  # before text is read, which may take long
    batches = open_batches(config, console.print)
    console.print(
        f"{workdir}: {config.model.depth} blocks, attention "
        f"{config.model.block.attention.variant}, "
        f"{config.steps:,} steps of {config.batch_size} x {config.sequence_length} tokens"
    )
    if config.warmup != config.optimizer.warmup:
        console.print(
            f"warm-up shortened to {config.warmup} steps: optimizer.warmup is "
            f"{config.optimizer.warmup}, and steps is {config.steps}"
        )
    if config.stall_seconds:
        console.print(
            f"exit code 75 if one step makes no progress for {config.stall_seconds:,} s "
            "(stall_seconds)"
        )
    with stop_on_signals() as stop, progress(console, config.steps) as show:
        trained = train(
            config,
            batches,
            workdir,
            on_row=show,
            on_resumed=lambda step: console.print(f"resumed from step {step:,}"),
            on_compiled=functools.partial(show_layout, console),
            stop=stop,
        )
        trained = trained._replace(stopped_by=stop.number)
    if trained.summary is None:
        console.print(
            f"stopped at step {int(trained.state.step):,}; the same command resumes it"
        )
    else:
        console.print(in_words(trained.summary))
    return trained


@functools.cache
def _say_once() -> None:
    """Silences loggers and hooks that repeat a failed write's error with tracebacks."""
    for name in ("absl", "asyncio", "concurrent.futures"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    report = sys.unraisablehook

    def hook(found: Any) -> None:
        # From TensorStore's threads, which return to an event loop that Orbax has closed.
        if found.object is not None or str(found.exc_value) != "Event loop is closed":
            report(found)

    sys.unraisablehook = hook
