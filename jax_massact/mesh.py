"""The device mesh, and the one table that says how each kind of array is laid out on it.

A kind is named by its einsum letters: B sequences, T tokens, D residual stream, N query heads,
K key/value heads, H head dimension, F hidden units of the MLP, V vocabulary, P positions. Mesh axes
are `dcn`, `data` and `fsdp` (all split the batch; `fsdp` also splits parameters) and `model`
(heads, hidden units, vocabulary). `dcn` counts slices of TPUs that only a data-center network
joins, or any other groups of devices between which little should be sent.

Everything here is a no-op where the caller has no mesh or one with automatic axes. Axes that the
current mesh does not have, and axes that do not divide an array, are left out, so the same model
runs under any mesh.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import mesh_utils
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jax_massact.errors import ConfigError

AXES = ("dcn", "data", "fsdp", "model")
_BATCH = ("dcn", "data", "fsdp")

LAYOUTS: dict[str, tuple[str | tuple[str, ...] | None, ...]] = {
    "act_bt": (_BATCH, None),
    "act_btd": (_BATCH, None, None),
    "act_btf": (_BATCH, None, "model"),
    "act_btnh": (_BATCH, None, "model", None),
    "act_btn": (_BATCH, None, "model"),
    "act_btv": (_BATCH, None, "model"),
    "embed_vd": ("model", "fsdp"),
    "head_dv": ("fsdp", "model"),
    "positions_pd": (None, "fsdp"),
    "qkv_dnh": ("fsdp", "model", None),
    "out_nhd": ("model", None, "fsdp"),
    "bias_nh": ("model", None),
    "bias_n": ("model",),
    "gate_dn": ("fsdp", "model"),
    "up_df": ("fsdp", "model"),
    "down_fd": ("model", "fsdp"),
    "bias_f": ("model",),
    "vector_d": (None,),
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
    devices = jax.devices()[: math.prod(shape)] if devices is None else devices
    kinds = (AxisType.Explicit,) * len(AXES)
    if slices(devices) == 1 and dcn == 1:
        return jax.make_mesh(shape, AXES, axis_types=kinds, devices=devices)
    return jax.sharding.Mesh(arranged(shape, devices), AXES, axis_types=kinds)


def slices(devices: Sequence[Any]) -> int:
    """How many slices of TPUs these are; other devices are in one."""
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
        raise ConfigError(f"mesh.dcn is {dcn}; the devices are in {found} slices; allowed: {found}")
    return mesh_utils.create_hybrid_device_mesh((1, *inside), (dcn, 1, 1, 1), devices)


def _explicit_sizes() -> dict[str, int]:
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }


def _fit(
    layout: Sequence[str | tuple[str, ...] | None],
    shape: Sequence[int],
    sizes: dict[str, int],
    without: Sequence[str] = (),
) -> PartitionSpec:
    fitted = []
    for entry, length in zip(layout, shape, strict=True):
        names = (entry,) if isinstance(entry, str) else entry or ()
        names = tuple(n for n in names if n in sizes and n not in without)
        divides = names and length % math.prod(sizes[n] for n in names) == 0
        fitted.append(names if divides else None)
    return PartitionSpec(*fitted)


def _names(spec: PartitionSpec) -> set[str]:
    """The mesh axes in `spec`; some versions of JAX keep ("model",), others make it "model"."""
    entries = ((entry,) if isinstance(entry, str) else entry or () for entry in spec)
    return {name for names in entries for name in names}


def parameter_sharding(
    mesh: jax.sharding.Mesh, kind: str, shape: Sequence[int], *, stacked: bool
) -> NamedSharding:
    """Where a parameter of this kind lives; `stacked` parameters have a leading layer axis."""
    layout = LAYOUTS[kind]
    sizes = dict(zip(mesh.axis_names, mesh.axis_sizes, strict=True))
    layout = (None, *layout) if stacked else layout
    return NamedSharding(mesh, _fit(layout, shape, sizes))


def constrain(x: jax.Array, kind: str) -> jax.Array:
    """`x` in the layout of its kind."""
    sizes = _explicit_sizes()
    return jax.reshard(x, _fit(LAYOUTS[kind], x.shape, sizes)) if sizes else x


def whole(x: jax.Array) -> jax.Array:
    """`x` on every device."""
    return jax.reshard(x, PartitionSpec()) if _explicit_sizes() else x


def by_sequence(x: jax.Array) -> jax.Array:
    """`x` [B, ...] spread over sequences only, whole in all other axes."""
    sizes = _explicit_sizes()
    layout = (_BATCH, *(None,) * (x.ndim - 1))
    return jax.reshard(x, _fit(layout, x.shape, sizes)) if sizes else x


def gathered(w: jax.Array, kind: str) -> jax.Array:
    """A parameter made whole over `fsdp`, as it is needed for one block's computation."""
    sizes = _explicit_sizes()
    return jax.reshard(w, _fit(LAYOUTS[kind], w.shape, sizes, without=("fsdp",))) if sizes else w


