"""Whether a run can be resumed: its numbers must be those of an uninterrupted run."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.errors import ConfigError
from jax_massact.train.config import OptimizerConfig, TrainConfig, to_json
from jax_massact.train.optimizer import schedule

# Settings that may change when a run is resumed: they do not change its numbers, or only those that
# are still to come. Steps and the end of the decay also decide the learning rate of earlier steps,
# which is checked.
FREE = frozenset(
    {"steps", "log_every", "validate_every", "validation_batches", "mesh", "watch", "checkpoint",
     "remat", "unroll", "tensorboard", "on_nonfinite", "max_skipped", "stall_seconds",
     "optimizer.decay_start", "optimizer.decay_end"}
)


def check_settings(config: TrainConfig, before: Mapping[str, Any], step: int, where: str) -> None:
    """Checks that a run with the settings `before` would have come to the same state by `step`.

    Args:
      config: the settings to resume with.
      before: the settings of the run so far, as read from JSON.
      step: updates made so far.
      where: the run's folder.

    Raises:
      ConfigError: a setting differs that the run's numbers depend on, or the learning rate of a
        step that was already made.
    """
    if "family" in before["model"]:
        raise ConfigError(
            f"{where} holds a run of an earlier version, which described its model otherwise. "
            "Expected: that version, or another --workdir"
        )
    # Through JSON, as those read were: tuples have become lists. A run of an earlier version does
    # not have every setting.
    now = _flat(json.loads(to_json(config)))
    then = _flat(json.loads(to_json(TrainConfig()))) | _flat(before)
    changed = [
        f"{key} was {then.get(key)!r} and is {now.get(key)!r}"
        for key in sorted(now.keys() | then.keys())
        if now.get(key) != then.get(key) and not {key, key.partition(".")[0]} & FREE
    ]
    if changed:
        raise ConfigError(
            f"{where} holds a run with other settings: {'; '.join(changed)}. Expected: the same "
            "settings, or another --workdir"
        )
    _check_schedule(config, before, step, where)


def _check_schedule(config: TrainConfig, before: Mapping[str, Any], step: int, where: str) -> None:
    optimizer = OptimizerConfig(**before["optimizer"])
    old = dataclasses.replace(config, optimizer=optimizer, steps=before["steps"])
    if old == config:
        return
    rates, former = _rates(config, step), _rates(old, step)
    if np.allclose(rates, former, rtol=1e-5, atol=0):
        return
    names = ("steps", "optimizer.decay_start", "optimizer.decay_end")
    now, then = _flat(dataclasses.asdict(config)), _flat(dataclasses.asdict(old))
    changed = [f"{name} was {then[name]} and is {now[name]}"
               for name in names if now[name] != then[name]]
    raise ConfigError(
        f"{where}: {', '.join(changed)}, which changes the learning rate of steps already made: at "
        f"step {step:,} from {former[-1]:.3g} to {rates[-1]:.3g}. Expected: "
        f"--config.steps={old.steps}; --config.optimizer.decay_end={old.decay_end} to train on at "
        "the last rate; or another --workdir"
    )


def _rates(config: TrainConfig, step: int) -> np.ndarray:
    """The learning rates of steps 0 to `step`, the last being the one that comes next."""
    return np.asarray(jax.jit(schedule(config))(jnp.arange(step + 1)))


def check_data(now: Mapping[str, str], before: Mapping[str, str], where: str) -> None:
    """Checks that a run goes on with the data and the vocabulary that it began with.

    Args:
      now: digests, as `Batches.digests`.
      before: those that were saved; digests that either side lacks are not compared.
      where: the run's folder.

    Raises:
      ConfigError: a digest differs.
    """
    changed = [name for name in before if name in now and now[name] != before[name]]
    if changed:
        raise ConfigError(
            f"{where} holds a run on other data: changed since then: {', '.join(changed)}. "
            "Expected: the same files and tokenizer, or another --workdir"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in values.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return out
