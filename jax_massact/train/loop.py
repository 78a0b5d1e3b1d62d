"""The training loop: from a new model, or from a run's last checkpoint, to the last step."""

import contextlib
import functools
import json
import shutil
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_massact.cluster.lock import lock
from jax_massact.cluster.sharing import check_shared, is_first, on_first, share, together
from jax_massact.cluster.vote import Vote
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import ConfigError, UserError
from jax_massact.families import own_encoder
from jax_massact.families.run_checkpoint import CHECKPOINTS, MODEL, TOKENIZER
from jax_massact.nn.sharded import whole
from jax_massact.nn.transformer import Transformer
from jax_massact.saving import save
from jax_massact.train.checkpoint import Checkpoints
from jax_massact.train.config import TrainConfig, WatchConfig, to_json
from jax_massact.train.data import place_rows
from jax_massact.train.metrics import FILE, MetricsFile, Row, read_rows, write_text
from jax_massact.train.nonfinite import diagnose
from jax_massact.train.prefetch import Batches, Fetched, prefetch
from jax_massact.train.record import IN_FLIGHT, NotFinite, Recorder, due, summarize
from jax_massact.train.rows import row_shape, split_rows
from jax_massact.train.stall import StallGuard
from jax_massact.train.step import (
    State,
    abstract_state,
    compile_update,
    compute_settings,
    make_mesh,
    new_state,
    on_devices,
    validation,
)
from jax_massact.train.tensorboard import FOLDER as TENSORBOARD
from jax_massact.train.tensorboard import check_installed, open_tensorboard
from jax_massact.train.watch import ImageWatch, Watch, watch

CONFIG, SUMMARY = "config.json", "summary.json"
# What a run may leave in its folder, the settings first and the model at its end last.
FILES = (CONFIG, FILE, SUMMARY, TENSORBOARD, TOKENIZER, CHECKPOINTS, MODEL)

# In its first run, the update of a GPU makes kernels and records CUDA graphs; starts failed in it
# while another thread copied batches to the device. So batches are fetched ahead after it only.
_FETCHES_AFTER_FIRST_UPDATE = True


class Trained(NamedTuple):
    """The end of a run.

    Attributes:
      state: the last state.
      summary: the content of `summary.json`, or None where the run was stopped before its last
        step.
      resumed: the step that it was resumed from; 0 for a new run.
      stopped_by: the signal that stopped it, where the caller knows of one.
    """

    state: State
    summary: dict[str, Any] | None
    resumed: int
    stopped_by: int | None = None


def train(
    config: TrainConfig,
    batches: Batches,
    workdir: Path,
    *,
    on_row: Callable[[Row], None] = lambda row: None,
    on_resumed: Callable[[int], None] = lambda step: None,
    on_compiled: Callable[[TrainConfig, jax.sharding.Mesh, Any], None] = lambda *_: None,
    stop: Callable[[], bool] = lambda: False,
) -> Trained:
    """Trains a model, or resumes the run that is in `workdir`.

    The folder gets `config.json`, `metrics.jsonl` and `checkpoints/`; at the end `summary.json`; at
    the end or where the run is stopped `model/`, for every command that reads a model; and, if the
    settings ask for it, `tensorboard/`. Killed at any moment and called again, it computes the
    numbers of an uninterrupted run: the same updates from the same batches, none left out or made
    twice. Process 0 alone writes.

    On CPUs the numbers are equal bit for bit, on one mesh of one number of processes: those of two
    runs of one configuration, and those of an uninterrupted and of a resumed run. On another mesh
    sums are made in another order, and numbers agree to rounding. On GPUs the same holds as far as
    every kernel sums in a fixed order. XLA's do under `XLA_FLAGS=--xla_gpu_deterministic_ops=true`,
    at some cost; without it, scatter-adds (the embedding's gradient) and cuDNN's flash attention
    backward may differ in the last bits from one run to the next, and so may what the autotuner
    chooses on another start.

    Args:
      config: the settings of the run.
      batches: the data; must depend on nothing but its arguments and `config.seed`.
      workdir: the folder of the run; made when missing.
      on_row: called with every row of the metrics.
      on_resumed: called by process 0 with the step that the run is resumed from.
      on_compiled: called by process 0 before the first update, with the compiled update.
      stop: asked after every update; once true, a checkpoint is written and the run ends.

    Raises:
      ConfigError: the devices, the data or the run in the folder do not fit the settings, or
        TensorBoard's files are asked for and their writer is not installed.
      UserError: the folder cannot be used or is in use by another run, a checkpoint cannot be
        written, or numbers are no longer finite (`config.on_nonfinite`). With several processes
        all raise it; the last checkpoint stays.
    """
    if config.tensorboard:
        check_installed()
    _check_vocabulary(config, batches)
    config = on_devices(config)
    mesh = make_mesh(config.mesh)
    on_first(lambda: _make_folder(workdir))
    check_shared(workdir)
    with (
        _locked(workdir),
        jax.set_mesh(mesh),
        Checkpoints(workdir / CHECKPOINTS, config.checkpoint) as checkpoints,
    ):
        state = checkpoints.restore(abstract_state(config, mesh), config, batches.digests)
        state = new_state(config, mesh) if state is None else state
        start = int(state.step)
        if start > config.steps:
            raise ConfigError(
                f"steps is {config.steps}; the run in {workdir} is already at {start}"
            )
        if start and is_first():
            on_resumed(start)
        on_first(lambda: _describe(config, batches.tokenizer, workdir, done=start))
        with _opened(config, workdir, start, on_row) as (write, before):
            record = Recorder(config, mesh, before, write)
            with StallGuard(config.stall_seconds) as guard:
                run = _Run(config, mesh, batches, checkpoints, record, guard, on_compiled)
                state = run.go(state, start, stop)
        export(state, config, workdir / MODEL, batches.tokenizer)
        done = int(state.step)
        summary = None if done < config.steps else on_first(
            lambda: _finish(config, batches, workdir)
        )
    return Trained(state, summary, start)


