"""Operations on arrays that may be spread over a mesh.

Each is the plain operation where the caller has no mesh, or one with automatic axes. Kinds of
arrays are named as in `mesh.LAYOUTS`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.sharding import AxisType, PartitionSpec

from jax_massact.mesh import BATCH, LAYOUTS, fit


def explicit_sizes() -> dict[str, int]:
    """The explicit axes of the current mesh, and their sizes."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return {}
    return {
        name: size
        for name, size, kind in zip(mesh.axis_names, mesh.axis_sizes, mesh.axis_types, strict=True)
        if kind == AxisType.Explicit
    }


def constrain(x: jax.Array, kind: str) -> jax.Array:
    """`x` in the layout of its kind."""
    sizes = explicit_sizes()
    return jax.reshard(x, fit(LAYOUTS[kind], x.shape, sizes)) if sizes else x


def whole(x: jax.Array) -> jax.Array:
    """`x` on every device."""
    return jax.reshard(x, PartitionSpec()) if explicit_sizes() else x


def by_sequence(x: jax.Array) -> jax.Array:
    """`x` [B, ...] spread over sequences only, whole in all other axes."""
    sizes = explicit_sizes()
    layout = (BATCH, *(None,) * (x.ndim - 1))
    return jax.reshard(x, fit(layout, x.shape, sizes)) if sizes else x


def reshaped(x: jax.Array, *axes: int) -> jax.Array:
    """`x` [B, ...] with other axes behind the first, in none of which it is split over devices."""
    shape = (x.shape[0], *axes)
    if not explicit_sizes():
        return x.reshape(shape)
    spec = jax.typeof(x).sharding.spec
    return jax.lax.reshape(x, shape, out_sharding=PartitionSpec(spec[0], *(None,) * len(axes)))


def gathered(w: jax.Array, kind: str) -> jax.Array:
    """A parameter made whole over `fsdp`, as it is needed for one block's computation."""
    sizes = explicit_sizes()
    return jax.reshard(w, fit(LAYOUTS[kind], w.shape, sizes, without=("fsdp",))) if sizes else w


