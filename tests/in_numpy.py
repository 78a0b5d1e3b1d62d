"""Traced programs, computed operation by operation in NumPy.

A test of a formula asks what JAX was told to compute for a tiny model. XLA takes a second to
compile that and NumPy a millisecond to do it, so such tests call `in_numpy.jit` in place of
`jax.jit`. Commands, meshes, training and exact statistics are compiled, as they are for users.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import ml_dtypes
import numpy as np
from jax.extend import core

erf = np.vectorize(math.erf, otypes=[float])


def jit(f: Callable[..., Any], static: Sequence[str] = ()) -> Callable[..., Any]:
    """`f` without a compilation: traced once for each shape; its arrays are NumPy's."""
    names = list(inspect.signature(f).parameters)
    traced = jax.jit(f, static_argnames=static)

    def call(*args: Any, **named: Any) -> Any:
        program = traced.trace(*args, **named)
        positional = [x for name, x in zip(names, args, strict=False) if name not in static]
        given = {name: x for name, x in named.items() if name not in static}
        found = run(program.jaxpr.jaxpr, program.jaxpr.consts, jax.tree.leaves((positional, given)))
        found = [np.array(x, order="C") for x in found]
        return jax.tree.unflatten(jax.tree.structure(program.out_info), found)

    return call


def run(jaxpr, consts, args, shapes=True) -> list[np.ndarray]:
    """The results of one jaxpr; every intermediate has the type, and shape, that JAX gives it."""
    values = dict(zip(jaxpr.constvars, map(np.asarray, consts), strict=True))
    values |= zip(jaxpr.invars, map(np.asarray, args), strict=True)

    def get(x):
        return np.asarray(x.val) if isinstance(x, core.Literal) else values[x]

    for eqn in jaxpr.eqns:
        found = operation(eqn, [get(x) for x in eqn.invars])
        for var, value in zip(eqn.outvars, found, strict=True):
            values[var] = np.asarray(value).astype(var.aval.dtype, copy=False)
            assert not shapes or values[var].shape == var.aval.shape, eqn
    return [get(x) for x in jaxpr.outvars]


def operation(eqn, args):
    name, params = eqn.primitive.name, eqn.params
    if name in CONTROL:
        return CONTROL[name](*args, **params)
    if name in SAME:
        return args
    with np.errstate(all="ignore"):
        if name in PLAIN:
            return [PLAIN[name](*args)]
        if name in SHAPED:
            return [SHAPED[name](*args, **params)]
    if (inner := params.get("jaxpr") or params.get("call_jaxpr")) is not None:
        return run(getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), args)
    found = eqn.primitive.bind(*args, **params)
    return found if eqn.primitive.multiple_results else [found]


# Where an array lies, or what it is called.
SAME = {
    "copy", "copy_p", "layout_constraint", "mesh_cast", "name", "optimization_barrier", "reshard",
    "sharding_constraint", "stage", "stop_gradient",
}


def scan(*args, jaxpr, length, reverse, num_consts=0, num_carry=0, ft_in=None, **_):
    if ft_in is not None:  # as newer versions of JAX say it
        num_consts, num_carry = (len(list(part)) for part in ft_in.unpack()[:2])
    consts, carry = args[:num_consts], list(args[num_consts : num_consts + num_carry])
    rows = []
    for i in reversed(range(length)) if reverse else range(length):
        own = [x[i] for x in args[num_consts + num_carry :]]
        found = run(jaxpr.jaxpr, jaxpr.consts, [*consts, *carry, *own])
        carry = found[:num_carry]
        rows.append(found[num_carry:])
    rows = rows[::-1] if reverse else rows
    return [*carry, *(np.stack(column) for column in zip(*rows, strict=True))]


def while_loop(*args, cond_jaxpr, cond_nconsts, body_jaxpr, body_nconsts):
    at = cond_nconsts + body_nconsts
    cond, body, carry = args[:cond_nconsts], args[cond_nconsts:at], args[at:]
    while run(cond_jaxpr.jaxpr, cond_jaxpr.consts, [*cond, *carry])[0]:
        carry = run(body_jaxpr.jaxpr, body_jaxpr.consts, [*body, *carry])
    return carry


def cond(index, *args, branches, **_):
    branch = branches[int(index)]
    return run(branch.jaxpr, branch.consts, args)


def split(x, *, sizes, axis):
    return np.split(x, np.cumsum(sizes)[:-1], axis)


def top_k(x, *, k, axis=-1, **_):
    order = np.argsort(-x, axis, kind="stable").take(range(k), axis)
    return np.take_along_axis(x, order, axis), order


def sort(*xs, dimension, is_stable, num_keys):
    order = np.lexsort([x for x in reversed(xs[:num_keys])], dimension)
    return [np.take_along_axis(x, order, dimension) for x in xs]


