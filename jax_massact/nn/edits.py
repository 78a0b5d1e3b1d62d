"""Interventions on a block's activations, as arrays: one compilation serves all of a shape.

Every kind of edit acts at one site (`nn.acts.EDITABLE`) after one block, at masked tokens; taps
and all later computation see the edited values. All fields but the site are arrays, so a caller
can `vmap` over many interventions, or change them without compiling again.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from jax_massact.nn import sharded
from jax_massact.nn.acts import EDITABLE

# In place of a token, of `MaxMoves`.
NOWHERE = -1
_NOT_MOVED = -2
# From a length T, where each token of the new order stood before [B T].
OrderOf = Callable[[int], Int[Array, "B T"]]


@runtime_checkable
class Edit(Protocol):
    """What the forward pass asks of an edit."""

    @property
    def site(self) -> str: ...

    def apply(self, x: Float[Array, "B T D"], layer: int | Int[Array, ""]) -> Float[Array, "B T D"]:
        """The activations at the edit's site in block `layer`, with the edits of that block."""
        ...

    def check(self, shape: tuple[int, int, int], depth: int) -> None:
        """Raises ValueError where a concrete value is out of range for activations [B T D]."""
        ...

    def reordered(self, order_of: "OrderOf") -> "Edit":
        """The same edit of sequences whose tokens come in another order."""
        ...


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "tokens", "dim", "scale", "add"], meta_fields=["site"],
)
@dataclasses.dataclass(frozen=True)
class Edits:
    """Sets or scales single dimensions: x[b, t, dim] = scale * x[b, t, dim] + add.

    Edits of the same place are applied in order.

    Attributes:
      layer: in which block, from 0.
      tokens: at which tokens; [E, B, T], or [E, 1, T] for every sequence alike.
      dim: which dimension of the site.
      scale: 0 to set a value, 1 to add to it.
      add: the value, in the units of the site; [E], or [E, B, T] for one per token.
      site: `resid_post` or any other of `nn.acts.EDITABLE`.
    """

    layer: Int[Array, " E"]
    tokens: Bool[Array, "E B T"]
    dim: Int[Array, " E"]
    scale: Float[Array, " E"]
    add: Float[Array, "..."]
    site: str = "resid_post"

    @classmethod
    def set_to(cls, layer, tokens, dim, value, *, site: str = "resid_post") -> "Edits":
        """Edits that set x[b, t, dim] = value at the masked tokens of block `layer`.

        A mask may leave out its first axes: [T] for every edit and sequence alike, [E, T] for every
        sequence alike.

        Raises:
          ValueError: `tokens` is no boolean mask.
        """
        layer = jnp.atleast_1d(jnp.asarray(layer, jnp.int32))
        tokens = _mask(tokens, layer.shape[0])
        dim = jnp.broadcast_to(jnp.asarray(dim, jnp.int32), layer.shape)
        value = jnp.asarray(value, jnp.float32)
        add = jnp.broadcast_to(value, layer.shape) if value.ndim < 2 else value
        return cls(layer, tokens, dim, jnp.zeros(layer.shape, jnp.float32), add, site)

    def apply(self, x: Float[Array, "B T D"], layer: int | Int[Array, ""]) -> Float[Array, "B T D"]:
        def one(x, edit: Edits):
            column = jax.lax.dynamic_slice_in_dim(x, edit.dim, 1, axis=2)
            scale, add = edit.scale.astype(x.dtype), jnp.asarray(edit.add).astype(x.dtype)
            add = add[..., None] if add.ndim else add
            # Scaling by zero keeps NaN and infinity; setting must not.
            changed = jnp.where(scale == 0, add, scale * column + add)
            here = edit.tokens[..., None] & (edit.layer == layer)
            column = jnp.where(here, changed, column)
            return jax.lax.dynamic_update_slice_in_dim(x, column, edit.dim, axis=2), None

        return jax.lax.scan(one, x, self)[0]

    def check(self, shape: tuple[int, int, int], depth: int) -> None:
        _check(self, shape, depth)
        _in_range("dim", self.dim, shape[2], f"dimensions of {self.site}")

    def reordered(self, order_of: OrderOf) -> "Edits":
        tokens, add = _taken(self.tokens, order_of), jnp.asarray(self.add)
        return dataclasses.replace(
            self, tokens=tokens, add=_taken(add, order_of) if add.ndim == 3 else add
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "tokens", "vector"], meta_fields=["site"],
)
@dataclasses.dataclass(frozen=True)
class VectorEdits:
    """Sets whole vectors: x[b, t] = vector.

    Attributes:
      layer: in which block, from 0.
      tokens: at which tokens; [E, B, T], or [E, 1, T] for every sequence alike.
      vector: [E, D], or [E, B, T, D] for one per token; T may be 1, for all that are masked.
      site: any of `nn.acts.EDITABLE`.
    """

    layer: Int[Array, " E"]
    tokens: Bool[Array, "E B T"]
    vector: Float[Array, "E ... D"]
    site: str = "resid_pre"

    def apply(self, x: Float[Array, "B T D"], layer: int | Int[Array, ""]) -> Float[Array, "B T D"]:
        def one(x, edit: VectorEdits):
            here = edit.tokens[..., None] & (edit.layer == layer)
            return jnp.where(here, edit.vector.astype(x.dtype), x), None

        return jax.lax.scan(one, x, self)[0]

    def check(self, shape: tuple[int, int, int], depth: int) -> None:
        _check(self, shape, depth)
        if self.vector.shape[-1] != shape[2]:
            raise ValueError(
                f"vector has {self.vector.shape[-1]} entries; expected: {shape[2]}, those of "
                f"{self.site}"
            )

    def reordered(self, order_of: OrderOf) -> "VectorEdits":
        tokens, vector = _taken(self.tokens, order_of), self.vector
        return dataclasses.replace(
            self, tokens=tokens, vector=_taken(vector, order_of) if vector.ndim == 4 else vector
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "size", "vector"], meta_fields=["site"],
)
@dataclasses.dataclass(frozen=True)
class Additions:
    """Adds a vector, longer or shorter at each token: x[b, t] += size[b, t] * vector.

    Attributes:
      layer: in which block, from 0.
      size: 0 where nothing is added.
      vector: one for each edit.
      site: any of `nn.acts.EDITABLE`.
    """

    layer: Int[Array, " E"]
    size: Float[Array, "E B T"]
    vector: Float[Array, "E D"]
    site: str = "resid_post"

    def apply(self, x: Float[Array, "B T D"], layer: int | Int[Array, ""]) -> Float[Array, "B T D"]:
        def one(x, edit: Additions):
            size = jnp.where(edit.layer == layer, edit.size, 0)[..., None]
            return (x + size * edit.vector).astype(x.dtype), None

        return jax.lax.scan(one, x, self)[0]

    def check(self, shape: tuple[int, int, int], depth: int) -> None:
        _check_place(self, depth)
        for name, found, wanted in (
            ("size", self.size.shape[1:], shape[:2]), ("vector", self.vector.shape[1:], shape[2:])
        ):
            if found != wanted:
                raise ValueError(f"{name} has the axes {found}; expected: {wanted}")

    def reordered(self, order_of: OrderOf) -> "Additions":
        return dataclasses.replace(self, size=_taken(self.size, order_of))


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "unit", "token"], meta_fields=["site"],
)
@dataclasses.dataclass(frozen=True)
class MaxMoves:
    """Moves a unit's largest activation over all tokens to one token; elsewhere it becomes 0.

    With the MLP's hidden units this makes a register at test time out of the units that write
    massive activations (Jiang et al. 2025, "Vision Transformers Don't Need Trained Registers").

    Attributes:
      layer: in which block, from 0.
      unit: which unit of the site.
      token: which token gets it; NOWHERE: none does, so that the unit is 0 at every token.
    """

    layer: Int[Array, " E"]
    unit: Int[Array, " E"]
    token: Int[Array, " E"]
    site: str = "mlp_hidden"

    def apply(self, x: Float[Array, "B T D"], layer: int | Int[Array, ""]) -> Float[Array, "B T D"]:
        units = x.shape[2]
        here = jnp.where(self.layer == layer, self.unit, units)
        token = jnp.full(units, _NOT_MOVED).at[here].set(self.token, mode="drop")
        at_token = jnp.arange(x.shape[1])[:, None] == token
        moved = jnp.where(at_token, x.max(1, keepdims=True), 0)
        return jnp.where(token == _NOT_MOVED, x, moved.astype(x.dtype))

    def check(self, shape: tuple[int, int, int], depth: int) -> None:
        _check_place(self, depth)
        _in_range("unit", self.unit, shape[2], f"units of {self.site}")
        some = jnp.where(jnp.asarray(self.token) == NOWHERE, 0, self.token)
        _in_range("token", some, shape[1], "tokens, rows in front included")

    def reordered(self, order_of: OrderOf) -> "MaxMoves":
        raise ValueError(
            "the largest activation over all tokens would be looked for in the padding, too; "
            "expected: sequences without padding for MaxMoves"
        )


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["layer", "dim", "limit"], meta_fields=["site"],
)
@dataclasses.dataclass(frozen=True)
class Clips:
    """Clips single dimensions at every token: |x[b, t, dim]| <= limit, with its sign.

    Attributes:
      layer: in which block, from 0.
      dim: which dimension of the site.
      limit: the largest magnitude that is left; infinite: nothing changes.
    """

    layer: Int[Array, " E"]
    dim: Int[Array, " E"]
    limit: Float[Array, " E"]
    site: str = "resid_post"

    def apply(self, x: Float[Array, "B T D"], layer: int | Int[Array, ""]) -> Float[Array, "B T D"]:
        limit = jnp.where(self.layer == layer, self.limit, jnp.inf)
        limits = jnp.full(x.shape[2], jnp.inf).at[self.dim].min(limit).astype(x.dtype)
        return jnp.clip(x, -limits, limits)

    def check(self, shape: tuple[int, int, int], depth: int) -> None:
        _check_place(self, depth)
        _in_range("dim", self.dim, shape[2], f"dimensions of {self.site}")

    def reordered(self, order_of: OrderOf) -> "Clips":
        del order_of
        return self


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["layers", "low", "high", "value", "limit", "ordinary"], meta_fields=["site"],
)
@dataclasses.dataclass(frozen=True)
class BandEdits:
    """Sets every activation of medium size: x = value + sign(x) * limit where low < |x| < high.

    Attributes:
      layers: in which blocks.
      low, high: between which magnitudes.
      value: what to set to, by block and dimension.
      limit: 0, or the magnitude that is left, with the sign of the activation: `low` to clip.
      ordinary: a control: at each token as many others are set, those next above the median.
    """

    layers: Bool[Array, " L"]
    low: Float[Array, ""]
    high: Float[Array, ""]
    value: Float[Array, "L D"]
    limit: Float[Array, ""]
    ordinary: Bool[Array, ""]
    site: str = "resid_post"

    def apply(self, x: Float[Array, "B T D"], layer: int | Int[Array, ""]) -> Float[Array, "B T D"]:
        size = jnp.abs(x)
        band = (size > self.low) & (size < self.high)

        def control(band):
            rank = jnp.argsort(jnp.argsort(size, axis=-1), axis=-1) - x.shape[-1] // 2
            return (rank >= 0) & (rank < band.sum(-1, keepdims=True))

        here = jax.lax.cond(jnp.asarray(self.ordinary), control, lambda band: band, band)
        new = jnp.asarray(self.value)[layer] + jnp.sign(x) * self.limit
        return jnp.where(here & jnp.asarray(self.layers)[layer], new.astype(x.dtype), x)

    def check(self, shape: tuple[int, int, int], depth: int) -> None:
        found = self.layers.shape, self.value.shape
        if found != ((depth,), (depth, shape[2])):
            raise ValueError(
                f"layers and value have shapes {found[0]} and {found[1]}; expected: {(depth,)} and "
                f"{(depth, shape[2])}, blocks and dimensions of {self.site}"
            )

    def reordered(self, order_of: OrderOf) -> "BandEdits":
        del order_of
        return self


