"""The training loop: from a new model, or from where a run was stopped, to the last step."""

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jax_massact.accelerators import peak_flops
from jax_massact.cluster.lock import lock
from jax_massact.cluster.sharing import check_shared, is_first, on_first, share, together
from jax_massact.cluster.vote import Vote
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import ConfigError, UserError
from jax_massact.nn.sharded import whole
from jax_massact.nn.transformer import Transformer
from jax_massact.save import save
from jax_massact.train.checkpoint import Checkpoints
from jax_massact.train.config import TrainConfig, to_json
from jax_massact.train.data import place_rows
from jax_massact.train.metrics import (
    FILE,
    MetricsFile,
    Row,
    flops_per_token,
    of_kind,
    read_rows,
    write_text,
)
from jax_massact.train.nonfinite import diagnose
from jax_massact.train.prefetch import Batches, prefetch
from jax_massact.train.step import (
    State,
    abstract_state,
    compile_update,
    make_mesh,
    new_state,
    on_devices,
    parameter_count,
    validation_loss,
)
from jax_massact.train.tensorboard import FOLDER as TENSORBOARD
from jax_massact.train.tensorboard import check_installed, open_tensorboard
from jax_massact.train.watch import Watch, emergence, watch

CONFIG, SUMMARY, MODEL = "config.json", "summary.json", "model"
# Updates that may be on their way to the devices before the host waits for the first of them.
IN_FLIGHT = 2


class Trained(NamedTuple):
    """What a run has come to.

    Attributes:
      state: the parameters and the rest.
      summary: what `summary.json` says, or None where the run was stopped before its last step.
      resumed: the step that it was taken up from; 0 for a new one.
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
    """Trains a model, or goes on with the run that is in `workdir`.

    The folder gets `config.json`, `metrics.jsonl`, `checkpoints/`, at the end `summary.json`, and
    there or where the run is stopped `model/`, for every command that reads a model, and, if the
    settings ask for it, `tensorboard/`. Killed at any moment and called again, it computes what
    the unbroken run would have: the same updates from the same batches, none left out or made
    twice. Process 0 alone writes.

    On CPUs the numbers are equal bit for bit, on one mesh of one number of processes: those of two
    runs of one configuration, and those of an unbroken run and of one that was taken up again. On
    another mesh sums are made in another order, and numbers agree to rounding. On GPUs the same
    holds as far as every kernel sums in a fixed order. XLA's do under
    `XLA_FLAGS=--xla_gpu_deterministic_ops=true`, at some cost; without it, scatter-adds (the
    embedding's gradient) and cuDNN's flash attention backward may differ in the last bits from one
    run to the next, and so may what the autotuner chooses on another start.

    Args:
      batches: the data; must depend on nothing but its arguments and `config.seed`.
      on_row: called with every row of the metrics.
      on_resumed: called by process 0 with the step that an earlier run is taken up at.
      on_compiled: called by process 0 before the first update, with what was compiled.
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
        Checkpoints(workdir / "checkpoints", config.checkpoint) as checkpoints,
    ):
        state = checkpoints.restore(abstract_state(config, mesh), config)
        state = new_state(config, mesh) if state is None else state
        start = int(state.step)
        if start > config.steps:
            raise ConfigError(
                f"steps is {config.steps}; the run in {workdir} is already at {start}"
            )
        if start and is_first():
            on_resumed(start)
        on_first(lambda: write_text(workdir / CONFIG, to_json(config)))
        with _opened(config, workdir, start, on_row) as (write, before):
            record = _Recorder(config, mesh, before, write)
            run = _Run(config, mesh, batches, checkpoints, record, on_compiled)
            state = run.go(state, start, stop)
        export(state, config, workdir / MODEL, batches.tokenizer)
        done = int(state.step)
        summary = None if done < config.steps else on_first(lambda: _finish(config, workdir))
    return Trained(state, summary, start)


def _make_folder(workdir: Path) -> None:
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot write to {workdir}: {error.strerror}") from None


@contextlib.contextmanager
def _locked(workdir: Path) -> Iterator[None]:
    """Keeps a second run out; of several processes, process 0 holds the lock for all."""
    with contextlib.ExitStack() as held:
        together(lambda: held.enter_context(lock(workdir)) if is_first() else None)
        yield


def _finish(config: TrainConfig, workdir: Path) -> dict[str, Any]:
    summary = summarize(config, read_rows(workdir / FILE))
    write_text(workdir / SUMMARY, json.dumps(summary, indent=2) + "\n")
    return summary


