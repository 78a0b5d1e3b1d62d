"""Forward passes of a study, written once: over a model in memory, or over blocks from a file.

A study says what it reads of a batch (`Reading`), and gives its batches to a `Runner`. In memory
each batch goes through the whole model; from a file all batches go through a block before the next
block is read.
"""

import abc
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_massact.families.open_model import OpenModel
from jax_massact.measure.loss import losses_of
from jax_massact.nn.acts import Acts
from jax_massact.nn.edits import Edit
from jax_massact.nn.pieces import losses_in_pieces
from jax_massact.nn.rounding import Rounding
from jax_massact.nn.stream import BlockSource, Done, Stream, run
from jax_massact.nn.transformer import Transformer
from jax_massact.studies.frame import Prepared, Progress, compile_while_loading, silent
from jax_massact.studies.settings import RunConfig


@dataclasses.dataclass(frozen=True)
class Reading:
    """What is computed in one forward pass of a batch. Pure functions, by which it is compiled.

    Attributes:
      tap: from one block's activations, and what belongs to the batch.
      finish: from the tap's results [L ...], the losses [B T-1], and what belongs to the batch, to
        what the host gets.
      losses: whether there are any; else `finish` gets None for them.
      at_once: how many passes over a model in memory are computed at a time. One alone leaves cores
        of a CPU idle between its operations; several take as much more memory.
    """

    tap: Callable[[Acts, Any], Any] | None
    finish: Callable[[Any, Any, Any], Any]
    losses: bool = False
    at_once: int = 1


class Batch(NamedTuple):
    """One batch.

    Attributes:
      tokens: what the model takes.
      data: arrays that belong to it.
      edits, rounding: as in a model's call.
    """

    tokens: Any
    data: Any = ()
    edits: Edit | None = None
    rounding: Rounding | None = None


class Job(NamedTuple):
    """Batches to be read.

    Attributes:
      reading, batches: what of which.
      model: gives the model, when its turn has come, in memory or of the same file; None: that of
        the runner.
    """

    reading: Reading
    batches: Iterable[Batch]
    model: Callable[[], Transformer | BlockSource] | None = None


# The losses alone.
LOSSES = Reading(None, lambda taps, losses, data: losses, losses=True, at_once=2)


class Runner(abc.ABC):
    """A model that batches run through."""

    @property
    @abc.abstractmethod
    def model(self) -> Transformer | OpenModel:
        """In memory or on disk."""

    @abc.abstractmethod
    def start(self, jobs: Sequence[Job]) -> list[Iterator[Any]]:
        """The results of each job's batches, in order and on the host; all jobs share one pass
        over a file. Nothing is computed before a result is asked for."""

    def run(self, reading: Reading, batches: Iterable[Batch]) -> Iterator[Any]:
        """The results of one job."""
        return self.start([Job(reading, batches)])[0]


def step_of(reading: Reading) -> Callable[..., Any]:
    """A reading as a function of a model in memory: (model, tokens, data, edits, rounding)."""

    def step(model, tokens, data, edits=None, rounding=None):
        of_block = reading.tap
        tap = None if of_block is None else lambda acts: of_block(acts, data)
        if not reading.losses:
            taps = model.residual(tokens, tap=tap, edits=edits, rounding=rounding)[1]
            return reading.finish(taps, None, data)
        logits, taps = model(tokens, tap=tap, edits=edits, rounding=rounding)
        return reading.finish(taps, losses_of(logits, tokens), data)

    return step


def compile_reading(reading: Reading, model: Any, tokens: Any, data: Any) -> Callable[..., Any]:
    """`step_of` compiled for batches of these shapes, without edits.

    Args:
      model: a model, or its shapes alone (`nn.transformer.abstract`), so that compiling can go on
        while the weights are being read.
    """
    return jax.jit(step_of(reading)).lower(model, tokens, data).compile()