def apply_edits(
    x: jax.Array, edits: Sequence[Edit], site: str, layer: int | Int[Array, ""]
) -> jax.Array:
    """The activations `x` at a site of block `layer`, with the edits made that act there."""
    for edit in edits:
        if edit.site == site:
            x = edit.apply(x, layer)
    return x


def _taken(x: Array, order_of: OrderOf) -> Array:
    """x [E B T ...], or [E 1 T ...] for every sequence alike, with its tokens in the new order."""
    order = sharded.by_sequence(order_of(x.shape[2]))
    x = jnp.broadcast_to(x, (x.shape[0], order.shape[0], *x.shape[2:]))
    # Sequences in front: over a mesh they lie apart.
    one = jax.vmap(lambda edits, order: edits[:, order])
    return one(sharded.by_sequence(x.swapaxes(0, 1)), order).swapaxes(0, 1)


def _mask(tokens: Any, count: int) -> Bool[Array, "E B T"]:
    mask = jnp.atleast_2d(jnp.asarray(tokens))
    if mask.dtype != bool or jnp.ndim(tokens) == 0:
        # A number would be read as a truth value.
        raise ValueError(
            f"tokens is {str(tokens)[:60]}; expected: a boolean mask with one entry for each "
            "token, such as jnp.arange(T) == 5"
        )
    mask = mask[:, None] if mask.ndim == 2 else mask
    return jnp.broadcast_to(mask, (count, *mask.shape[1:]))


def _check_place(edit: Any, depth: int) -> None:
    if edit.site not in EDITABLE:
        raise ValueError(f"site is {edit.site!r}; expected: one of {', '.join(EDITABLE)}")
    _in_range("layer", edit.layer, depth, "blocks")


def _check(edit: Any, shape: tuple[int, int, int], depth: int) -> None:
    _check_place(edit, depth)
    B, T = edit.tokens.shape[1:]
    if T != shape[1] or B not in (1, shape[0]):
        raise ValueError(
            f"tokens is a mask of {B} x {T}; expected: {shape[0]} sequences (or 1 for all) x "
            f"{shape[1]} tokens, rows in front included"
        )


def known(values: Any) -> bool:
    """Whether this process can look at the values now; inside `jax.jit` it cannot."""
    if isinstance(values, Tracer | jax.ShapeDtypeStruct):
        return False
    return getattr(values, "is_fully_addressable", True)


def _in_range(name: str, values: Any, size: int, what: str) -> None:
    if not known(values):
        return
    values = np.atleast_1d(values)
    wrong = values[(values < 0) | (values >= size)]
    if wrong.size:
        raise ValueError(f"{name} is {wrong[0]}; expected: 0 to {size - 1}, of {size} {what}")