def matmul(
    x: jax.Array, w: jax.Array, letters: str, *, transposed: bool = False
) -> jax.Array:
    """The last axes of `x` [B T ...] times the first axes of `w`, of this kind.

    Both are matrices while they are multiplied, all tokens in one axis: XLA transposes on GPUs what
    has several axes to contract, also for the gradients, and spends more time on that than on some
    of the matmuls.

    float32 operands are multiplied in full float32 on every device; accelerators would otherwise
    round them to TF32 or bfloat16 first.

    Args:
      transposed: the last axes of `w` are contracted, not the first.
    """
    inner = x.ndim - 2
    axis = w.ndim - inner if transposed else inner
    new = letters[:axis] if transposed else letters[axis:]
    shape = (*x.shape[:2], *(w.shape[:axis] if transposed else w.shape[axis:]))
    sizes = explicit_sizes()
    spec = fit(LAYOUTS[f"bt{new}"], shape, sizes)
    y = jax.lax.dot_general(
        _matrix(x, 2),
        _matrix(w, axis),
        (((1,), (1 if transposed else 0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
        out_sharding=PartitionSpec(spec[0], spec[2]) if sizes else None,
    )
    return jax.lax.reshape(y, shape, out_sharding=spec if sizes else None)


def _matrix(x: jax.Array, rows: int) -> jax.Array:
    """`x` with its first `rows` axes in one, and the others in one."""
    shape = (math.prod(x.shape[:rows]), math.prod(x.shape[rows:]))
    if not explicit_sizes():
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
    sharding = jax.typeof(like).sharding if explicit_sizes() else None
    return _in_order(jax.lax.broadcast_in_dim(x, like.shape, axes, out_sharding=sharding))


def sum_over_tokens(x: jax.Array) -> jax.Array:
    """The sum over all axes but the last; the gradient of `broadcast`, and as careful."""
    return _in_order(x).sum(range(x.ndim - 1))


def _in_order(x: jax.Array) -> jax.Array:
    def local(x):
        return with_layout_constraint(x, Layout(tuple(range(x.ndim))))

    if math.prod(explicit_sizes().values()) == 1:
        return local(x)
    # XLA does not split this operation: it would gather all sequences on every device first.
    spec = jax.typeof(x).sharding.spec
    return jax.shard_map(local, in_specs=spec, out_specs=spec)(x)


def pick(x: jax.Array, index: jax.Array) -> jax.Array:
    """x[..., index], one number for each row of the last axis, which may be split over devices."""
    if is_split(x):
        return jnp.where(one_hot(x, index), x, 0).sum(-1)
    if explicit_sizes():
        x = jax.reshard(x, PartitionSpec(*jax.typeof(x).sharding.spec[:-1], None))
    return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]


def is_split(x: jax.Array) -> bool:
    """Whether the last axis of `x` is in parts on several devices."""
    sizes = explicit_sizes()
    names = jax.typeof(x).sharding.spec[-1] or () if sizes else ()
    return math.prod(sizes[n] for n in ((names,) if isinstance(names, str) else names)) > 1


def one_hot(x: jax.Array, index: jax.Array) -> jax.Array:
    """Where in the last axis of `x` is `index` [...]: booleans in the layout of `x`."""
    # Without its layout, every device would compare, or gather, the whole axis.
    sharding = jax.typeof(x).sharding if explicit_sizes() else None
    places = jax.lax.broadcasted_iota(index.dtype, x.shape, x.ndim - 1, out_sharding=sharding)
    return places == index[..., None]


def take_rows(table: jax.Array, ids: jax.Array, *, out: str) -> jax.Array:
    """`table[ids]` whose result has the layout of kind `out`; ids are in range."""
    sizes = explicit_sizes()
    if not sizes:
        return table[ids]
    spec = fit(LAYOUTS[out], (*ids.shape, *table.shape[1:]), sizes)
    return table.at[ids].get(out_sharding=spec)


def entries(w: jax.Array, index: tuple) -> jax.Array:
    """`w[index]` on every device, of a parameter that may be spread over them."""
    return w.at[index].get(out_sharding=PartitionSpec() if explicit_sizes() else None)


def per_query_head(x: jax.Array, num_heads: int) -> jax.Array:
    """[K, H], one row for each key/value head, as [N, H]: a row for each query head."""
    x = jnp.repeat(whole(x), num_heads // x.shape[0], axis=0)
    return constrain(x, "nh")


def per_unit(
    function: Callable[..., jax.Array],
    operands: Sequence[Any],
    kinds: Sequence[str],
    *,
    summed: bool = False,
) -> jax.Array:
    """Runs `function(*operands)` where each device has its own sequences and hidden units.

    Args:
      kinds: of the operands, activations or parameters, of which those that are absent are None.
      summed: whether the result is a sum over units, [B T D]; else it has them, [B T k F].
    """
    arrays = [None if x is None else x[...] for x in operands]
    sizes = explicit_sizes()
    if not sizes:
        return function(*arrays)

    def spec(x: jax.Array, kind: str) -> PartitionSpec:
        # Activations are spread over `fsdp`, parameters are gathered from it.
        without = () if kind.startswith("b") else ("fsdp",)
        return fit(LAYOUTS[kind], x.shape, sizes, without)

    specs = [None if x is None else spec(x, k) for x, k in zip(arrays, kinds, strict=True)]
    of_units = [s for s, k in zip(specs, kinds, strict=True) if s is not None and "f" in k]
    split = any("model" in _names(s) for s in of_units)

    def local(*parts: Any) -> jax.Array:
        result = function(*parts)
        return jax.lax.psum(result, "model") if split and summed else result

    batch = specs[0][0] if specs[0] is not None else None
    units = () if summed else (None, "model" if split else None)
    run = jax.shard_map(
        local, in_specs=tuple(specs), out_specs=PartitionSpec(batch, None, *units), check_vma=False
    )
    return run(*(None if x is None else jax.reshard(x, s)
                 for x, s in zip(arrays, specs, strict=True)))


def _names(spec: PartitionSpec) -> set[str]:
    """The mesh axes in `spec`; some versions of JAX keep ("model",), others make it "model"."""
    entries = ((entry,) if isinstance(entry, str) else entry or () for entry in spec)
    return {name for names in entries for name in names}


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
    sizes = explicit_sizes()
    if not sizes:
        return attend(*operands)
    arrays = [(x, LAYOUTS[k]) for x, k in zip(operands, kinds, strict=True) if x is not None]
    fitted = [fit(layout, x.shape, sizes) for x, layout in arrays]
    whole = any(
        "model" in layout and "model" in sizes and "model" not in _names(spec)
        for (_, layout), spec in zip(arrays, fitted, strict=True)
    )
    without = ("model",) if whole else ()
    specs = [
        None if x is None else fit(LAYOUTS[k], x.shape, sizes, without)
        for x, k in zip(operands, kinds, strict=True)
    ]
    operands = [
        None if x is None else jax.reshard(x, spec)
        for x, spec in zip(operands, specs, strict=True)
    ]
    q = operands[0]
    assert q is not None
    out_specs = fit(LAYOUTS[out], q.shape, sizes, without)
    run = jax.shard_map(attend, in_specs=tuple(specs), out_specs=out_specs, check_vma=False)
    result = run(*operands)
    return jax.reshard(result, fit(LAYOUTS[out], q.shape, sizes))
