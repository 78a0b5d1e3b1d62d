"""Whether a model fits into memory, with figures."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax

from jax_massact.families.checkpoint import Checkpoint
from jax_massact.nn.config import DType
from jax_massact.nn.parameters import is_stacked
from jax_massact.nn.transformer import abstract, parameters

# Beside the weights: the program itself, and what one forward pass computes.
BESIDE = 1 << 30
_CGROUP = Path("/sys/fs/cgroup")


def why_streamed(checkpoint: Checkpoint, dtype: DType) -> str | None:
    """The reason, with figures, why a model must be streamed; None: it fits, or nobody can tell."""
    needed = weights_bytes(checkpoint, dtype) + BESIDE
    for where, free in _rooms():
        if needed > free:
            return (
                f"the weights take {(needed - BESIDE) / 1e9:.1f} GB in {dtype} and {where} has "
                f"{free / 1e9:.1f} GB free (1.1 GB of them for all else): blocks are streamed from "
                "the file"
            )
    return None


def weights_bytes(checkpoint: Checkpoint, dtype: DType) -> int:
    """Bytes of all parameters, and of the copy that the largest one takes while it is loaded."""
    sizes = {name: leaf.size for name, leaf in parameters(abstract(checkpoint.config)).items()}
    depth = checkpoint.config.depth
    largest = max(size // depth if is_stacked(name) else size for name, size in sizes.items())
    return (sum(sizes.values()) + largest) * (4 if dtype == "float32" else 2)


def _rooms() -> Iterator[tuple[str, int]]:
    """Kinds of memory that the weights must fit into, and how many bytes of each are free."""
    device = jax.devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        yield f"the {device.device_kind}", stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    elif (host := free_host_bytes()) is not None:
        yield "this machine", host


def free_host_bytes() -> int | None:
    """Bytes of memory that this process may still take; None: the system does not say."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
        found.append(kib * 1024)
    except (OSError, StopIteration, ValueError):
        names = getattr(os, "sysconf_names", {})
        if {"SC_PHYS_PAGES", "SC_PAGE_SIZE"} <= set(names):
            found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    try:
        limit, used = ((_CGROUP / f"memory.{name}").read_text() for name in ("max", "current"))
        found.append(int(limit) - int(used))
    except (OSError, ValueError):
        pass  # no such group, or it has no limit
    return min(found) if found else None
