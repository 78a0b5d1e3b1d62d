"""Models whose blocks are not in memory: all sequences pass a block before the next one is read.

Memory is two blocks and the residual streams. One thread reads block l + 1 while block l computes.
The block is the one that the scan of a model in memory runs (`nn.passage`), so that taps, edits and
rounding are the same; blocks of equal kind share one compilation.
"""

import abc
import concurrent.futures
import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_massact.nn.acts import Acts
from jax_massact.nn.block_config import BlockConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.edits import Edit
from jax_massact.nn.fused.vendor import platform
from jax_massact.nn.passage import Changes, Passage, Tap
from jax_massact.nn.patches import ModelInput
from jax_massact.nn.rounding import Rounding
from jax_massact.nn.transformer import Transformer, check_head, parameters, partial_model

# Reduces one block's activations, with what belongs to the sequences of the batch.
DataTap = Callable[[Acts, Any], Any]

class Done(NamedTuple):
    """How far a stream is.

    Attributes:
      blocks, depth: how many blocks are done, of how many.
      bytes, total: read from the file, of how many.
      seconds: since it began.
      waited: of those, how many the device waited for a block.
    """

    blocks: int
    depth: int
    bytes: int
    total: int
    seconds: float
    waited: float

    def __str__(self) -> str:
        left = self.seconds / self.blocks * (self.depth - self.blocks)
        return (
            f"block {self.blocks} of {self.depth}, {self.bytes / 1e9:.2f} of "
            f"{self.total / 1e9:.2f} GB read, {left:,.0f} s left"
        )


Report = Callable[[Done], None]


