"""The consoles of the command line: strings of others are never markup, no output is fatal.

A closed pipe (`massact probe ... | head`) or a full disk behind a stream ends the output there,
not the work.
"""

import os
import sys
from typing import Any, TextIO

import rich.console


class Stream:
    """A text stream that falls silent when it cannot be written to any more.

    Attributes:
      failure: the error that ended it, or None.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        """Writes, or, after a failure, drops the text."""
        if self.failure is None:
            try:
                return self._stream.write(text)
            except OSError as error:
                self._end(error)
        return len(text)

    def flush(self) -> None:
        """Flushes what was written."""
        if self.failure is None:
            try:
                self._stream.flush()
            except OSError as error:
                self._end(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _end(self, error: OSError) -> None:
        self.failure = error
        try:
            # Python flushes its own streams again at exit and would report the failure then.
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        except (OSError, ValueError):
            pass  # the stream is no file


def make_console(*, stderr: bool = False, quiet: bool = False) -> rich.console.Console:
    """A console on stdout or stderr, as they are now; its `file` is a `Stream`.

    Lines on stderr are not broken: a path in them can be copied, and a log has a line a message.
    """
    stream: Any = Stream(sys.stderr if stderr else sys.stdout)
    # In a notebook, too, text goes to the stream that it is meant for.
    return rich.console.Console(
        file=stream, markup=False, emoji=False, highlight=False, quiet=quiet, soft_wrap=stderr,
        force_jupyter=False,
    )


def failure(console: rich.console.Console) -> str | None:
    """Why a console of `make_console` fell silent; None: it did not, or its reader went away."""
    stream: Any = console.file
    stream.flush()
    error = stream.failure
    if error is None or isinstance(error, BrokenPipeError):
        return None
    return error.strerror or str(error)
