"""Several processes that make one run: joining them, agreeing, and noticing that one is gone.

Everything here also works in a run of one process, where it costs nothing. What processes say to
each other outside of compiled computations goes through the key-value store of JAX's coordination
service, which process 0 serves: small JSON values, no device and no mesh involved.
"""

import contextlib
import dataclasses
import itertools
import json
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_massact.errors import ConfigError, UserError

T = TypeVar("T")

TIMEOUT, HEARTBEAT = 300, 60
"""Seconds until processes that have not all come, or one that is no longer heard of, end a run."""

# As BSD's sysexits.h: the next try may succeed. Launchers start such a run again.
TEMPFAIL, USER_ERROR, FAILURE = 75, 2, 1

_POLL = 1.0
# A process that fails at the same moment for the same reason says so itself within this time.
_GRACE = 3.0
# One process may hash or write a large model while the others wait; a dead one is noticed sooner.
_PATIENCE = 24 * 3600.0
# A folder on a network file system may be seen later than it was written.
_VISIBLE_WITHIN = 10.0
_rounds = itertools.count()


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Which processes make a run, and which of them this one is.

    Attributes:
      processes: how many there are.
      coordinator: HOST:PORT on which process 0 listens, and which all others reach. None: JAX finds
        it, and the index, from its surroundings (Slurm, Open MPI, Kubernetes, a TPU pod).
      index: of this process, from 0; None with `coordinator`.
    """

    processes: int
    coordinator: str | None = None
    index: int | None = None


_FLAGS = {
    "coordinator": ("--coordinator", "MASSACT_COORDINATOR"),
    "processes": ("--processes", "MASSACT_PROCESSES"),
    "index": ("--process", "MASSACT_PROCESS"),
}


def find_cluster(
    coordinator: str | None,
    processes: str | int | None,
    index: str | int | None,
    environment: Mapping[str, str] = os.environ,
) -> Cluster | None:
    """The processes that a command line or, where it is silent, the environment speaks of.

    Args:
      coordinator: `--coordinator`, HOST:PORT.
      processes: `--processes`.
      index: `--process`.
      environment: for MASSACT_COORDINATOR, MASSACT_PROCESSES and MASSACT_PROCESS.

    Returns:
      None for a run of one process.

    Raises:
      ConfigError: a value is no address or number, out of range, or given without the others.
    """
    flags = {"coordinator": coordinator, "processes": processes, "index": index}
    given: dict[str, str] = {}
    for name, value in flags.items():
        # An empty variable is one that is not set.
        value = environment.get(_FLAGS[name][1]) or None if value is None else value
        if value is not None:
            given[name] = str(value)
    if not given:
        return None
    # The number of processes alone is enough: JAX finds the rest.
    needed = ["processes"] if set(given) == {"processes"} else list(_FLAGS)
    if missing := [" or ".join(_FLAGS[name]) for name in needed if name not in given]:
        there = ", ".join(f"{_FLAGS[name][0]}={value}" for name, value in given.items())
        raise ConfigError(f"{there} without {' and '.join(missing)}")
    count = _whole(given, "processes", 1, 1 << 20)
    if "coordinator" not in given:
        return None if count == 1 else Cluster(processes=count)
    number = _whole(given, "index", 0, count - 1)
    address = given["coordinator"]
    host, _, port = address.rpartition(":")
    if not host or not (port.isdecimal() and 0 < int(port) < 1 << 16):
        raise ConfigError(f"--coordinator is {address!r}; expected: HOST:PORT")
    return None if count == 1 else Cluster(processes=count, coordinator=address, index=number)


def _whole(given: Mapping[str, str], name: str, low: int, high: int) -> int:
    text = given[name]
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(
            f"{_FLAGS[name][0]} is {text!r}; allowed: a whole number from {low} to {high}"
        )
    return int(text)


@contextlib.contextmanager
def join(
    cluster: Cluster,
    *,
    timeout: int = TIMEOUT,
    heartbeat: int = HEARTBEAT,
    on_joined: Callable[[], None] = lambda: None,
    on_failed: Callable[[int, str], None] = lambda code, line: None,
) -> Iterator[None]:
    """Makes this process one of `cluster.processes`; leaving it waits for all of them.

    Call it before anything asks JAX for its devices. Inside, an exception on any process ends all
    of them within seconds. A process that dies without a word (killed, its host gone) is missed
    after `heartbeat` seconds; JAX then aborts the others (SIGABRT), whatever they are waiting for.
    Only a parent process can turn that into an exit code: `cli.supervise` does.

    Args:
      timeout: seconds within which all processes have to come.
      heartbeat: seconds of silence after which a process counts as dead.
      on_joined: called once all are there.
      on_failed: called in a thread with an exit code and a line of text when another process has
        said that it failed; this process ends with that code a few seconds later.

    Raises:
      ConfigError: JAX does not find the cluster, or the processes were told different numbers.
      UserError: they cannot be joined. Where not all come in time, JAX aborts this process.
    """
    # JAX's own handler would take SIGTERM from ours.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    detected = cluster.coordinator is None
    try:
        jax.distributed.initialize(
            cluster.coordinator,
            None if detected else cluster.processes,
            cluster.index,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=heartbeat,
            cluster_detection_method=None if detected else "deactivate",
        )
    except (RuntimeError, ValueError) as error:
        line = str(error).strip().splitlines()[0]
        if detected:
            raise ConfigError(
                f"{cluster.processes} processes were asked for, and JAX finds no cluster to join "
                f"({line}); give --coordinator and --process"
            ) from None
        raise UserError(f"cannot join the run at {cluster.coordinator}: {line}") from None
    _check_count(cluster.processes, timeout)
    on_joined()
    done = threading.Event()
    watcher = threading.Thread(target=_watch_others, args=(done, on_failed), daemon=True)
    watcher.start()
    try:
        yield
        gather(None)
    except BaseException as error:
        done.set()
        _say_failed(error)
        raise
    done.set()
    watcher.join()
    jax.distributed.shutdown()


def exit_code(error: BaseException) -> int:
    """What the process ends with after `error`."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILURE
    if isinstance(error, KeyboardInterrupt):
        return 130
    if is_loss(error):
        return TEMPFAIL
    return USER_ERROR if isinstance(error, UserError) else FAILURE


