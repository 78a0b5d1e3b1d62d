"""Held-out batches, unchanged and changed: in memory one pass after another, or all in one stream.

What is changed in a batch follows from its own unchanged pass. Streamed, the changed batches begin
as copies of the unchanged one at the first block where they differ, and share every later block
with it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jax_massact.measure.definition import Definition
from jax_massact.measure.magnitudes import magnitudes_tap
from jax_massact.measure.massive import find_hits
from jax_massact.nn.passage import Changes
from jax_massact.nn.stream import Stream
from jax_massact.nn.transformer import Transformer
from jax_massact.studies.changes import ORIGINAL, Change, Met
from jax_massact.studies.collector import BatchProbe, Found, found_in, reduce_batch
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.passes import LOSSES, Batch, Reading, Runner, Streaming
from jax_massact.studies.targets import Means, TargetPlace, control_places, find_places

ZERO = "zero"  # the change whose statistics are wanted, not its losses alone


class Evaluated(NamedTuple):
    """One forward pass over a batch of the held-out text.

    Attributes:
      losses: nats.
      columns: resid_post in the watched dimensions W.
      batch: the probe's statistics of the same pass.
    """

    losses: Float[Array, "B T-1"]
    columns: Float[Array, "L B T W"]
    batch: BatchProbe


def evaluation(watched: Int[np.ndarray, " W"], definition: Definition) -> Reading:
    """Losses, watched dimensions and the probe's statistics; the data says what to tally."""

    def tap(acts, keep):
        stats = magnitudes_tap(acts, top_k=1, definition=definition)
        return stats, acts.resid_post[..., watched].astype(jnp.float32)

    def finish(taps, losses, keep):
        stats, columns = taps
        return Evaluated(losses, columns, reduce_batch(stats, keep, definition))

    return Reading(tap, finish, losses=True)


class Meeting:
    """Finds in a batch what is to be changed.

    Args:
      targets, means: from the calibration text.
      watched: dimensions of the targets, then each target's control.
      size: of a batch.
      seed: of the choice of ordinary activations.
    """

    def __init__(
        self, targets: Sequence[TargetPlace], means: Sequence[Means],
        watched: Int[np.ndarray, " W"], held_out: Inputs, size: int, seed: int,
        definition: Definition,
    ):
        self.targets, self.means, self.watched = targets, means, watched
        self.definition = definition
        self._held_out, self._shape, self._seed = held_out, (size, held_out.length), seed

    @property
    def controls(self) -> Int[np.ndarray, " E"]:
        """The dimension of each target's control."""
        return self.watched[len(self.watched) - len(self.targets) :]

    def nothing(self) -> Met:
        """Targets that are met nowhere."""
        none = np.zeros((len(self.targets), *self._shape), bool)
        return Met(self.targets, none, np.zeros(none.shape, np.float32), self.controls, none)

    def met(
        self, rows: slice, found: Sequence[Sequence[Found]],
        columns: Mapping[int, Any] | Float[np.ndarray, "L B T W"],
        quantile: Mapping[int, Any] | Float[np.ndarray, "L B Q"],
    ) -> Met:
        """What a batch's unchanged pass meets.

        Args:
          rows: of the batch.
          found: in each of its sequences, in the blocks that `columns` and `quantile` are of.
          columns: resid_post in the watched dimensions.
          quantile: of |resid_post|.
        """
        kind_of = lambda b, position: self._held_out.kind_at(rows.start + b, position)
        tokens, mean = find_places(self.targets, self.means, found, kind_of, self._shape)
        # Every target's control dimension at its layer.
        ordinary = np.zeros(tokens.shape, np.float32)
        low, high = (np.zeros(tokens.shape[:2], np.float32) for _ in range(2))
        first = len(self.watched) - len(self.targets)
        for e, target in enumerate(self.targets):
            if tokens[e].any():
                ordinary[e] = np.abs(columns[target.layer][..., first + e])
                low[e], high[e] = quantile[target.layer][:, 0], quantile[target.layer][:, 1]
        control = control_places(tokens, ordinary, low, high, rows.start, self._seed)
        return Met(self.targets, tokens, mean, self.controls, control)


