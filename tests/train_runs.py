"""Settings that train in seconds, and data that needs no file."""

import dataclasses

import numpy as np

from jax_massact.train.config import (
    CheckpointConfig,
    OptimizerConfig,
    TrainConfig,
    WatchConfig,
    gpt2,
)

MODEL = gpt2(
    vocab_size=64, depth=2, width=32, heads=8, context_length=16, dtype="float32",
    variant="kv_bias",
)
MICRO = TrainConfig(
    model=MODEL,
    optimizer=OptimizerConfig(lr=1e-2, final_lr=1e-3, warmup=3, decay_end=20),
    watch=WatchConfig(every=10, sequences=4, sink_tokens=8),
    checkpoint=CheckpointConfig(every=5, keep=2),
    steps=20,
    batch_size=8,
    sequence_length=16,
    unroll=False,
    log_every=1,
    validate_every=10,
    validation_batches=3,
)


@dataclasses.dataclass(frozen=True)
class Counting:
    """Each row counts upwards from a number drawn by (seed, step), modulo the vocabulary."""

    seed: int = 0
    batch_size: int = MICRO.batch_size
    length: int = MICRO.sequence_length
    vocab_size: int = 64
    tokenizer: None = None

    @property
    def digests(self) -> dict[str, str]:
        return {"training data": str(self.seed), "tokenizer": str(self.vocab_size)}

    def batch(self, step: int) -> np.ndarray:
        return self._draw(0, step)

    def rows(self, step: int, lo: int, hi: int) -> np.ndarray:
        return self.batch(step)[lo:hi]

    def validation(self, index: int) -> np.ndarray:
        return self._draw(1, index)

    def _draw(self, *key: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, *key))
        first = rng.integers(0, self.vocab_size, (self.batch_size, 1))
        noise = rng.integers(0, 3, (self.batch_size, self.length + 1))
        return ((first + np.arange(self.length + 1) + noise) % self.vocab_size).astype(np.int32)