def is_loss(error: BaseException) -> bool:
    """Whether `error` is what a computation reports when another process has gone away.

    Only in a run of several processes, and not where the computation itself is at fault: too little
    memory, or an operation that the device does not have.
    """
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
    return (
        isinstance(error, jax.errors.JaxRuntimeError)
        and _client() is not None
        and not str(error).startswith(own)
    )


def gather(value: Any, *, timeout: float = _PATIENCE) -> list[Any]:
    """The JSON values of all processes, in their order; every process has to call it.

    Raises:
      UserError: one did not come within `timeout` seconds.
    """
    client = _client()
    if client is None:
        return [value]
    place = f"massact/{next(_rounds)}"
    count, index = _size()
    client.key_value_set(f"{place}/{index}", json.dumps(value))
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
    """The JSON value of process 0, on all."""
    return gather(value)[0]


def together(function: Callable[[], T]) -> T:
    """`function()`, which no process leaves alone: a `UserError` of one is raised on all."""
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
    """`function()`, called on process 0 alone; all get its JSON result, or its `UserError`."""
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
    """Whether this process is the one that writes files and speaks."""
    return jax.process_index() == 0


def check_shared(folder: Path) -> None:
    """That every process sees the same folder: process 0 leaves a file in it, all others read it.

    Raises:
      UserError: on every process, where one of them does not see it, or it cannot be written.
    """
    if _client() is None:
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


