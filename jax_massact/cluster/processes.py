"""The processes of a run: which they are, and what their exit codes mean.

Without JAX, so that a process that only waits for another starts at once.
"""

import dataclasses
import os
from collections.abc import Mapping

from jax_massact.errors import ConfigError

TIMEOUT, HEARTBEAT = 300, 60
"""Seconds after which a run ends because not all processes came, or one is no longer heard of."""

# As BSD's sysexits.h: the next try may succeed. Launchers start such a run again.
TEMPFAIL, USER_ERROR, FAILURE = 75, 2, 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Which processes make a run, and which of them this one is.

    Attributes:
      processes: number of processes.
      coordinator: HOST:PORT on which process 0 listens, and which all others reach. None: JAX
        detects it, and the index, from Slurm, Open MPI, Kubernetes or a TPU pod.
      index: number of this process, from 0; None with `coordinator`.
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
    """The processes that the command line or else the environment names.

    Args:
      coordinator: `--coordinator`, HOST:PORT.
      processes: `--processes`.
      index: `--process`.
      environment: for MASSACT_COORDINATOR, MASSACT_PROCESSES and MASSACT_PROCESS.

    Returns:
      None for a run of one process.

    Raises:
      ConfigError: a value is not an address or number, is out of range, or is given without the
        others.
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
            f"{_FLAGS[name][0]} is {text!r}; expected: a whole number from {low} to {high}"
        )
    return int(text)