def reduce(*args, jaxpr, dimensions, **_):
    """By a function of numbers, which serves whole rows as well."""
    of_rows = lambda x: np.moveaxis(x, dimensions, range(len(dimensions)))
    rows, found = map(of_rows, args[: len(args) // 2]), args[len(args) // 2 :]
    rows = [x.reshape(-1, *x.shape[len(dimensions) :]) for x in rows]
    for row in zip(*rows, strict=True):
        found = run(jaxpr.jaxpr, jaxpr.consts, [*found, *row], shapes=False)
    return [np.broadcast_to(x, row.shape[1:]) for x, row in zip(found, rows, strict=True)]


CONTROL = {
    "scan": scan, "while": while_loop, "cond": cond, "split": split, "top_k": top_k, "sort": sort,
    "reduce": reduce,
}


def divided(a, b):
    if np.issubdtype(a.dtype, np.integer):
        return np.trunc(a / np.float64(b))
    return a / b


PLAIN = {
    "neg": np.negative, "sin": np.sin, "cos": np.cos, "tanh": np.tanh, "exp": np.exp,
    "exp2": np.exp2, "log": np.log, "log1p": np.log1p, "expm1": np.expm1, "sqrt": np.sqrt,
    "abs": np.abs, "sign": np.sign, "floor": np.floor, "ceil": np.ceil, "square": np.square,
    "is_finite": np.isfinite, "pow": np.power, "rem": np.fmod, "add": np.add, "add_any": np.add,
    "sub": np.subtract, "mul": np.multiply, "max": np.maximum, "min": np.minimum,
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "not": np.invert, "rsqrt": lambda x: 1 / np.sqrt(x), "div": divided, "erf": erf,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "clamp": lambda low, x, high: np.minimum(np.maximum(x, low), high),
    "select_n": lambda which, *cases: np.choose(which.astype(int), cases),
}


def dot(a, b, *, dimension_numbers, **_):
    (sum_a, sum_b), (batch_a, batch_b) = dimension_numbers
    at_a, at_b = list(range(a.ndim)), list(range(a.ndim, a.ndim + b.ndim))
    for i, j in [*zip(sum_a, sum_b, strict=True), *zip(batch_a, batch_b, strict=True)]:
        at_b[j] = i
    free = [i for i in at_a if i not in sum_a and i not in batch_a]
    free += [at_b[j] for j in range(b.ndim) if j not in sum_b and j not in batch_b]
    a, b = (x if x.dtype.kind in "fi" else x.astype(np.float32) for x in (a, b))
    return np.einsum(a, at_a, b, at_b, [*batch_a, *free], optimize=True)


def ragged_dot(a, b, sizes, *, ragged_dot_dimension_numbers, **_):
    """Rows of a, in groups that follow each other, by one matrix of b each; else zeros.

    Or, as the gradient of that: the rows of a and of b of each group, multiplied.
    """
    numbers = ragged_dot_dimension_numbers
    assert [*numbers.lhs_ragged_dimensions] == [0]
    ends = np.cumsum(sizes)
    groups = [slice(end - size, end) for end, size in zip(ends, sizes, strict=True)]
    if numbers.dot_dimension_numbers == (((0,), (0,)), ((), ())):
        return np.stack([a[rows].T @ b[rows] for rows in groups])
    ((one,), (axis,)), batch = numbers.dot_dimension_numbers
    assert (one, *batch, *numbers.rhs_group_dimensions) == (1, (), (), 0)
    out = np.zeros((len(a), b.shape[3 - axis]), a.dtype)
    for rows, matrix in zip(groups, b, strict=True):
        out[rows] = a[rows] @ (matrix if axis == 1 else matrix.T)
    return out


def rounded(x, *, exponent_bits, mantissa_bits):
    assert (exponent_bits, mantissa_bits) == (8, 7)
    return x.astype(ml_dtypes.bfloat16)


def broadcast(x, *, shape, broadcast_dimensions, **_):
    shape_of_x = [1] * len(shape)
    for size, dim in zip(x.shape, broadcast_dimensions, strict=True):
        shape_of_x[dim] = size
    return np.broadcast_to(x.reshape(shape_of_x), shape)


def sliced(x, *, start_indices, limit_indices, strides):
    strides = strides or [1] * x.ndim
    return x[tuple(map(slice, start_indices, limit_indices, strides))]


def _at(x, starts, sizes):
    """Slices that begin at `starts`, moved inside x."""
    starts = (min(max(int(s), 0), n - k) for s, n, k in zip(starts, x.shape, sizes, strict=True))
    return tuple(slice(s, s + k) for s, k in zip(starts, sizes, strict=True))


def updated(x, update, *starts, **_):
    x = x.copy()
    x[_at(x, starts, update.shape)] = update
    return x


def padded(x, value, *, padding_config):
    shape = [lo + hi + n + max(n - 1, 0) * inside
             for n, (lo, hi, inside) in zip(x.shape, padding_config, strict=True)]
    assert all(lo >= 0 and hi >= 0 for lo, hi, _ in padding_config)
    out = np.full(shape, value)
    out[tuple(slice(lo, n - hi, inside + 1)
              for n, (lo, hi, inside) in zip(shape, padding_config, strict=True))] = x
    return out


def places(shape, indices, numbers, sizes):
    """Of a gather or scatter: indices into each dimension, and which of them are inside."""
    in_window = [d for d in range(len(shape)) if sizes[d] is not None]
    batch = indices.shape[:-1]
    rank = len(batch) + len(in_window)
    batch_at = [i for i in range(rank) if i not in numbers["window"]]
    found, inside = [], np.True_
    for d, n in enumerate(shape):
        index = np.zeros(batch, int)
        if d in numbers["map"]:
            index = indices[..., numbers["map"].index(d)].astype(int)
        elif d in numbers["batching"]:
            along = numbers["indices_batching"][numbers["batching"].index(d)]
            index = np.broadcast_to(
                np.arange(n).reshape([-1 if i == along else 1 for i in range(len(batch))]), batch)
        size = sizes[d] or 1
        if numbers["clip"]:
            index = index.clip(0, n - size)
        index = np.expand_dims(index, [i for i in range(rank) if i not in batch_at])
        inside = inside & (index >= 0) & (index + size <= n)
        if d in in_window:
            at = numbers["window"][in_window.index(d)]
            index = index + np.arange(size).reshape([-1 if i == at else 1 for i in range(rank)])
        found.append(index)
    return [index.clip(0, n - 1) for index, n in zip(found, shape, strict=True)], inside


def gather(x, indices, *, dimension_numbers, slice_sizes, mode, fill_value, **_):
    n = dimension_numbers
    dropped = {*n.collapsed_slice_dims, *n.operand_batching_dims}
    sizes = [None if d in dropped else size for d, size in enumerate(slice_sizes)]
    index, inside = places(x.shape, indices, {
        "window": n.offset_dims, "map": n.start_index_map, "batching": n.operand_batching_dims,
        "indices_batching": n.start_indices_batching_dims, "clip": "clip" in str(mode).lower(),
    }, sizes)
    out = x[tuple(index)]
    if "fill" not in str(mode).lower():
        return out
    if fill_value is None:
        limit = np.iinfo(x.dtype) if x.dtype.kind in "iu" else None
        fill_value = np.nan if limit is None else limit.max if limit.min == 0 else limit.min
    return np.where(inside, out, x.dtype.type(fill_value))


def scatter(how):
    def change(x, indices, updates, *, dimension_numbers, mode, **_):
        n = dimension_numbers
        dropped = {*n.inserted_window_dims, *n.operand_batching_dims}
        windows = iter(updates.shape[d] for d in n.update_window_dims)
        sizes = [None if d in dropped else next(windows) for d in range(x.ndim)]
        index, inside = places(x.shape, indices, {
            "window": n.update_window_dims, "map": n.scatter_dims_to_operand_dims,
            "batching": n.operand_batching_dims, "clip": "clip" in str(mode).lower(),
            "indices_batching": n.scatter_indices_batching_dims,
        }, sizes)
        out = x.copy()
        inside, *index = np.broadcast_arrays(inside, *index)
        chosen = tuple(i[inside] for i in index)
        if how is None:
            out[chosen] = updates[inside]
        else:
            how.at(out, chosen, updates[inside])
        return out

    return change


def reduced(how):
    return lambda x, *, axes, **_: how.reduce(x, axis=tuple(axes))


def running(how):
    return lambda x, *, axis, reverse: (
        np.flip(how.accumulate(np.flip(x, axis), axis), axis) if reverse
        else how.accumulate(x, axis)
    )


SHAPED = {
    "dot_general": dot, "ragged_dot_general": ragged_dot,
    "reduce_precision": rounded,
    "stack": lambda *xs, axis=0, **_: np.stack(xs, axis),
    "broadcast_in_dim": broadcast, "slice": sliced, "pad": padded,
    "dynamic_slice": lambda x, *starts, slice_sizes, **_: x[_at(x, starts, slice_sizes)],
    "dynamic_update_slice": updated, "gather": gather,
    "scatter": scatter(None), "scatter-add": scatter(np.add),
    "reshape": lambda x, *, new_sizes, **_: x.reshape(new_sizes),
    "squeeze": lambda x, *, dimensions: x.squeeze(tuple(dimensions)),
    "expand_dims": lambda x, *, dimensions: np.expand_dims(x, tuple(dimensions)),
    "transpose": lambda x, *, permutation: x.transpose(permutation),
    "concatenate": lambda *xs, dimension: np.concatenate(xs, dimension),
    "rev": lambda x, *, dimensions: np.flip(x, dimensions),
    "iota": lambda *, dtype, shape, dimension, **_: np.broadcast_to(
        np.arange(shape[dimension], dtype=dtype).reshape(
            [-1 if i == dimension else 1 for i in range(len(shape))]), shape),
    "integer_pow": lambda x, *, y: x**y,
    "convert_element_type": lambda x, *, new_dtype, **_: x.astype(new_dtype),
    "reduce_sum": reduced(np.add), "reduce_max": reduced(np.maximum),
    "reduce_min": reduced(np.minimum), "reduce_prod": reduced(np.multiply),
    "reduce_and": reduced(np.logical_and), "reduce_or": reduced(np.logical_or),
    "argmax": lambda x, *, axes, **_: x.argmax(axes[0]),
    "argmin": lambda x, *, axes, **_: x.argmin(axes[0]),
    "cumsum": running(np.add), "cummax": running(np.maximum),
}
