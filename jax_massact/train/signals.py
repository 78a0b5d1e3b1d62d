"""Signals that stop a run: it writes a checkpoint first and ends with an exit code that says so."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

from jax_massact.cluster.processes import TEMPFAIL


@contextlib.contextmanager
def stop_on_signals() -> Iterator["Asked"]:
    """Yields an object that tells whether SIGTERM or SIGINT was received."""
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
      number: the first signal that did; None: none.
    """

    def __init__(self) -> None:
        self.number: int | None = None

    def __call__(self) -> bool:
        return self.number is not None


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the process with 75: before training handles the signal, and after."""

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