def einsum(equation: str, x: jax.Array, w: jax.Array, *, out: str) -> jax.Array:
    """`jnp.einsum` of activations `bt...` and a parameter, in the layout of kind `out`.

    Both are matrices while they are multiplied, all tokens in one axis: XLA transposes on GPUs what
    has several axes to contract, also for the gradients, and spends more time on that than on some
    of the products.

    float32 operands are multiplied in full float32 on every device; accelerators would otherwise
    round them to TF32 or bfloat16 first.
    """
    operands, result = equation.split("->")
    of_x, of_w = operands.split(",")
    contracted, new = of_x.removeprefix("bt"), result.removeprefix("bt")
    flipped = of_w != contracted + new
    shape = dict(zip(of_x + of_w, (*x.shape, *w.shape), strict=True))
    sizes = _explicit_sizes()
    spec = _fit(LAYOUTS[out], [shape[c] for c in result], sizes)
    y = jax.lax.dot_general(
        _matrix(x, len("bt")),
        _matrix(w, len(new) if flipped else len(contracted)),
        (((1,), (1 if flipped else 0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        out_sharding=PartitionSpec(spec[0], spec[2]) if sizes else None,
    )
    return jax.lax.reshape(y, [shape[c] for c in result], out_sharding=spec if sizes else None)


def _matrix(x: jax.Array, rows: int) -> jax.Array:
    """`x` with its first `rows` axes in one, and the others in one."""
    shape = (math.prod(x.shape[:rows]), math.prod(x.shape[rows:]))
    if not _explicit_sizes():
        return x.reshape(shape)
    # Of axes that are joined, only the first is ever split over devices.
    spec = jax.typeof(x).sharding.spec
    return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(spec[0], spec[rows]))


def broadcast(x: jax.Array, like: jax.Array) -> jax.Array:
    """`x`, one value or row for the last axes of `like`, for all of `like`.

    Its axes stay in their order in memory. Else XLA for GPUs, so as to sum the gradient along a
    contiguous axis, would put sequences last in it and in all activations that it depends on, and
    transpose those for every product.
    """
    axes = range(like.ndim - x.ndim, like.ndim)
    sharding = jax.typeof(like).sharding if _explicit_sizes() else None
    return _in_order(jax.lax.broadcast_in_dim(x, like.shape, axes, out_sharding=sharding))


def sum_over_tokens(x: jax.Array) -> jax.Array:
    """The sum over all axes but the last; the gradient of `broadcast`, and as careful."""
    return _in_order(x).sum(range(x.ndim - 1))


def _in_order(x: jax.Array) -> jax.Array:
    def local(x):
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    if math.prod(_explicit_sizes().values()) == 1:
        return local(x)
    # XLA does not split this operation: it would gather all sequences on every device first.
    spec = jax.typeof(x).sharding.spec
    return jax.shard_map(local, in_specs=spec, out_specs=spec)(x)


def pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[..., index], one number for each row of the last axis, which may be split over devices."""
    if is_split(x):
        return jnp.where(one_hot(x, index), x, 0).sum(-1)
    if _explicit_sizes():
        x = jax.reshard(x, PartitionSpec(*jax.typeof(x).sharding.spec[:-1], None))
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]


def is_split(x: jax.Array) -> bool:
    """Whether the last axis of `x` is in parts on several devices."""
    sizes = _explicit_sizes()
    names = jax.typeof(x).sharding.spec[-1] or () if sizes else ()
    return math.prod(sizes[n] for n in ((names,) if isinstance(names, str) else names)) > 1


def one_hot(x: jax.Array, index: jax.Array) -> jax.Array:
    """Where in the last axis of `x` is `index` [...]: booleans in the layout of `x`."""
    # Without its layout, every device would compare, or gather, the whole axis.
    sharding = jax.typeof(x).sharding if _explicit_sizes() else None
    places = jax.lax.broadcasted_iota(index.dtype, x.shape, x.ndim - 1, out_sharding=sharding)
    return places == index[..., None]


def take_rows(table: jax.Array, ids: jax.Array, *, out: str) -> jax.Array:
    """`table[ids]` whose result has the layout of kind `out`; ids are in range."""
    sizes = _explicit_sizes()
    if not sizes:
        return table[ids]
    spec = _fit(LAYOUTS[out], (*ids.shape, *table.shape[1:]), sizes)
    return table.at[ids].get(out_sharding=spec)


def per_query_head(x: jax.Array, num_heads: int) -> jax.Array:
    """[K, H], one row for each key/value head, as [N, H]: a row for each query head."""
    x = jnp.repeat(whole(x), num_heads // x.shape[0], axis=0)
    return constrain(x, "bias_nh")


def per_head(
    attend: Callable[..., jax.Array],
    operands: Sequence[jax.Array | None],
    kinds: Sequence[str],
    *,
    out: str,
) -> jax.Array:
    """Runs attention where each device has its own sequences and heads: no collective is needed.

    Heads stay whole on every device where `model` does not divide the key/value heads.
    """
    sizes = _explicit_sizes()
    if not sizes:
        return attend(*operands)
    arrays = [(x, LAYOUTS[k]) for x, k in zip(operands, kinds, strict=True) if x is not None]
    fitted = [_fit(layout, x.shape, sizes) for x, layout in arrays]
    whole = any(
        "model" in layout and "model" in sizes and "model" not in _names(spec)
        for (_, layout), spec in zip(arrays, fitted, strict=True)
    )
    without = ("model",) if whole else ()
    specs = [
        None if x is None else _fit(LAYOUTS[k], x.shape, sizes, without)
        for x, k in zip(operands, kinds, strict=True)
    ]
    operands = [
        None if x is None else jax.reshard(x, spec)
        for x, spec in zip(operands, specs, strict=True)
    ]
    q = operands[0]
    assert q is not None
    out_specs = _fit(LAYOUTS[out], q.shape, sizes, without)
    run = jax.shard_map(attend, in_specs=tuple(specs), out_specs=out_specs, check_vma=False)
    result = run(*operands)
    return jax.reshard(result, _fit(LAYOUTS[out], q.shape, sizes))