def _describe(config: TrainConfig, tokenizer: Tokenizer | None, workdir: Path, done: int) -> None:
    """Writes what is needed beside the checkpoints to read them; an older model is removed."""
    write_text(workdir / CONFIG, to_json(config))
    if done < config.steps:
        shutil.rmtree(workdir / MODEL, ignore_errors=True)
    if tokenizer is not None:
        (workdir / TOKENIZER).mkdir(exist_ok=True)
        for name, text in tokenizer.files().items():
            write_text(workdir / TOKENIZER / name, text)


def _make_folder(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}") from None


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Keeps a second run out; process 0 holds the lock for all processes."""
    with contextlib.ExitStack() as held:
        together(lambda: held.enter_context(lock(workdir)) if is_first() else None)
        yield


def _finish(config: TrainConfig, batches: Batches, workdir: Path) -> dict[str, Any]:
    summary = summarize(config, batches.digests, read_rows(workdir / FILE))
    write_text(workdir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


@contextlib.contextmanager
def _opened(
    config: TrainConfig, workdir: Path, start: int, on_row: Callable[[Row], None]
) -> Iterator[tuple[Callable[[Row], None], list[Row]]]:
    """Yields a function that takes the run's rows, and the rows of an earlier start.

    Process 0 alone writes and shows them.
    """
    if not is_first():
        yield lambda row: None, share(None)
        return
    # A run that starts over measures step 0 again.
    with MetricsFile(workdir / FILE, start or -1) as metrics:
        # Every process has to know what was measured already, so that all measure the same.
        before = share(metrics.before)
        with _shown(config, workdir, before) as show:
            yield _each(metrics.write, show, on_row), before


def export(
    state: State, config: TrainConfig, folder: Path, tokenizer: Tokenizer | None = None
) -> None:
    """Writes the model as a Hugging Face folder, which every other command reads.

    Raises:
      WeightsError: the folder cannot be written.
    """
    model = _on_all(state.model) if jax.process_count() > 1 else state.model

    def write() -> None:
        save(model, folder, tokenizer=tokenizer, pictures=own_encoder.rule_of(config.model))

    on_first(write)


@jax.jit
def _on_all(model: Transformer) -> Transformer:
    return jax.tree.map(whole, model)


def _shown(
    config: TrainConfig, workdir: Path, rows: list[Row]
) -> contextlib.AbstractContextManager[Callable[[Row], None]]:
    """A context whose function writes rows for TensorBoard, if the settings ask for it."""
    if config.tensorboard:
        return open_tensorboard(workdir / TENSORBOARD, rows)
    return contextlib.nullcontext(lambda row: None)


def _each(*functions: Callable[[Row], None]) -> Callable[[Row], None]:
    def call(row: Row) -> None:
        for function in functions:
            function(row)

    return call


def _check_vocabulary(config: TrainConfig, batches: Batches) -> None:
    if batches.vocab_size > config.model.embed.vocab_size:
        raise ConfigError(
            f"model.embed.vocab_size is {config.model.embed.vocab_size}; expected with this data: "
            f"at least {batches.vocab_size}"
        )


class _Run:
    """The loop and what it needs."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: jax.sharding.Mesh,
        batches: Batches,
        checkpoints: Checkpoints,
        record: Recorder,
        guard: StallGuard,
        on_compiled: Callable[[TrainConfig, jax.sharding.Mesh, Any], None],
    ):
        self.config, self.mesh, self.batches = config, mesh, batches
        self.on_compiled = on_compiled
        self.checkpoints, self.record, self.guard = checkpoints, record, guard
        self.compiled: set[str] = set()
        self.compute = compute_settings(config)
        shape = (config.accumulate, config.micro_batch, row_shape(config)[0])
        self.place = functools.partial(place_rows, shape=shape, mesh=mesh)
        watched = batches.validation(0)[: config.watch.sequences] if config.watch.every else 0
        self.watched = np.asarray(watched)

    def go(self, state: State, start: int, stop: Callable[[], bool]) -> State:
        """Runs the steps that are left, or until `stop` returns True."""
        config, guard = self.config, self.guard
        if start == config.steps:
            if not self.record.is_validated(start):
                self._measure(state, start)
            return state
        update = compile_update(self.compute, self.mesh)
        if is_first():
            self.on_compiled(config, self.mesh, update)
        if start == 0:
            self._measure(state, 0)
        self.record.start_clock()
        fetched, vote = self._fetched(start), Vote(stop, self.mesh, IN_FLIGHT)
        try:
            for done in range(start + 1, config.steps + 1):
                guard.waits_for("data", done)
                batch = next(fetched)
                guard.waits_for("the devices", done)
                state, measured = update(state, batch.tokens)
                if done == start + 1 and _FETCHES_AFTER_FIRST_UPDATE:
                    jax.block_until_ready(measured)
                self.record.push(done, measured, batch.waited)
                self._measure(state, done)
                guard.waits_for("the devices", done)
                stopped = vote()
                if stopped or due(config.checkpoint.every, done, config.steps):
                    self.record.flush()
                    guard.waits_for("a checkpoint to be written", done)
                    self.checkpoints.save(done, state, config, self.batches.digests)
                if stopped:
                    break
        except NotFinite as found:
            guard.waits_for(None, found.step)
            raise self._explained(found, state) from None
        finally:
            guard.waits_for(None, 0)
            fetched.close()
        return state

    def _fetched(self, start: int) -> Generator[Fetched]:
        """The batches of the steps that are left."""
        if _FETCHES_AFTER_FIRST_UPDATE:
            asked = time.perf_counter()
            batch = self._batch(start)
            yield Fetched(start, batch, time.perf_counter() - asked)
            start += 1
        yield from prefetch(start, self.config.steps, self._batch)

    def _batch(self, step: int) -> jax.Array:
        return self.place(functools.partial(self.batches.rows, step))

    def _explained(self, found: NotFinite, state: State) -> UserError:
        """An error that says what was not finite and where.

        `state` is as it was before the update that went wrong.
        """
        where = diagnose(state.model, self._batch(found.step), self.compute)
        saved = self.checkpoints.steps
        kept = f"the checkpoint of step {saved[-1]} stays" if saved else "there is no checkpoint"
        return UserError(
            f"{found}: {where}; {kept}. A lower optimizer.lr, a longer warmup or a smaller clip "
            "may help, or on_nonfinite=skip"
        )

    def _measure(self, state: State, done: int) -> None:
        config = self.config
        if config.watch.every and (not done or due(config.watch.every, done, config.steps)):
            self.record.flush()
            began = time.perf_counter()
            with self._may_compile("the activations to be measured", done):
                found = jax.device_get(_watch(state.model, self.watched, config.watch))
            self.record.watched(done, found, time.perf_counter() - began)
        if done and due(config.validate_every, done, config.steps):
            self.record.flush()
            began = time.perf_counter()
            with self._may_compile("the validation loss", done):
                # One after the other, as `checksums` does.
                found = [
                    jax.device_get(validation(state.model, self._held_out(i), self.compute))
                    for i in range(config.validation_batches)
                ]
            self.record.validated(done, found, time.perf_counter() - began)

    @contextlib.contextmanager
    def _may_compile(self, what: str, done: int) -> Iterator[None]:
        """Waits for `what`; the first time also for its compilation, which has no limit."""
        self.guard.waits_for(what if what in self.compiled else None, done)
        yield
        self.compiled.add(what)

    def _held_out(self, index: int) -> jax.Array:
        # Every process makes the whole batch, which is small: its rows cannot be asked for one by
        # one.
        rows = self.batches.validation(index)
        return self.place(lambda lo, hi: rows[lo:hi])


@functools.partial(jax.jit, static_argnums=2)
def _watch(model: Transformer, rows: jax.Array, config: WatchConfig) -> Watch | ImageWatch:
    return watch(model, split_rows(model.config, rows)[0], config)
