"""Medians of a compiled function's time on its device."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


def seconds(run: Callable[[], Any], *, calls: int, windows: int) -> float:
    """Seconds of one call, median over `windows` times `calls` calls, after two to warm up.

    The calls of a window are given to the device one after another and waited for together, so
    that the host's time is hidden, as it is in training.
    """
    for _ in range(2):
        jax.block_until_ready(run())
    found = []
    for _ in range(windows):
        begin = time.perf_counter()
        for _ in range(calls):
            result = run()
        jax.block_until_ready(result)
        found.append((time.perf_counter() - begin) / calls)
    return statistics.median(found)
