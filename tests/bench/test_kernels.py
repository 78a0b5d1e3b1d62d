"""What a trace of kernels is summed up to."""

import pytest

from jax_massact.bench.kernels import Kernel, communication, longest

MS = 1e6  # nanoseconds

# GPU 0: products from 0 to 4 and 6 to 8 ms, a collective from 3 to 7. GPU 1: nothing but one.
TRACE = [
    Kernel("gpu:0", "dot (gemm)", 0 * MS, 4 * MS),
    Kernel("gpu:0", "all-reduce (ncclDevKernel_AllReduce)", 3 * MS, 7 * MS),
    Kernel("gpu:0", "dot (gemm)", 6 * MS, 8 * MS),
    Kernel("gpu:0", "norm (reduce)", 6 * MS, 6.5 * MS),
    Kernel("gpu:1", "all-reduce (ncclDevKernel_AllReduce)", 0 * MS, 8 * MS),
]


def test_time_in_collectives_is_a_mean_over_devices_and_steps():
    found = communication(TRACE, steps=2)
    assert found["collectives"] == pytest.approx(1e-3 * (4 + 8) / 2 / 2)
    assert found["exposed"] == pytest.approx(1e-3 * (2 + 8) / 2 / 2)
    assert communication([], steps=1) == {"collectives": 0.0, "exposed": 0.0}


def test_the_longest_kernels_come_first():
    first, second = longest(TRACE[:4], 2, steps=2)
    assert first == {"kernel": "dot (gemm)", "calls": 1.0, "ms": 3.0}
    assert second["kernel"].startswith("all-reduce") and second["ms"] == 2.0
