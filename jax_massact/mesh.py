"""The device mesh, and the one table that says how each kind of array is laid out on it.

A kind is named by its einsum letters: B sequences, T tokens, D residual stream, N query heads (or K
key/value heads), H head dimension, F hidden units of the MLP, V vocabulary, P positions, R rows in
front or extra keys, E experts, U units of the shared expert, X numbers of an image's patch. Mesh
axes are `dcn`, `data` and `fsdp` (all split the batch; `fsdp` also splits parameters) and `model`
(heads, hidden units, vocabulary).
`dcn` counts slices of TPUs that only a data-center network joins, or any other groups of devices
between which little should be sent. Axes that a mesh does not have, and axes that do not divide an
array, are left out, so the same model runs under any mesh.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_massact.errors import ConfigError

AXES = ("dcn", "data", "fsdp", "model")
BATCH = ("dcn", "data", "fsdp")

LAYOUTS: dict[str, tuple[str | tuple[str, ...] | None, ...]] = {
    # activations
    "bt": (BATCH, None),
    "btd": (BATCH, None, None),
    "btf": (BATCH, None, "model"),
    "btnh": (BATCH, None, "model", None),
    "btn": (BATCH, None, "model"),
    "btv": (BATCH, None, "model"),
    # parameters
    "": (),
    "v": ("model",),
    "vd": ("model", "fsdp"),
    "dv": ("fsdp", "model"),
    "pd": (None, "fsdp"),
    "xd": (None, "fsdp"),
    "rd": (None, "fsdp"),
    "dnh": ("fsdp", "model", None),
    "nhd": ("model", None, "fsdp"),
    "rnh": (None, "model", None),
    "rn": (None, "model"),
    "nh": ("model", None),
    "n": ("model",),
    "dn": ("fsdp", "model"),
    "df": ("fsdp", "model"),
    "fd": ("model", "fsdp"),
    "f": ("model",),
    "d": (None,),
    "h": (None,),
    # of a mixture
    "bte": (BATCH, None, None),
    "btk": (BATCH, None, None),
    "btkf": (BATCH, None, None, "model"),
    "bt1": (BATCH, None, None),
    "de": ("fsdp", None),
    "d1": ("fsdp", None),
    "e": (None,),
    "edf": (None, "fsdp", "model"),
    "efd": (None, "model", "fsdp"),
    "ef": (None, "model"),
    "ed": (None, None),
    "du": ("fsdp", "model"),
    "ud": ("model", "fsdp"),
}


def make_mesh(
    data: int = 1,
    fsdp: int = 1,
    model: int = 1,
    *,
    dcn: int = 1,
    devices: Sequence[Any] | None = None,
) -> jax.sharding.Mesh:
    """A mesh with the explicit axes AXES; make it current with `jax.set_mesh`.

    Devices of one slice are neighbours along `data`, `fsdp` and `model`; slices follow each other
    along `dcn`.

    Raises:
      ConfigError: the TPUs are in several slices, and `dcn` is not their number.
    """
    shape = (dcn, data, fsdp, model)
    devices = (jax.devices() if devices is None else devices)[: math.prod(shape)]
    kinds = (AxisType.Explicit,) * len(AXES)
    if slices(devices) == 1 and dcn == 1:
        # As jax.make_mesh does for v5e alone: 8 of the 16 chips along an axis of a torus, too.
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
        return jax.sharding.Mesh(placed, AXES, axis_types=kinds)
    return jax.sharding.Mesh(arranged(shape, devices), AXES, axis_types=kinds)


def slices(devices: Sequence[Any]) -> int:
    """Number of TPU slices of these devices; other devices form one."""
    return len({getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices})


def arranged(shape: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices as an array of this shape, one for each of AXES.

    Raises:
      ConfigError: the TPUs are in several slices, and `dcn` is not their number.
    """
    dcn, *inside = shape
    found = slices(devices)
    if found == 1:
        return np.asarray(devices, object).reshape(shape)
    if dcn != found:
        raise ConfigError(
            f"mesh.dcn is {dcn}; the devices are in {found} slices; expected: {found}"
        )
    return mesh_utils.create_hybrid_device_mesh((1, *inside), (dcn, 1, 1, 1), devices)


def fit(
    layout: Sequence[str | tuple[str, ...] | None],
    shape: Sequence[int],
    sizes: dict[str, int],
    without: Sequence[str] = (),
) -> PartitionSpec:
    """The layout of an array of this shape on a mesh with axes of these sizes."""
    fitted = []
    for entry, length in zip(layout, shape, strict=True):
        names = (entry,) if isinstance(entry, str) else entry or ()
        names = tuple(n for n in names if n in sizes and n not in without)
        divides = names and length % math.prod(sizes[n] for n in names) == 0
        fitted.append(names if divides else None)
    return PartitionSpec(*fitted)


def parameter_sharding(
    mesh: jax.sharding.Mesh, letters: str, shape: Sequence[int], *, stacked: bool
) -> NamedSharding:
    """Layout of a parameter of this kind; `stacked` parameters have a leading layer axis."""
    layout = LAYOUTS[letters]
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    layout = (None, *layout) if stacked else layout
    return NamedSharding(mesh, fit(layout, shape, sizes))