def waited(runner: Runner) -> dict[str, float]:
    """Seconds in which the device has waited for blocks from a file, by a name for results."""
    if not isinstance(runner, Streaming):
        return {}
    return {"waited": sum(done.waited for done in runner.done)}


class InMemory(Runner):
    """A model whose weights are loaded.

    Args:
      steps: readings that are compiled already, of batches without edits.
    """

    def __init__(self, model: Transformer, steps: dict[Reading, Callable] | None = None):
        self._model, self._steps = model, dict(steps or {})

    @property
    def model(self) -> Transformer:
        """See `Runner`."""
        return self._model

    def start(self, jobs: Sequence[Job]) -> list[Iterator[Any]]:
        """See `Runner`."""
        return [self._results(*job) for job in jobs]

    def _results(
        self, reading: Reading, batches: Iterable[Batch], other: Callable[[], Any] | None
    ) -> Iterator[Any]:
        if reading not in self._steps:
            self._steps[reading] = jax.jit(step_of(reading))
        step = self._steps[reading]
        model = self._model if other is None else other()

        def one(batch: Batch) -> Any:
            changed = batch.edits is not None or batch.rounding is not None
            return jax.device_get(step(model, *(batch if changed else batch[:2])))

        if reading.at_once == 1:
            yield from map(one, batches)
            return
        with ThreadPoolExecutor(reading.at_once) as pool:
            yield from pool.map(one, batches)


class Streaming(Runner):
    """A model whose blocks stay in its file.

    Args:
      progress: told after every block.

    Attributes:
      done: how each pass over the blocks ended.
    """

    def __init__(self, model: OpenModel, progress: Progress = silent):
        self._model, self._progress = model, progress
        self._finish: dict[Reading, Callable] = {}
        self.done: list[Done] = []

    @property
    def model(self) -> OpenModel:
        """See `Runner`."""
        return self._model

    def start(self, jobs: Sequence[Job]) -> list[Iterator[Any]]:
        """See `Runner`."""
        streams = [(job.reading, self._streams(job)) for job in jobs]
        waiting = [stream for _, many in streams for stream in many]

        def results(reading: Reading, own: list[Stream]) -> Iterator[Any]:
            if waiting:
                self.take(waiting)
                waiting.clear()
            back = self.model.back() if reading.losses else None
            while own:
                yield self.result(reading, own.pop(0), back)

        return [results(*job) for job in streams]

    def _streams(self, job: Job) -> list[Stream]:
        source = self.model if job.model is None else job.model()
        assert isinstance(source, BlockSource)
        return [
            Stream(source, tokens, job.reading.tap, data, edits, rounding)
            for tokens, data, edits, rounding in job.batches
        ]

    def take(self, passengers: Sequence[Any]) -> None:
        """Takes streams through all blocks."""
        self.done.append(run(self.model, passengers, report=self.report))

    def report(self, done: Done) -> None:
        """Tells the progress."""
        self._progress(done.blocks, done.depth, str(done))

    def result(self, reading: Reading, stream: Stream, back: Transformer | None) -> Any:
        """What a stream that has passed all blocks gives."""
        if reading not in self._finish:
            self._finish[reading] = jax.jit(reading.finish)
        found = None
        if back is not None:
            found = losses_in_pieces(back, stream.residual(), jnp.asarray(stream.tokens))
        return jax.device_get(self._finish[reading](stream.stacked(), found, stream.data))


def ready(
    prepared: Prepared, config: RunConfig, reading: Reading, first: Batch, progress: Progress
) -> Runner:
    """The model, opened or loaded; while it is loaded its first reading is compiled.

    Args:
      reading, first: what comes first, and a batch of the same shapes.

    Raises:
      WeightsError: a weight cannot be read.
    """
    if prepared.streamed:
        return Streaming(OpenModel(prepared.checkpoint, config.dtype), progress)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first[:2])
    step, model = compile_while_loading(
        prepared.checkpoint, config.dtype,
        lambda model: compile_reading(reading, model, *shapes),
    )
    return InMemory(model, {reading: step})
