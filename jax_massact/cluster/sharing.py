"""What the processes of a run agree on; in a run of one process, all of it costs nothing."""

import itertools
import json
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import jax

from jax_massact.cluster import store
from jax_massact.errors import UserError

T = TypeVar("T")

# One process may hash or write a large model while the others wait; a dead one is noticed sooner.
_PATIENCE = 24 * 3600.0
# A folder on a network file system may be seen later than it was written.
_VISIBLE_WITHIN = 10.0
_rounds = itertools.count()


def gather(value: Any, *, timeout: float = _PATIENCE) -> list[Any]:
    """The JSON values of all processes, in order of their index; every process has to call it.

    Raises:
      UserError: one did not come within `timeout` seconds.
    """
    client, text = store.client(), json.dumps(value)
    if client is None:
        return [json.loads(text)]
    place = f"massact/{next(_rounds)}"
    count, index = store.size()
    client.key_value_set(f"{place}/{index}", text)
    until = time.monotonic() + timeout
    values = []
    for number in range(count):
        left = max(1, int(1000 * (until - time.monotonic())))
        try:
            text = client.blocking_key_value_get(f"{place}/{number}", left)
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("DEADLINE_EXCEEDED"):
                raise
            raise UserError(f"process {number} did not come within {timeout:g} s") from None
        values.append(json.loads(text))
    return values


def share(value: Any) -> Any:
    """The JSON value of process 0, on all processes."""
    return gather(value)[0]


def together(function: Callable[[], T]) -> T:
    """Calls `function` on every process; a `UserError` of one is raised on all."""
    result, error = None, None
    try:
        result = function()
    except UserError as caught:
        error = caught
    said = gather(None if error is None else str(error))
    if error is not None:
        raise error
    for number, line in enumerate(said):
        if line is not None:
            raise UserError(f"process {number}: {line}")
    return result  # pyright: ignore[reportReturnType]


def on_first(function: Callable[[], T]) -> T:
    """Calls `function` on process 0 alone; all get its JSON result, or its `UserError`."""
    result, error = None, None
    if is_first():
        try:
            result = function()
        except UserError as caught:
            error = caught
    result, line = share([result, None if error is None else str(error)])
    if error is not None:
        raise error
    if line is not None:
        raise UserError(line)
    return result


def is_first() -> bool:
    """Whether this process is process 0, which writes files and prints."""
    return jax.process_index() == 0


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same folder: they look for a file that process 0 writes.

    Raises:
      UserError: on every process, where one of them does not see the file, or it cannot be written.
    """
    if store.client() is None:
        return
    name = f".seen-{share(secrets.token_hex(8))}"

    def leave() -> None:
        try:
            (folder / name).write_text(name)
        except OSError as error:
            raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None

    on_first(leave)
    seen = gather(_is_seen(folder / name))
    if is_first():
        (folder / name).unlink(missing_ok=True)
    blind = [str(number) for number, sees in enumerate(seen) if not sees]
    if blind:
        raise UserError(
            f"{folder} is not the same folder on all hosts: process {', '.join(blind)} does not "
            "see what process 0 writes there; expected: a folder that all hosts share"
        )


def _is_seen(path: Path) -> bool:
    until = time.monotonic() + _VISIBLE_WITHIN
    while time.monotonic() < until:
        # Listing makes a network file system look again.
        if path.parent.is_dir() and path.name in os.listdir(path.parent):
            return True
        time.sleep(0.1)
    return False