@contextlib.contextmanager
def _opened(
    config: TrainConfig, workdir: Path, start: int, on_row: Callable[[Row], None]
) -> Iterator[tuple[Callable[[Row], None], list[Row]]]:
    """What takes the run's rows, and those that are there; process 0 alone writes and shows."""
    if not is_first():
        yield lambda row: None, share(None)
        return
    # A run that begins anew measures step 0 again.
    with MetricsFile(workdir / FILE, start or -1) as metrics:
        # All have to know what is measured already, so as to measure the same.
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
    on_first(lambda: save(model, folder, tokenizer=tokenizer))


@jax.jit
def _on_all(model: Transformer) -> Transformer:
    return jax.tree.map(whole, model)


def _shown(
    config: TrainConfig, workdir: Path, rows: list[Row]
) -> contextlib.AbstractContextManager[Callable[[Row], None]]:
    """What writes rows for TensorBoard, if it is asked for."""
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
            f"model.embed.vocab_size is {config.model.embed.vocab_size}; allowed with this data: "
            f"at least {batches.vocab_size}"
        )


class _Run:
    """The loop's compiled functions and what it has on its way."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: jax.sharding.Mesh,
        batches: Batches,
        checkpoints: Checkpoints,
        record: "_Recorder",
        on_compiled: Callable[[TrainConfig, jax.sharding.Mesh, Any], None],
    ):
        self.config, self.mesh, self.batches = config, mesh, batches
        self.on_compiled = on_compiled
        self.checkpoints, self.record = checkpoints, record
        # Runs that differ in their seed alone share what is compiled.
        self.compute = dataclasses.replace(config, seed=0)
        shape = (config.accumulate, config.micro_batch, config.sequence_length + 1)
        self.place = functools.partial(place_rows, shape=shape, mesh=mesh)
        watched = batches.validation(0)[: config.watch.sequences, :-1] if config.watch.every else 0
        self.watched = np.asarray(watched)

    def go(self, state: State, start: int, stop: Callable[[], bool]) -> State:
        """Runs the steps that are left, or until `stop` says so."""
        steps = self.config.steps
        if start == steps:
            if not self.record.is_validated(start):
                self._measure(state, start)
            return state
        update = compile_update(self.compute, self.mesh)
        if is_first():
            self.on_compiled(self.config, self.mesh, update)
        if start == 0:
            self._measure(state, 0)
        self.record.start_clock()
        fetched, vote = prefetch(start, steps, self._batch), Vote(stop, self.mesh, IN_FLIGHT)
        try:
            for done, batch, waited in ((f.step + 1, f.tokens, f.waited) for f in fetched):
                state, measured = update(state, batch)
                self.record.push(done, measured, waited)
                self._measure(state, done)
                stopped = vote()
                if stopped or _due(self.config.checkpoint.every, done, steps):
                    self.record.flush()
                    self.checkpoints.save(done, state, self.config)
                if stopped:
                    break
        except NotFinite as found:
            raise self._explained(found, state) from None
        finally:
            fetched.close()
        return state

    def _batch(self, step: int) -> jax.Array:
        return self.place(functools.partial(self.batches.rows, step))

    def _explained(self, found: "NotFinite", state: State) -> UserError:
        """What was wrong where; `state` is as it was before the update that went wrong."""
        where = diagnose(state.model, self._batch(found.step), self.compute)
        saved = self.checkpoints.steps
        kept = f"the checkpoint of step {saved[-1]} stays" if saved else "there is no checkpoint"
        return UserError(
            f"{found}: {where}; {kept}. A lower optimizer.lr, a longer warmup or a smaller clip "
            "may help, or on_nonfinite=skip"
        )

    def _measure(self, state: State, done: int) -> None:
        config = self.config
        if config.watch.every and (not done or _due(config.watch.every, done, config.steps)):
            self.record.flush()
            began = time.perf_counter()
            found = jax.device_get(_watch(state.model, self.watched, self.compute))
            self.record.watched(done, found, time.perf_counter() - began)
        if done and _due(config.validate_every, done, config.steps):
            self.record.flush()
            losses = [
                validation_loss(state.model, self._held_out(i), self.compute)
                for i in range(config.validation_batches)
            ]
            self.record.validated(done, np.asarray(jax.device_get(losses)))

    def _held_out(self, index: int) -> jax.Array:
        # Made whole by every process, and small: rows of one batch have no numbers of their own.
        rows = self.batches.validation(index)
        return self.place(lambda lo, hi: rows[lo:hi])


@functools.partial(jax.jit, static_argnums=2)
def _watch(model: Transformer, tokens: jax.Array, config: TrainConfig) -> Watch:
    return watch(model, tokens, config.watch)


def _due(every: int, done: int, last: int) -> bool:
    return done == last or bool(every and done % every == 0)


class NotFinite(UserError):
    """A loss or a gradient that is not finite.

    Attributes:
      step: of its batch, from 0.
    """

    def __init__(self, step: int, said: str):
        super().__init__(said)
        self.step = step


class _Recorder:
    """Turns measurements into rows, a few updates late, so that the devices always have work."""

    def __init__(
        self,
        config: TrainConfig,
        mesh: jax.sharding.Mesh,
        before: list[Row],
        write: Callable[[Row], None],
    ):
        self.config, self.before, self.write = config, before, write
        self.skipped = 0
        self.pending: deque[tuple[int, Any]] = deque()
        self.tokens = config.batch_size * config.sequence_length
        self.flops = self.tokens * flops_per_token(
            config.model, parameter_count(config), config.sequence_length
        )
        self.peak = peak_flops(config.model, mesh.devices.flat)
        self.start_clock()

    def is_validated(self, step: int) -> bool:
        """Whether the rows of an earlier run end with the validation of this step."""
        return any(row["step"] == step for row in of_kind(self.before, "validation"))

    def start_clock(self) -> None:
        self.since, self.counted, self.waited = time.perf_counter(), 0, 0.0

    def push(self, done: int, measured: Any, waited: float) -> None:
        self.waited += waited
        self.pending.append((done, measured))
        while len(self.pending) > IN_FLIGHT:
            self._train_row(*self.pending.popleft())

    def flush(self) -> None:
        """Waits for every update and writes its row."""
        while self.pending:
            self._train_row(*self.pending.popleft())

    def _train_row(self, done: int, measured: Any) -> None:
        loss, grad_norm, lr = (float(x) for x in jax.device_get(measured))
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            self._not_finite(done, loss, grad_norm)
        else:
            self.skipped = 0
        self.counted += 1
        if not _due(self.config.log_every, done, self.config.steps):
            return
        seconds = time.perf_counter() - self.since
        per_second = self.counted / seconds
        self.write(
            {
                "kind": "train",
                "step": done,
                "loss": loss,
                "grad_norm": grad_norm,
                "lr": lr,
                "seconds": seconds,
                "tokens_per_second": self.tokens * per_second,
                "mfu": self.peak and self.flops * per_second / self.peak,
                "host_wait": self.waited / seconds,
            }
        )
        self.start_clock()

    def _not_finite(self, done: int, loss: float, grad_norm: float) -> None:
        said = f"the loss is {loss} and the gradient's norm {grad_norm} at step {done - 1}"
        if self.config.on_nonfinite == "stop":
            raise NotFinite(done - 1, said)
        self.skipped += 1
        if self.skipped > self.config.max_skipped:
            said += f", and {self.skipped} updates in a row are not finite (max_skipped is "
            raise NotFinite(done - 1, f"{said}{self.config.max_skipped})")
        self.write({"kind": "skipped", "step": done, "loss": loss, "grad_norm": grad_norm,
                    "in_a_row": self.skipped})

    def watched(self, done: int, found: Watch, seconds: float) -> None:
        values = {name: value.tolist() for name, value in found._asdict().items()}
        self.write({"kind": "watch", "step": done, **values, "seconds": seconds})

    def validated(self, done: int, losses: np.ndarray) -> None:
        self.write(
            {
                "kind": "validation",
                "step": done,
                "loss": float(losses.mean()),
                "std": float(losses.std(ddof=1)) if len(losses) > 1 else None,
                "losses": losses.tolist(),
            }
        )


def summarize(config: TrainConfig, rows: list[Row]) -> dict[str, Any]:
    """A finished run in numbers.

    Args:
      config: of the run.
      rows: of its `metrics.jsonl`.
    """
    trained, watched = of_kind(rows, "train"), of_kind(rows, "watch")
    seconds = sum(row["seconds"] for row in trained)
    # The first measurement compiles, and is made before the clock starts.
    watching = sum(row["seconds"] for row in watched if row["step"])
    return {
        "steps": config.steps,
        "parameters": parameter_count(config),
        "tokens": config.steps * config.batch_size * config.sequence_length,
        "loss": trained[-1]["loss"] if trained else None,
        "skipped": len(of_kind(rows, "skipped")),
        "validation": of_kind(rows, "validation")[-1],
        "watch": watched[-1] if watched else None,
        "emergence": emergence(watched, config.watch.definition) if watched else None,
        "seconds": seconds,
        "tokens_per_second": _median(trained, "tokens_per_second"),
        "mfu": _median(trained, "mfu"),
        "host_wait": sum(row["host_wait"] * row["seconds"] for row in trained) / (seconds or 1),
        "watching": watching / (seconds or 1),
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")},
    }


def _median(rows: list[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.median(values) if values else None
