"""A forward pass through blocks: what a scan over them and a stream from a file share."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_massact.nn.acts import Acts, Mask
from jax_massact.nn.attention import choose_kernel
from jax_massact.nn.block import Block
from jax_massact.nn.block_config import BlockConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.edits import Edit, apply_edits
from jax_massact.nn.patches import grid_of, places_of
from jax_massact.nn.positions import POSITIONS, Rotation
from jax_massact.nn.rounding import Rounding
from jax_massact.nn.variants import rows_in_front, variant_of

# Reduces one block's activations on the device; its results are stacked over layers.
Tap = Callable[[Acts], Any]


class Changes(NamedTuple):
    """What is changed on the way through the blocks.

    Attributes:
      edits: made in order.
      rounding: simulated quantization; None: none.
    """

    edits: tuple[Edit, ...] = ()
    rounding: Rounding | None = None


@dataclasses.dataclass(frozen=True)
class Passage:
    """The geometry of one forward pass; static under `jax.jit`.

    Attributes:
      config: of the model.
      shape: of its tokens or images.
      length: S, tokens and rows in front.
    """

    config: ModelConfig
    shape: tuple[int, ...]
    length: int

    def checked(
        self, edits: Edit | Sequence[Edit] | None, rounding: Rounding | None
    ) -> Changes:
        """The changes, if all are in range.

        Raises:
          ValueError: one is not, as far as its values are known.
        """
        c = self.config
        many = () if edits is None else edits if isinstance(edits, Sequence) else (edits,)
        for edit in many:
            width = c.block.mlp.units if edit.site == "mlp_hidden" else c.width
            edit.check((self.shape[0], self.length, width), c.depth)
        if rounding is not None:
            rounding.check((self.shape[0], self.length), c.depth)
        return Changes(tuple(many), rounding)

    def mask(self, kind: BlockConfig) -> Mask:
        """The geometry of attention in blocks of this kind."""
        c = kind.attention
        return Mask(
            scale=c.head_dim**-0.5 if c.scale is None else c.scale,
            causal=c.causal,
            window=c.window,
            reach=self.config.reach(kind),
            softcap=c.softcap,
            slopes=c.slopes,
            rounded_from=self.config.first_position if c.position == "alibi_rounded" else None,
            prefix=rows_in_front(self.config),
            weigh=variant_of(self.config).weigh(self.config),
        )

    def positions(self, length: int) -> jax.Array:
        """The positions in a stream of so many tokens; places in the image, of patches."""
        patches = self.config.embed.patches
        if patches is None:
            return self.config.first_position + jnp.arange(length)
        return jnp.asarray(places_of(grid_of(patches, self.shape), rows_in_front(self.config)))

    def rotation(self, kind: BlockConfig, positions: jax.Array) -> Rotation | None:
        """How blocks of this kind turn queries and keys."""
        return POSITIONS[kind.attention.position](
            kind.attention, positions, self.config.first_position + self.length
        )

    def even(self, x: Float[Array, "B S D"]) -> Float[Array, "B even D"]:
        """`x`, with a token behind all others where flash attention would pad an odd length.

        It changes nothing before it, and one token in all activations costs less than to copy
        queries, keys, values and results in every block. Only learned rows in front make a length
        odd that was chosen not to be. Full attention would see it.
        """
        if not rows_in_front(self.config) or x.shape[1] % 2 == 0:
            return x
        for kind in self.config.pattern:
            c, mask = kind.attention, self.mask(kind)
            q = jax.ShapeDtypeStruct((*x.shape[:2], c.heads, c.head_dim), x.dtype)
            if not c.causal or choose_kernel(c.implementation, q, mask) is None:
                return x
        return jnp.concatenate([x, x[:, -1:]], axis=1)

    def tokens_of(self, x: Float[Array, "B S D"]) -> Float[Array, "B T D"]:
        """The stream without learned rows in front, of which images keep theirs."""
        front = rows_in_front(self.config) if self.config.embed.patches is None else 0
        return x[:, front : self.length]

    def block(
        self,
        x: Float[Array, "B S D"],
        block: Block,
        kind: BlockConfig,
        mask: Mask,
        rotation: Rotation | None,
        index: int | Int[Array, ""],
        changes: Changes,
        tap: Tap | None,
    ) -> tuple[Float[Array, "B S D"], Any]:
        """The stream after one block, and what `tap` makes of its activations.

        Args:
          index: of the block.
        """
        edits, rounding = changes

        def changed(site: str, x: jax.Array) -> jax.Array:
            x = apply_edits(x, edits, site, index)
            return x if rounding is None else rounding.apply(site, x, index)

        rounded = None
        if rounding is not None:
            rounded = functools.partial(rounding.softmax, layer=index)
        x, acts = block(x, kind, mask, rotation, changed, rounded)
        return x, None if tap is None else tap(jax.lax.stop_gradient(acts.first(self.length)))
