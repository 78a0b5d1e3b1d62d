"""What accelerators can do at most, from their makers' data sheets."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from jax_massact.errors import ConfigError


class Accelerator(NamedTuple):
    """One device. Bandwidths are bytes a second; those of links are what it can send.

    Attributes:
      kinds: its names as `jax.Device.device_kind`.
      flops: dense bfloat16 operations a second.
      memory: bytes.
      memory_bandwidth: of that memory.
      link: over all its fast links together (NVLink, ICI): half of the sum of both directions that
        data sheets give.
      torus: dimensions of the torus that the fast links make; 1: a switch.
      domain: how many devices the fast links join.
      network: of its share of the network beyond (one NIC for each GPU; DCN for TPUs).
      head_dim: what flash attention takes: a multiple of the first number, at most the second.
      pad: sequences are padded to a multiple of this for flash attention.
      source: where the figures are from.
      unconfirmed: which of them were not found in the maker's own text.
    """

    kinds: tuple[str, ...]
    flops: float
    memory: float
    memory_bandwidth: float
    link: float
    torus: int
    domain: int
    network: float
    head_dim: tuple[int, int]
    pad: int
    source: str
    unconfirmed: str = ""


_ANY = 1 << 20
_NVIDIA = "NVIDIA {0} Tensor Core GPU data sheet (SXM); DGX {0} user guide for the network"
_GOOGLE = "docs.cloud.google.com/tpu/docs/{0}"
_NOT_MAKERS = "all but flops: confirmed in other publications only"

ACCELERATORS = {
    "a100": Accelerator(
        ("NVIDIA A100-SXM4-80GB",), 312e12, 80e9, 2.039e12, 300e9, 1, 8, 25e9, (8, 128), 2,
        _NVIDIA.format("A100"), _NOT_MAKERS,
    ),
    "h100": Accelerator(
        ("NVIDIA H100 80GB HBM3",), 989e12, 80e9, 3.35e12, 450e9, 1, 8, 50e9, (8, 256), 2,
        _NVIDIA.format("H100"), _NOT_MAKERS,
    ),
    "h200": Accelerator(
        ("NVIDIA H200",), 989e12, 141e9, 4.8e12, 450e9, 1, 8, 50e9, (8, 256), 2,
        _NVIDIA.format("H200"), _NOT_MAKERS,
    ),
    # A pod's 6.4 Tb/s for 256 chips.
    "v5e": Accelerator(
        ("TPU v5 lite", "TPU v5e"), 197e12, 16e9, 819e9, 200e9, 2, 256, 3.125e9, (64, _ANY), 128,
        _GOOGLE.format("v5e"),
    ),
    "v5p": Accelerator(
        ("TPU v5", "TPU v5p"), 459e12, 95e9, 2.765e12, 600e9, 3, 8960, 6.25e9, (64, _ANY), 128,
        _GOOGLE.format("v5p"),
    ),
    "v6e": Accelerator(
        ("TPU v6 lite", "TPU v6e"), 918e12, 32e9, 1.638e12, 400e9, 2, 256, 12.5e9, (64, _ANY), 128,
        _GOOGLE.format("v6e"), "network: 25.6 Tb/s for a pod of 256 chips",
    ),
}

# Dense bfloat16 operations a second by jax.Device.device_kind, for MFU; also of devices that
# nothing is planned for.
PEAK_FLOPS = {kind: a.flops for a in ACCELERATORS.values() for kind in a.kinds} | {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA L4": 121e12,
    "TPU v4": 275e12,
}


def find_accelerator(name: str) -> Accelerator:
    """The row of ACCELERATORS.

    Raises:
      ConfigError: there is none.
    """
    if name not in ACCELERATORS:
        raise ConfigError(f"--device is {name!r}; expected: {', '.join(ACCELERATORS)}")
    return ACCELERATORS[name]


def peak_flops(dtype: str, devices: Iterable[Any]) -> float | None:
    """Peak of the devices together, operations per second; None where it is not known."""
    peaks = [PEAK_FLOPS.get(device.device_kind) for device in devices]
    if dtype != "bfloat16" or None in peaks:
        return None
    return sum(peak for peak in peaks if peak is not None)