class Passed(NamedTuple):
    """One batch.

    Attributes:
      rows: of the held-out text.
      plain: its unchanged pass.
      met: what is changed in it.
      changed: name of each change, its losses, and of ZERO the whole pass.
    """

    rows: slice
    plain: Evaluated
    met: Met
    changed: Iterator[tuple[str, np.ndarray, Evaluated | None]]


def passes(
    runner: Runner, held_out: Inputs, meeting: Meeting, changes: Mapping[str, Change], size: int
) -> Iterator[Passed]:
    """Every batch of the held-out text with every change; all share one compilation in memory, and
    one pass over the file of a model that is streamed."""
    reading = evaluation(meeting.watched, meeting.definition)
    if isinstance(runner, Streaming):
        yield from _streamed(runner, reading, held_out, meeting, changes, size)
        return
    for rows, tokens, keep in held_out.batches(size):

        def passed(change: Change, met: Met, tokens=tokens, keep=keep) -> Evaluated:
            return next(runner.run(reading, [Batch(tokens, keep, change.edits(met))]))

        plain = passed(ORIGINAL, meeting.nothing())
        found = [found_in(plain.batch.hits, plain.batch.places, b) for b in range(_number(rows))]
        met = meeting.met(
            rows, found, np.asarray(plain.columns), np.asarray(plain.batch.sequences.quantile)
        )

        def changed(met=met, passed=passed):
            for name, change in changes.items():
                result = passed(change, met)
                yield name, np.asarray(result.losses), result

        yield Passed(rows, plain, met, changed())


def _number(rows: slice) -> int:
    return rows.stop - rows.start


def _streamed(
    runner: Streaming, reading: Reading, held_out: Inputs, meeting: Meeting,
    changes: Mapping[str, Change], size: int,
) -> Iterator[Passed]:
    batches = [
        (rows, _Changed(Stream(runner.model, tokens, reading.tap, keep), rows, meeting, changes))
        for rows, tokens, keep in held_out.batches(size)
    ]
    runner.take([batch for _, batch in batches])
    back = runner.model.back()
    for rows, batch in batches:
        plain = runner.result(reading, batch.plain, back)

        def changed(batch=batch):
            for name, stream in batch.streams.items():
                if stream.tap is None:
                    yield name, runner.result(LOSSES, stream, back), None
                else:
                    result = runner.result(reading, stream, back)
                    yield name, result.losses, result

        yield Passed(rows, plain, batch.met, changed())


class _Changed:
    """A batch on its way through the blocks, and its changed copies."""

    def __init__(
        self, plain: Stream, rows: slice, meeting: Meeting, changes: Mapping[str, Change]
    ):
        self.plain, self.met = plain, meeting.nothing()
        self.streams: dict[str, Stream] = {}
        self._rows, self._meeting, self._changes = rows, meeting, changes

    def enter(self, front: Transformer) -> None:
        """See `nn.stream.Passenger`."""
        self.plain.enter(front)

    def advance(self, layer: int, arrays: Any) -> None:
        """See `nn.stream.Passenger`."""
        before = self.plain.x
        self.plain.advance(layer, arrays)
        if any(target.layer == layer for target in self._meeting.targets):
            self._meet(layer)
            for name in self._changes if not self.streams else ():
                tap = self.plain.tap if name == ZERO else None
                self.streams[name] = self.plain.branch(tap, before, self.plain.taps[:-1])
        for name, stream in self.streams.items():
            stream.changes = Changes((self._changes[name].edits(self.met),))
            stream.advance(layer, arrays)

    def _meet(self, layer: int) -> None:
        """Adds what the unchanged stream meets after this block."""
        stats, columns = self.plain.taps[-1]
        stats = jax.tree.map(lambda x: x[None], stats)
        hits = jax.device_get(find_hits(stats, self._meeting.definition))
        found = [found_in(hits, stats.places, b, layer) for b in range(_number(self._rows))]
        here = self._meeting.met(
            self._rows, found, {layer: columns}, {layer: stats.quantile[0]}
        )
        self.met = self.met._replace(
            tokens=self.met.tokens | here.tokens, mean=self.met.mean + here.mean,
            control=self.met.control | here.control,
        )


