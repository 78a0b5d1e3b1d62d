"""Which kernels an accelerator ran, for how long, and how much of it was communication."""

import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

# Of NVIDIA's library of collectives; no other device names its kernels in a trace.
_COLLECTIVE = "nccl"


class Kernel(NamedTuple):
    """One run of one kernel.

    Attributes:
      device: the trace's name of it.
      name: with the operation of XLA that it belongs to.
      start, end: nanoseconds, by the trace's clock.
    """

    device: str
    name: str
    start: float
    end: float

    @property
    def is_collective(self) -> bool:
        """Whether it communicates with other devices."""
        return _COLLECTIVE in self.name


def run_kernels(run: Callable[[], Any]) -> list[Kernel]:
    """All kernels that `run` starts on this process's accelerators; none on CPUs."""
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(run())
        (path,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(path))
    return [
        Kernel(
            plane.name, f"{dict(event.stats).get('hlo_op', '')} ({event.name[:80]})",
            event.start_ns, event.start_ns + event.duration_ns,
        )
        for plane in data.planes if plane.name.startswith("/device:")
        for line in plane.lines if line.name.startswith("Stream")
        for event in line.events
    ]


def longest(kernels: Sequence[Kernel], count: int, *, steps: int) -> list[dict[str, Any]]:
    """The kernels that took most time in all: name, calls and milliseconds in one step."""
    total: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for kernel in kernels:
        total[kernel.name] += int(kernel.end - kernel.start)
        calls[kernel.name] += 1
    return [
        {"kernel": name, "calls": calls[name] / steps, "ms": ns / steps / 1e6}
        for name, ns in total.most_common(count)
    ]


def communication(kernels: Sequence[Kernel], *, steps: int) -> dict[str, float]:
    """Seconds in one step in which a device communicates, mean over devices.

    Returns:
      `collectives`: in which a collective runs or waits for another device to join it; `exposed`:
      in which nothing else does.
    """
    by_device = defaultdict(list)
    for kernel in kernels:
        by_device[kernel.device].append(kernel)
    all_of_them = alone = 0.0
    for own in by_device.values():
        collectives = _length((k.start, k.end) for k in own if k.is_collective)
        others = _length((k.start, k.end) for k in own if not k.is_collective)
        all_of_them += collectives
        alone += _length((k.start, k.end) for k in own) - others
    scale = 1e-9 / steps / max(1, len(by_device))
    return {"collectives": all_of_them * scale, "exposed": alone * scale}


def _length(intervals: Iterable[tuple[float, float]]) -> float:
    """Of the union."""
    covered, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        covered += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return covered