class Vote:
    """Whether any process wants to stop: the same answer after the same update on all.

    In a run of several processes each update is followed by the sum of one number per device,
    whose result is read some updates later, so that nothing waits for it. With one process the
    answer is that of `stop` at once.

    Args:
      stop: whether this process wants to.
      mesh: of the run.
      delay: after how many further updates a vote is read.
    """

    def __init__(self, stop: Callable[[], bool], mesh: jax.sharding.Mesh, delay: int):
        self._stop, self._mesh, self._delay = stop, mesh, delay
        self._cast: deque[jax.Array] = deque()

    def __call__(self) -> bool:
        """Votes; every process has to call it after every update."""
        if jax.process_count() == 1:
            return self._stop()
        mine = np.full((1,), self._stop(), np.int32)
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        votes = jax.make_array_from_callback((self._mesh.size,), sharding, lambda index: mine)
        self._cast.append(_total(votes))
        if len(self._cast) <= self._delay:
            return False
        return bool(jax.device_get(self._cast.popleft()))


@jax.jit
def _total(votes: jax.Array) -> jax.Array:
    return jnp.sum(votes)


def _client() -> Any:
    # JAX has no public way to its key-value store, which it and Orbax use for the same purpose.
    from jax._src import distributed

    return distributed.global_state.client


def _size() -> tuple[int, int]:
    """How many processes there are and which this one is, without waking the devices."""
    from jax._src import distributed

    return distributed.global_state.num_processes, distributed.global_state.process_id


def _check_count(expected: int, timeout: float) -> None:
    """That all processes were told the same number, before the devices wait for each other."""
    client, (count, index) = _client(), _size()
    if count != expected:
        raise ConfigError(f"--processes is {expected}; the cluster that JAX finds has {count}")
    client.key_value_set(f"massact/told/{index}", str(expected))
    for number in range(expected):
        try:
            told = client.blocking_key_value_get(f"massact/told/{number}", int(1000 * timeout))
        except jax.errors.JaxRuntimeError as error:
            if str(error).startswith("DEADLINE_EXCEEDED"):
                raise UserError(f"process {number} did not come within {timeout:g} s") from None
            raise UserError(
                "process 0 ended before all were there; it says why, perhaps another --processes"
            ) from None
        if number == 0:
            client.key_value_set(f"massact/heard/{index}", "")
        if int(told) != expected:
            if index == 0:
                # It serves the store: were it gone at once, the other could not say the same.
                with contextlib.suppress(jax.errors.JaxRuntimeError):
                    client.blocking_key_value_get(f"massact/heard/{number}", int(1000 * timeout))
            raise ConfigError(
                f"process {index} was told --processes={expected} and process {number} "
                f"--processes={told}; expected: the same number for all"
            )
    if jax.process_count() != expected:
        raise ConfigError(
            f"--processes is {expected}; the devices belong to {jax.process_count()} processes"
        )


_FAILED = "massact/failed"


def _say_failed(error: BaseException) -> None:
    """Tells the others why this process ends."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0]
    _, index = _size()
    said = json.dumps({"process": index, "code": exit_code(error), "line": line})
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or all is lost
        _client().key_value_set(_FAILED, said)
        if index == 0:
            time.sleep(2 * _POLL)  # it serves the store that the others still have to read


def _watch_others(done: threading.Event, on_failed: Callable[[int, str], None]) -> None:
    client, (_, index) = _client(), _size()
    while not done.wait(_POLL):
        try:
            said = json.loads(client.key_value_try_get(_FAILED))
        except jax.errors.JaxRuntimeError:
            continue  # nobody has; that process 0 is gone is noticed by JAX itself
        if said["process"] == index:
            return
        line = f"process {said['process']} ended: {said['line']}"
        on_failed(said["code"], line)
        if not done.wait(_GRACE):
            _end(said["code"], line)


def _end(code: int, line: str) -> NoReturn:
    # The main thread may wait for ever, in a collective, for the one that has ended.
    print(f"massact: {line}", file=sys.stderr, flush=True)
    os._exit(code)
