"""Batches that are on the devices before they are needed."""

import queue
import threading
import time
from collections.abc import Callable, Generator, Mapping
from typing import NamedTuple, Protocol

import jax
import numpy as np
from jaxtyping import Int

from jax_massact.data.tokenizer import Tokenizer

AHEAD = 2


class Batches(Protocol):
    """Token ids for training, a function of the step alone: any restart sees the same."""

    @property
    def vocab_size(self) -> int:
        """Every id is below this."""
        ...

    @property
    def digests(self) -> Mapping[str, str]:
        """Digests of all that the batches depend on beside their arguments, by name."""
        ...

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer of the ids, to be saved with the model; None: not known."""
        ...

    def rows(self, step: int, lo: int, hi: int) -> Int[np.ndarray, "hi-lo T+1"]:
        """Rows lo to hi - 1 of the batch of step `step`, from 0: tokens and, shifted by one,
        their targets."""
        ...

    def validation(self, index: int) -> Int[np.ndarray, "B T+1"]:
        """Batch `index` of the held-out data."""
        ...


class Fetched(NamedTuple):
    """One batch, and the seconds for which the loop waited for it."""

    step: int
    tokens: jax.Array
    waited: float


def prefetch(
    start: int,
    stop: int,
    fetch: Callable[[int], jax.Array],
    *,
    ahead: int = AHEAD,
) -> Generator[Fetched]:
    """The batches of steps `start` to `stop` - 1, made and placed by a thread ahead of their use.

    An error in the thread is raised here. Closing the iterator ends the thread.

    Args:
      fetch: returns the batch of a step, on the devices.
      ahead: number of batches that are made before they are needed.
    """
    ready: queue.Queue = queue.Queue(maxsize=ahead)
    closed = threading.Event()

    def put(item: object) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in range(start, stop):
                if closed.is_set():
                    return
                put((step, fetch(step)))
        except BaseException as error:  # whatever it is, the loop must not wait forever
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(start, stop):
            asked = time.perf_counter()
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            step, tokens = item
            yield Fetched(step, tokens, time.perf_counter() - asked)
    finally:
        closed.set()
        thread.join()
