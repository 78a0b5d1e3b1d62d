"""Several processes that make one run: joining them, and noticing that one failed."""

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

from jax_massact.cluster import store
from jax_massact.cluster.exits import exit_code
from jax_massact.cluster.processes import HEARTBEAT, TIMEOUT, Cluster
from jax_massact.cluster.sharing import gather
from jax_massact.errors import ConfigError, UserError

_POLL = 1.0
# A process that fails at the same moment for the same reason says so itself within this time.
_GRACE = 3.0


@contextlib.contextmanager
def join(
    cluster: Cluster,
    *,
    timeout: int = TIMEOUT,
    heartbeat: int = HEARTBEAT,
    on_joined: Callable[[], None] = lambda: None,
    on_failed: Callable[[int, str], None] = lambda code, line: None,
) -> Iterator[None]:
    """Makes this process one of `cluster.processes`; leaving the context waits for all of them.

    Call it before anything asks JAX for its devices. Inside, an exception on any process ends all
    of them within seconds. A process that dies without a word (killed, its host gone) is noticed
    after `heartbeat` seconds; JAX then aborts the others (SIGABRT), whatever they are waiting for.
    Only a parent process can turn that into an exit code: `cluster.supervise` does.

    Args:
      timeout: seconds within which all processes have to come.
      heartbeat: seconds without a heartbeat after which a process is considered dead.
      on_joined: called once all processes are there.
      on_failed: called in a thread with an exit code and a line of text when another process
        reports that it failed; this process ends with that code a few seconds later.

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


def _check_count(expected: int, timeout: float) -> None:
    """Raises unless all processes were told the same number, before devices wait for each other."""
    client, (count, index) = store.client(), store.size()
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
            # Process 0 may be gone, with the store, before its answer to this is here.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
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
    _, index = store.size()
    said = json.dumps({"process": index, "code": exit_code(error), "line": line})
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another was first, or all is lost
        store.client().key_value_set(_FAILED, said)
        if index == 0:
            time.sleep(2 * _POLL)  # it serves the store that the others still have to read


def _watch_others(done: threading.Event, on_failed: Callable[[int, str], None]) -> None:
    client, (_, index) = store.client(), store.size()
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
    # The main thread may wait forever, in a collective, for the process that has ended.
    print(f"massact: {line}", file=sys.stderr, flush=True)
    os._exit(code)