class BlockSource(abc.ABC):
    """A model whose blocks come from somewhere else, one at a time; called like a `Transformer`.

    Each call takes all blocks from their source once. Not to be used inside `jax.jit`.

    Attributes:
      config: everything that is not a weight.
    """

    config: ModelConfig

    @abc.abstractmethod
    def front(self) -> Transformer:
        """A model that embeds; it has no blocks."""

    @abc.abstractmethod
    def back(self) -> Transformer:
        """A model that computes logits from the last residual stream; it has no blocks."""

    @abc.abstractmethod
    def read(self, layer: int) -> Any:
        """The arrays of a block on their devices, as `unpack` takes them; called by a thread.

        Raises:
          WeightsError: they cannot be read.
        """

    @abc.abstractmethod
    def unpack(self, arrays: Any) -> Mapping[str, jax.Array]:
        """The parameters of a block, by their names in a model; called inside `jax.jit`."""

    @abc.abstractmethod
    def block_bytes(self, layer: int) -> int:
        """How many bytes a block takes where it comes from."""

    @property
    def root(self) -> "BlockSource":
        """The source whose `read` gives the arrays."""
        return self

    def take(self, layer: int, arrays: Any) -> Any:
        """What `unpack` needs of a block, of which the root has read the arrays."""
        del layer
        return arrays

    @abc.abstractmethod
    def column(self, name: str, layer: int, dim: int) -> jax.Array:
        """What a parameter of one block has at `dim` of its last axis, on the default device."""

    def __call__(
        self,
        tokens: ModelInput,
        *,
        tap: Tap | None = None,
        edits: Edit | Sequence[Edit] | None = None,
        rounding: Rounding | None = None,
        report: Report | None = None,
    ) -> tuple[Float[Array, "B *T V"], Any]:
        """As a `Transformer`: logits, and what `tap` returned for every layer, on the host.

        Args:
          report: called after each block.

        Raises:
          WeightsError: a block cannot be read, or its file has changed; or there is no head.
          ValueError: as a `Transformer`.
        """
        check_head(self.config)
        x, taps = self.residual(tokens, tap=tap, edits=edits, rounding=rounding, report=report)
        return self.logits(x), taps

    def residual(
        self,
        tokens: ModelInput,
        *,
        tap: Tap | None = None,
        edits: Edit | Sequence[Edit] | None = None,
        rounding: Rounding | None = None,
        report: Report | None = None,
        depth: int | None = None,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """As `Transformer.residual`.

        Args:
          depth: how many blocks to pass; None: all.
        """
        own = None if tap is None else _WithoutData(tap)
        stream = Stream(self, tokens, own, edits=edits, rounding=rounding)
        run(self, [stream], depth=depth, report=report)
        return stream.residual(), stream.stacked()

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B *T V"]:
        """As `Transformer.logits`."""
        return _logits(self.back(), x)

    def features(self, x: Float[Array, "B S D"]) -> Float[Array, "B E"]:
        """As `Transformer.features`."""
        return _features(self.back(), x)


class Altered(BlockSource):
    """A model that shares the file of another, with more parameters in each block, or other ones.

    Args:
      source: of all other parameters.
      config: of this model.
      more: parameters that each block has besides, [L ...].
      change: from a block's parameters to those of this model; compiled by its identity.
    """

    def __init__(
        self, source: BlockSource, config: ModelConfig, *,
        more: Mapping[str, Any] | None = None, change: Callable[[Any], Any] | None = None,
    ):
        self.source, self.config = source, config
        self._more, self._change = dict(more or {}), change

    @property
    def root(self) -> BlockSource:
        """See `BlockSource`."""
        return self.source.root

    def front(self) -> Transformer:
        """See `BlockSource`."""
        return partial_model(self.config, parameters(self.source.front()))

    def back(self) -> Transformer:
        """See `BlockSource`."""
        return partial_model(self.config, parameters(self.source.back()))

    def read(self, layer: int) -> Any:
        """See `BlockSource`."""
        return self.root.read(layer)

    def take(self, layer: int, arrays: Any) -> Any:
        """See `BlockSource`."""
        own = {name: x[layer] for name, x in self._more.items()}
        return self.source.take(layer, arrays), own

    def unpack(self, arrays: Any) -> Mapping[str, jax.Array]:
        """See `BlockSource`."""
        theirs, own = arrays
        found = {**self.source.unpack(theirs), **own}
        return found if self._change is None else self._change(found)

    def block_bytes(self, layer: int) -> int:
        """See `BlockSource`."""
        return self.source.block_bytes(layer)

    def column(self, name: str, layer: int, dim: int) -> jax.Array:
        """See `BlockSource`."""
        if name in self._more or self._change is not None:
            raise ValueError(f"{name} is not as in the file")
        return self.source.column(name, layer, dim)


@dataclasses.dataclass(frozen=True)
class _WithoutData:
    """A tap that needs no data; equal for equal taps, so that they are compiled once."""

    tap: Tap

    def __call__(self, acts: Acts, data: Any) -> Any:
        del data
        return self.tap(acts)


def stream(
    model: BlockSource | Transformer,
    tokens: ModelInput,
    *,
    tap: Tap | None = None,
    edits: Edit | Sequence[Edit] | None = None,
    rounding: Rounding | None = None,
    report: Report | None = None,
) -> tuple[Float[Array, "B *T V"], Any]:
    """A forward pass of a model whose blocks are on disk (`open`), each being read once.

    All sequences pass a block before the next one is read, so give many at once: memory is two
    blocks, the residual streams, and what one block computes of all of them.
    `model.residual(tokens, tap=tap)` does without logits.

    Args:
      model: of `open`; one in memory gives the same results.
      tokens, tap, edits, rounding: as in a model's call.
      report: called after each block.

    Returns:
      (logits, the stacked results of `tap` or None), as a model's call returns them.

    Raises:
      WeightsError: a block cannot be read, or its file has changed; or there is no head.
      ValueError: as a model's call.
    """
    if isinstance(model, Transformer):
        return model(tokens, tap=tap, edits=edits, rounding=rounding)
    return model(tokens, tap=tap, edits=edits, rounding=rounding, report=report)


class Passenger(Protocol):
    """What `run` takes through the blocks."""

    def enter(self, front: Transformer) -> None:
        """Embeds its tokens."""
        ...

    def advance(self, layer: int, arrays: Any) -> None:
        """Passes a block, and is done with its arrays."""
        ...


class Stream:
    """One batch on its way through the blocks.

    Args:
      source: of the blocks.
      tokens: ids, or images.
      tap: gets each block's `Acts` and `data`; None: nothing is measured.
      data: arrays that belong to the batch.
      edits, rounding: as in a model's call.

    Attributes:
      x: the residual stream, with rows in front.
      taps: what `tap` returned, a block at a time, on the host.
    """

    def __init__(
        self, source: BlockSource, tokens: ModelInput, tap: DataTap | None = None, data: Any = (),
        edits: Edit | Sequence[Edit] | None = None, rounding: Rounding | None = None,
    ):
        self.source, self.tokens, self.tap, self.data = source, tokens, tap, data
        self._asked = edits, rounding
        self.taps: list[Any] = []

    def enter(self, front: Transformer) -> None:
        """Embeds the batch."""
        own = partial_model(self.source.config, parameters(front))
        own.check(self.tokens)
        x = _embedded(own, jnp.asarray(self.tokens))
        self.passage = Passage(self.source.config, self.tokens.shape, x.shape[1])
        self.changes = self.passage.checked(*self._asked)
        self.x = x if self.changes.rounding is not None else self.passage.even(x)

    def branch(self, tap: DataTap | None, x: jax.Array, taps: Sequence[Any]) -> "Stream":
        """A stream of the same tokens that has come as far as `x`, and found `taps` so far."""
        other = Stream(self.source, self.tokens, tap, self.data)
        other.passage, other.changes, other.x = self.passage, Changes(), x
        other.taps = [*taps]
        return other

    def advance(self, layer: int, arrays: Any) -> None:
        """Passes a block."""
        pattern = self.source.config.pattern
        self.x, out = _compiled()(
            self.source.take(layer, arrays), self.x, np.int32(layer), self.data, self.changes,
            unpack=self.source.unpack, passage=self.passage, kind=pattern[layer % len(pattern)],
            tap=self.tap,
        )
        # The block's memory is free before another is read.
        self.x.block_until_ready()
        if self.tap is not None:
            self.taps.append(jax.device_get(out))

    def stacked(self) -> Any:
        """The results of the tap with a leading layer axis, as a scan returns them."""
        return jax.tree.map(lambda *parts: np.stack(parts), *self.taps) if self.taps else None

    def residual(self) -> Float[Array, "B T D"]:
        """The residual stream after the last block, as `Transformer.residual` returns it."""
        return self.passage.tokens_of(self.x)


@jax.jit
def _embedded(front: Transformer, tokens: jax.Array) -> jax.Array:
    return front.embedded(tokens)


@jax.jit
def _logits(back: Transformer, x: jax.Array) -> jax.Array:
    return back.logits(x)


@jax.jit
def _features(back: Transformer, x: jax.Array) -> jax.Array:
    return back.features(x)


@functools.cache
def _compiled() -> Callable[..., tuple[jax.Array, Any]]:
    # XLA for CPUs computes in float32, and would convert all of a block's matrices before the first
    # of them is needed.
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    return jax.jit(
        _pass_block, static_argnames=("unpack", "passage", "kind", "tap"),
        compiler_options=options if platform() == "cpu" else None,
    )


def _pass_block(
    arrays: Any, x: jax.Array, layer: Int[Array, ""], data: Any, changes: Changes, *,
    unpack: Callable[[Any], Mapping[str, jax.Array]], passage: Passage, kind: BlockConfig,
    tap: DataTap | None,
) -> tuple[jax.Array, Any]:
    own = None if tap is None else lambda acts: tap(acts, data)
    mask, rotation = passage.mask(kind), passage.rotation(kind, passage.positions(x.shape[1]))
    block = partial_model(passage.config, unpack(arrays)).blocks
    return passage.block(x, block, kind, mask, rotation, layer, changes, own)


def run(
    source: BlockSource, streams: Sequence[Passenger], *, depth: int | None = None,
    report: Report | None = None,
) -> Done:
    """Takes all streams through the blocks, each block being read once.

    Args:
      source: of the arrays; the streams may be of others with the same root.
      depth: how many blocks; None: all.
      report: called after each block.

    Raises:
      WeightsError: a block cannot be read, or its file has changed.
    """
    start, waited, read = time.perf_counter(), 0.0, 0
    depth = source.config.depth if depth is None else depth
    sizes = [source.block_bytes(layer) for layer in range(depth)]
    done = Done(0, depth, 0, sum(sizes), 0.0, 0.0)
    with concurrent.futures.ThreadPoolExecutor(1, "blocks") as pool:
        try:
            coming = pool.submit(source.root.read, 0)
            front = source.front()
            for stream in streams:
                stream.enter(front)
            del front
            for layer in range(depth):
                before = time.perf_counter()
                arrays = coming.result()
                waited += time.perf_counter() - before
                if layer + 1 < depth:
                    coming = pool.submit(source.root.read, layer + 1)
                for stream in streams:
                    stream.advance(layer, arrays)
                del arrays
                read += sizes[layer]
                done = Done(
                    layer + 1, depth, read, sum(sizes), time.perf_counter() - start, waited
                )
                if report is not None:
                    report(done)
        finally:
            pool.shutdown(cancel_futures=True)
    return done
