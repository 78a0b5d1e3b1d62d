"""A transformer whose one forward pass serves training, probing and intervention."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jax_massact.errors import WeightsError
from jax_massact.nn import sharded
from jax_massact.nn.block import Block
from jax_massact.nn.config import ModelConfig, PatchConfig
from jax_massact.nn.draw import Key, drawn, split
from jax_massact.nn.edits import Edit, known
from jax_massact.nn.embed import embed
from jax_massact.nn.fused.vendor import platform
from jax_massact.nn.linear import project
from jax_massact.nn.norms import Norm
from jax_massact.nn.passage import Passage, Tap
from jax_massact.nn.patches import ModelInput, embed_images
from jax_massact.nn.pool import POOLS, MapPool
from jax_massact.nn.rounding import Rounding
from jax_massact.nn.variants import rows_in_front, variant_of


class Transformer(nnx.Module):
    """Every family, by configuration: embed -> blocks -> norm -> head; of text and of images.

    A pytree: pass it to `jax.jit`, `jax.grad` and friends like any other argument. The blocks'
    parameters are stacked (leading axis L) and run by `jax.lax.scan`.

    Attributes:
      config: everything that is not a weight; static under `jax.jit`.

    A new model has normal weights, drawn from `key`; without one all of them are zeros.
    """

    def __init__(self, config: ModelConfig, key: Key):
        keys = split(key, 5)
        V, D, P = config.embed.vocab_size, config.width, config.context_length
        R = variant_of(config).prefix + config.registers
        patches = config.embed.patches
        self.config = config
        self.embed = None if patches else drawn(keys[0], V, D)
        self.embed_norm = Norm(config.final_norm, D) if config.embed.norm else None
        self.positions = drawn(keys[1], P, D) if config.embed.positions == "learned" else None
        self.prefix = drawn(keys[4], R, D) if R else None
        # One block's initialiser over L keys: every parameter gets a leading layer axis.
        layers = None if keys[2] is None else jax.random.split(keys[2], config.depth)
        self.blocks = jax.vmap(lambda k: Block(config, k), axis_size=config.depth)(layers)
        self.final_norm = Norm(config.final_norm, D)
        has_own = config.head.present and not config.head.tied
        features = 2 * D if config.head.pool == "cls_mean" else D
        self.head = drawn(keys[3], features, V) if has_own else None
        self.head_bias = nnx.Param(jnp.zeros(V)) if config.head.bias else None
        more = split(keys[0], 4)
        pixels = 0 if patches is None else patches.channels * patches.size**2
        self.patches = drawn(more[0], pixels, D) if patches else None
        self.patches_bias = nnx.Param(jnp.zeros(D)) if patches and patches.bias else None
        self.cls = drawn(more[1], D) if patches and patches.cls else None
        self.cls_position = drawn(more[2], D) if patches and patches.cls_position else None
        self.pool = MapPool(config, more[3]) if config.head.pool == "map" else None

    def __call__(
        self,
        tokens: ModelInput,
        *,
        tap: Tap | None = None,
        edits: Edit | Sequence[Edit] | None = None,
        rounding: Rounding | None = None,
        unroll: int = 1,
        remat: bool = False,
    ) -> tuple[Float[Array, "B *T V"], Any]:
        """Next-token logits, and what `tap` returned for every layer.

        Args:
          tokens: ids in [0, V); T at most `config.context_length`. Encoders of images take images
            [B Y X C], uint8 or normalized numbers, whose sides are multiples of a patch's; they
            have logits [B V] of the whole image.
          tap: called with each block's `Acts`, gradient stopped; a pytree whose arrays come back
            with a leading layer axis. Learned rows in front are the first tokens of the `Acts`
            (and of `edits`). Under `jax.jit`, logits that the caller does not use are never
            computed.
          edits: changes to activations in chosen blocks, made in order.
          rounding: simulated quantization of activations, edited ones included; attention is then
            computed by XLA.
          unroll: periods of blocks in one step of the scan; 1 compiles fastest.
          remat: keep only the residual stream between blocks for the gradient, and compute the
            rest again (Chen et al. 2016): less memory for a third more computation.

        Returns:
          (logits in the compute dtype, the stacked results of `tap` or None).

        Raises:
          WeightsError: the model has no head.
          ValueError: the shape, the dtype or a value of `tokens` is not one that the model can
            take, or an edit or a rounding is out of range. Values are checked where they are
            known: not inside `jax.jit`.
        """
        x, taps = self.residual(
            tokens, tap=tap, edits=edits, rounding=rounding, unroll=unroll, remat=remat
        )
        return self.logits(x), taps

    def residual(
        self,
        tokens: ModelInput,
        *,
        tap: Tap | None = None,
        edits: Edit | Sequence[Edit] | None = None,
        rounding: Rounding | None = None,
        unroll: int = 1,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """As `__call__`, but the residual stream after the last block in place of the logits.

        Learned rows in front are dropped from it, but for images: their CLS and registers stay.
        """
        self.check(tokens)
        config, pattern = self.config, self.config.pattern
        x = self.embedded(tokens)
        passage = Passage(config, tokens.shape, x.shape[1])
        changes = passage.checked(edits, rounding)
        x = x if rounding is not None else passage.even(x)
        masks = [passage.mask(kind) for kind in pattern]
        positions = passage.positions(x.shape[1])
        turns = [passage.rotation(kind, positions) for kind in pattern]

        def period(x, layers):
            """One block of every kind; `layers` have a leading axis of as many."""
            outs = []
            for i in range(layers[0].shape[0]):
                index, block = jax.tree.map(lambda leaf, i=i: leaf[i], layers)
                x, out = passage.block(
                    x, block, pattern[i], masks[i], turns[i], index, changes, tap
                )
                outs.append(out)
            return x, jax.tree.map(lambda *parts: jnp.stack(parts), *outs)

        # Inside a scan nothing can merge the two computations: no need to prevent it.
        again = functools.partial(jax.checkpoint, prevent_cse=unroll > 1) if remat else None
        layers = (jnp.arange(config.depth), self.blocks)
        x, taps = _scan(period, x, layers, len(pattern), unroll, again)
        return passage.tokens_of(x), taps

    def embedded(self, tokens: ModelInput) -> Float[Array, "B S D"]:
        """The residual stream before the first block; the tokens are the last T of S."""
        ids: Any = tokens
        if self.patches is not None:
            return embed_images(
                self.config, ids, self.patches, self.patches_bias, self._front(),
                self.positions, self.embed_norm,
            )
        assert self.embed is not None
        return embed(
            self.config, ids, self.embed, self.positions, self.embed_norm, self.prefix
        )

    def _front(self) -> Float[Array, "R D"] | None:
        """CLS with its position, and the registers."""
        rows = []
        if self.cls is not None:
            cls = self.cls[...]
            rows.append(cls if self.cls_position is None else cls + self.cls_position[...])
        if self.prefix is not None:
            rows += list(sharded.whole(self.prefix[...]))
        return jnp.stack(rows) if rows else None

    def features(self, x: Float[Array, "B S D"]) -> Float[Array, "B E"]:
        """The features of images, from their residual streams after the last block.

        E is D, or 2 D where CLS and the mean of the patches stand side by side.
        """
        pool = self.config.head.pool
        assert pool is not None, "only encoders of images have features"
        if self.pool is not None:
            return self.pool(self.config, self.final_norm(x))
        return POOLS[pool](x, self.final_norm, rows_in_front(self.config))

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B *T V"]:
        """Logits from the residual stream after the last block; [B V] of images.

        Raises:
          WeightsError: the model has no head.
        """
        check_head(self.config)
        if self.config.embed.patches is not None:
            assert self.head is not None
            return project(self.features(x)[:, None], self.head, "dv", self.head_bias)[:, 0]
        x, head = self.final_norm(x), self.config.head
        if self.head is None:
            assert self.embed is not None
            logits = project(x, self.embed, "vd", self.head_bias, transposed=True)
        else:
            logits = project(x, self.head, "dv", self.head_bias)
        logits = logits if head.scale == 1 else logits * head.scale
        return logits if head.softcap is None else head.softcap * jnp.tanh(logits / head.softcap)

    def check(self, tokens: jax.Array | np.ndarray) -> None:
        """Raises ValueError unless the model takes such tokens or images."""
        if (patches := self.config.embed.patches) is not None:
            return _check_images(patches, tokens)
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; expected: integer ids "
                "[sequences, tokens]"
            )
        limit = self.config.context_length - self.config.first_position
        if not 0 < tokens.shape[1] <= limit:
            raise ValueError(
                f"a sequence of {tokens.shape[1]} tokens; expected: from 1 to {limit}, what this "
                "model takes"
            )
        if not known(tokens):
            return
        vocab_size = self.config.embed.vocab_size
        ids = np.asarray(tokens)
        for found in (ids.min(), ids.max()):
            if not 0 <= found < vocab_size:
                raise ValueError(
                    f"a token id is {found}; expected: 0 to {vocab_size - 1}, of {vocab_size} "
                    "embeddings. Another model's tokenizer is the usual cause"
                )


def _check_images(patches: PatchConfig, images: jax.Array | np.ndarray) -> None:
    size, right = patches.size, images.ndim == 4 and images.shape[3] == patches.channels
    number = images.dtype == jnp.uint8 or jnp.issubdtype(images.dtype, jnp.floating)
    if not right or not number or not all(n and n % size == 0 for n in images.shape[1:3]):
        raise ValueError(
            f"images have shape {images.shape} and dtype {images.dtype}; expected: [images, rows, "
            f"columns, {patches.channels}], uint8 or normalized numbers, whose sides are multiples "
            f"of {size}"
        )


def check_head(config: ModelConfig) -> None:
    """Raises WeightsError unless the model has logits."""
    if not config.head.present and config.embed.patches is not None:
        raise WeightsError(
            "this encoder of images has no head, so it has features and no logits; expected: a "
            "checkpoint with a classifier or a projection"
        )
    if not config.head.present:
        raise WeightsError(
            "this model was saved without its head, so it has no logits and no loss; expected: "
            "the checkpoint of the whole language model, with lm_head.weight"
        )


def _scan(
    period: Callable,
    x: jax.Array,
    layers: Any,
    size: int,
    unroll: int,
    again: Callable[[Callable], Callable] | None,
) -> tuple[Any, Any]:
    """Runs all layers, `size` of them in a step; a last, partial period comes after the scan.

    `again` makes of a step one that is computed again for the gradient. It is given whole steps:
    what a step does to its parameters before it would be kept, a copy of all of them.
    """
    leaves = jax.tree.leaves(layers)
    number, rest = divmod(len(leaves[0]), size)
    # On CPUs XLA computes in float32 and would convert all layers' parameters before the loop.
    converts = platform() == "cpu" and any(leaf.dtype == jnp.bfloat16 for leaf in leaves)

    def whole(x, layers):
        # An axis of one that is added before the scan makes XLA copy every parameter.
        return period(x, jax.tree.map(lambda leaf: leaf[None], layers) if size == 1 else layers)

    def cut(x, start):
        # What depends on x cannot be computed before the loop.
        x, held = jax.lax.optimization_barrier((x, layers)) if converts else (x, layers)
        one = lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size)
        return period(x, jax.tree.map(one, held))

    parts = []
    if number:
        if converts or rest:
            step, inputs = cut, jnp.arange(number) * size
        else:
            split = lambda leaf: leaf if size == 1 else leaf.reshape(-1, size, *leaf.shape[1:])
            step, inputs = whole, jax.tree.map(split, layers)
        step = again(step) if again else step
        x, taps = jax.lax.scan(step, x, inputs, unroll=max(1, unroll // size))
        flat = lambda leaf: leaf.reshape(number * size, *leaf.shape[2:])  # also where empty
        parts.append(jax.tree.map(flat, taps))
    if rest:
        period = again(period) if again else period
        x, taps = period(x, jax.tree.map(lambda leaf: leaf[number * size :], layers))
        parts.append(taps)
    return x, jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts) if rest else parts[0]


def _names(model: Transformer) -> list[str]:
    paths, _ = zip(*jax.tree_util.tree_flatten_with_path(model)[0], strict=True)
    return [".".join(key.name for key in path if key.name != "value") for path in paths]


@functools.lru_cache(maxsize=1024)
def abstract(config: ModelConfig) -> Transformer:
    """A model of shapes: `jax.ShapeDtypeStruct` in place of every array, no memory used."""
    shapes = jax.eval_shape(lambda: Transformer(config, None))
    # The same under every mesh: without the layout of the current one.
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), shapes)


def parameters(model: Transformer) -> dict[str, Any]:
    """Every parameter by its dotted name, e.g. `blocks.attn.q` (stacked over layers)."""
    return dict(zip(_names(model), jax.tree.leaves(model), strict=True))


def partial_model(config: ModelConfig, arrays: Mapping[str, Any]) -> Transformer:
    """A model that has some of its parameters, by their dotted names; the others are None."""
    model = abstract(config)
    leaves = [arrays.get(name) for name in parameters(model)]
    return jax.tree.unflatten(jax.tree.structure(model), leaves)


def from_parameters(config: ModelConfig, arrays: Mapping[str, Any]) -> Transformer:
    """The model that has exactly these parameters; the inverse of `parameters`.

    Raises:
      ValueError: a parameter is missing, unknown or mis-shaped.
    """
    model = abstract(config)
    wanted = parameters(model)
    if wanted.keys() != arrays.keys():
        missing = sorted(wanted.keys() - arrays.keys())
        extra = sorted(arrays.keys() - wanted.keys())
        raise ValueError(f"missing parameters: {missing}; unknown parameters: {extra}")
    for name, leaf in wanted.items():
        if arrays[name].shape != leaf.shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}; expected: {leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(model), [arrays[name] for name in wanted])
