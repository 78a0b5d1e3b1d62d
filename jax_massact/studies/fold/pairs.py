"""The original and the folded model on the same sequences, in memory or in one stream of blocks."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_massact.families.open_model import OpenModel
from jax_massact.measure.definition import Definition
from jax_massact.measure.loss import losses_of
from jax_massact.measure.magnitudes import magnitudes_tap
from jax_massact.nn.fused.cross_entropy import cross_entropy
from jax_massact.nn.pieces import in_pieces
from jax_massact.nn.stream import BlockSource, Stream
from jax_massact.nn.transformer import Transformer
from jax_massact.studies.collector import BatchProbe, probe_reading, reduce_batch
from jax_massact.studies.frame import Progress
from jax_massact.studies.passes import Streaming


class Compared(NamedTuple):
    """The logits of both models after the first token, float32.

    Attributes:
      gap: the largest difference.
      top: the largest of the original's.
      whole, own: losses of the original and of the folded model, nats.
    """

    gap: Float[Array, ""]
    top: Float[Array, ""]
    whole: Float[Array, "B T-1"]
    own: Float[Array, "B T-1"]


# Tokens with the first one, tokens without it, which sequences to keep.
PairBatch = tuple[np.ndarray, np.ndarray, Bool[np.ndarray, " B"]]
PairFound = tuple[Compared, BatchProbe, BatchProbe]


class Pairs:
    """Both models.

    Args:
      folded: `measure.fold.fold` of the other.
    """

    def __init__(
        self, model: Transformer | OpenModel, folded: Transformer | BlockSource,
        definition: Definition,
    ):
        self._model, self._folded, self._definition = model, folded, definition

    def compared(self, batches: Sequence[PairBatch], progress: Progress) -> Iterator[PairFound]:
        """Each batch: the comparison, and the statistics of both models; on the host."""
        if isinstance(self._model, OpenModel) and isinstance(self._folded, BlockSource):
            yield from self._streamed(self._model, self._folded, batches, progress)
            return
        definition = self._definition

        @jax.jit
        def forward(model, tokens, keep):
            tap = lambda acts: magnitudes_tap(acts, top_k=1, definition=definition)
            logits, stats = model(tokens, tap=tap)
            return logits.astype(jnp.float32), reduce_batch(stats, keep, definition)

        for whole_tokens, own_tokens, keep in batches:
            whole, whole_batch = forward(self._model, whole_tokens, keep)
            own, own_batch = forward(self._folded, own_tokens, keep)
            found = _compare(whole, own, own_tokens, keep)
            yield jax.device_get((found, whole_batch, own_batch))

    def _streamed(
        self, model: OpenModel, folded: BlockSource, batches: Sequence[PairBatch],
        progress: Progress,
    ) -> Iterator[PairFound]:
        runner = Streaming(model, progress)
        reading = probe_reading(top_k=1, definition=self._definition)
        pairs = [
            (Stream(model, whole, reading.tap, keep), Stream(folded, own, reading.tap, keep))
            for whole, own, keep in batches
        ]
        runner.take([stream for pair in pairs for stream in pair])
        back = model.back()
        for (whole, own), (_, tokens, keep) in zip(pairs, batches, strict=True):
            found = _compare_in_pieces(back, whole.residual(), own.residual(), tokens, keep)
            of = lambda stream: runner.result(reading, stream, None)
            yield jax.device_get(found), of(whole), of(own)


@jax.jit
def _compare(whole, own, tokens, keep) -> Compared:
    # Logits after the first token and the last token's are left out by losses_of.
    rest = whole[:, 1:]
    kept = keep[:, None, None]
    return Compared(
        jnp.where(kept, jnp.abs(rest - own), 0).max(), jnp.where(kept, jnp.abs(rest), 0).max(),
        losses_of(rest, tokens), losses_of(own, tokens),
    )


@jax.jit
def _compare_in_pieces(back: Transformer, whole, own, tokens, keep) -> Compared:
    """The same from the last residual streams; both models have the same head."""

    def piece(x, y, target) -> Any:
        a, b = (back.logits(z).astype(jnp.float32) for z in (x, y))
        sizes = jnp.abs(a - b).max(-1), jnp.abs(a).max(-1)
        return *sizes, cross_entropy(a, target), cross_entropy(b, target)

    # The last token predicts nothing.
    targets = jnp.pad(jnp.asarray(tokens)[:, 1:], ((0, 0), (0, 1)))
    gap, top, whole_losses, own_losses = in_pieces(piece, whole[:, 1:], own, targets)
    most = lambda x: jnp.where(keep[:, None], x, 0).max()
    return Compared(most(gap), most(top), whole_losses[:, :-1], own_losses[:, :-1])
