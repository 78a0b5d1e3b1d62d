"""The rows and the summary of a run, from the metrics of its updates."""

import importlib.metadata
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_massact.accelerators import peak_flops
from jax_massact.errors import UserError
from jax_massact.train.config import TrainConfig
from jax_massact.train.metrics import Row, flops_per_token, of_kind
from jax_massact.train.step import parameter_count
from jax_massact.train.watch import ImageWatch, Watch, emergence

# Updates that may be on their way to the devices before the host waits for the first of them.
IN_FLIGHT = 2


def due(every: int, done: int, last: int) -> bool:
    """Whether something that is done at every so many steps, and at the last, is due."""
    return done == last or bool(every and done % every == 0)


class NotFinite(UserError):
    """A loss or a gradient that is not finite.

    Attributes:
      step: the step of its batch, from 0.
    """

    def __init__(self, step: int, said: str):
        super().__init__(said)
        self.step = step


class Recorder:
    """Turns measurements into rows, a few updates late, so that the devices always have work.

    Args:
      config: the run's settings.
      mesh: its devices.
      before: the rows of an earlier start.
      write: takes each new row.
    """

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
        self.peak = peak_flops(config.model.dtype, mesh.devices.flat)
        self.start_clock()

    def is_validated(self, step: int) -> bool:
        """Whether the rows of an earlier run end with the validation of this step."""
        return any(row["step"] == step for row in of_kind(self.before, "validation"))

    def start_clock(self) -> None:
        """Begins a new window of steps for speed and waiting time."""
        self.since, self.counted, self.waited = time.perf_counter(), 0, 0.0

    def push(self, done: int, measured: Any, waited: float) -> None:
        """Takes the metrics of an update, which may still be under way; waits for an older one."""
        self.waited += waited
        self.pending.append((done, measured))
        while len(self.pending) > IN_FLIGHT:
            self._train_row(*self.pending.popleft())

    def flush(self) -> None:
        """Waits for every update that is under way and writes its row."""
        while self.pending:
            self._train_row(*self.pending.popleft())

    def _train_row(self, done: int, measured: Any) -> None:
        loss, grad_norm, lr = (float(x) for x in jax.device_get(measured))
        if not (np.isfinite(loss) and np.isfinite(grad_norm)):
            self._not_finite(done, loss, grad_norm)
        else:
            self.skipped = 0
        self.counted += 1
        if not due(self.config.log_every, done, self.config.steps):
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

    def watched(self, done: int, found: Watch | ImageWatch, seconds: float) -> None:
        """Writes a measurement of the activations; its seconds do not count as training."""
        self.since += seconds
        values = {name: value.tolist() for name, value in found._asdict().items()}
        self.write({"kind": "watch", "step": done, **values, "seconds": seconds})

    def validated(self, done: int, found: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Writes the losses of the validation batches, and their accuracy, as `watched` does."""
        self.since += seconds
        losses = np.array([batch["loss"] for batch in found])
        accuracy = [float(batch["accuracy"]) for batch in found if "accuracy" in batch]
        self.write(
            {
                "kind": "validation",
                "step": done,
                "loss": float(losses.mean()),
                "std": float(losses.std(ddof=1)) if len(losses) > 1 else None,
                "losses": losses.tolist(),
                **({"accuracy": statistics.fmean(accuracy)} if accuracy else {}),
            }
        )


def summarize(
    config: TrainConfig, digests: Mapping[str, str], rows: list[Row]
) -> dict[str, Any]:
    """What `summary.json` says of a finished run.

    Args:
      config: the run's settings.
      digests: of its data, as `Batches.digests`.
      rows: all rows of its `metrics.jsonl`.
    """
    trained, watched = of_kind(rows, "train"), of_kind(rows, "watch")
    seconds = sum(row["seconds"] for row in trained)
    # The first measurement compiles, and is made before the clock starts. `seconds` has none.
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
        "watching": watching / (seconds + watching or 1),
        "digests": dict(digests),
        "device": jax.devices()[0].device_kind,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "optax", "flax")},
    }


def _median(rows: list[Row], name: str) -> float | None:
    values = [row[name] for row in rows if row[name] is not None]
    return statistics.median(values) if values else None
