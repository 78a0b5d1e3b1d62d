"""A run that stands still says where, and ends with the exit code that starts it again."""

import os
import sys
import threading
import time
from types import TracebackType

from jax_massact.cluster.processes import TEMPFAIL


class StallGuard:
    """Ends the process where the run waits for one thing longer than `seconds`.

    Used as a context manager around the loop, which says before everything that may not return what
    it waits for (`waits_for`). Nothing in the process can be relied on to stop it in order: the
    main thread may wait in a collective, or in a driver. What was last saved stays as it is.

    Args:
      seconds: the limit; 0: none.
    """

    def __init__(self, seconds: float):
        self._limit = seconds
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._guard, name="stall", daemon=True)
        self.waits_for(None, 0)

    def waits_for(self, what: str | None, step: int) -> None:
        """Starts the clock anew.

        Args:
          what: the thing that is waited for; None: something that may take any time, such as a
            compilation.
          step: the step that it belongs to, counted from 1.
        """
        self._waiting = (time.monotonic(), what, step)

    def __enter__(self) -> "StallGuard":
        if self._limit:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._left.set()

    def _guard(self) -> None:
        while not self._left.wait(min(1.0, self._limit / 4)):
            since, what, step = self._waiting
            if what is not None and time.monotonic() - since > self._limit:
                return _leave(
                    f"no progress for {self._limit:g} s (stall_seconds) at step {step:,}: waiting "
                    f"for {what}. Started again, the run resumes from its last checkpoint"
                )


def _leave(line: str) -> None:
    print(f"massact: {line}", file=sys.stderr, flush=True)
    os._exit(TEMPFAIL)
