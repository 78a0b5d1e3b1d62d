"""The learning rate over time, what decays, and which optimizer serves which parameter."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jax_massact.nn.parameters import parameter
from jax_massact.train.config import TrainConfig

# The root mean square of Adam's updates. With it, Muon's are as large, and both take one learning
# rate (Liu et al. 2025, "Muon is Scalable for LLM Training", section 2.2).
MUON_RMS = 0.2


def schedule(config: TrainConfig) -> optax.Schedule:
    """The learning rate of the update that follows `step` others."""
    settings = config.optimizer
    start, end = config.decay_start, config.decay_end
    if settings.schedule == "cosine":
        down = optax.cosine_decay_schedule(
            settings.lr, end - start, alpha=settings.final_lr / settings.lr
        )
    else:
        down = optax.linear_schedule(settings.lr, settings.final_lr, end - start)
    up = optax.linear_schedule(0.0, settings.lr, config.warmup)
    stay = optax.constant_schedule(settings.lr)
    return optax.join_schedules([up, stay, down], [config.warmup, start])


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping, then AdamW, or Muon for the blocks' matrices and AdamW for the rest.

    All over parameters by name; `nn.parameters` says which decay and which are matrices.
    """
    settings = config.optimizer
    steps: list[optax.GradientTransformation] = []
    if settings.clip:
        steps.append(optax.clip_by_global_norm(settings.clip))
    adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps)
    if settings.name == "adamw":
        steps.append(adam)
    else:
        steps.append(optax.partition({"muon": _muon(settings.momentum), "adam": adam}, _labels))
    if settings.extra_key_lr != 1:
        # Not a part of the chain otherwise, whose state is in every checkpoint.
        steps.append(optax.masked(optax.scale(settings.extra_key_lr), _extra_keys))
    steps.append(optax.add_decayed_weights(settings.weight_decay, _decay_mask))
    steps.append(optax.scale_by_learning_rate(schedule(config)))
    return optax.chain(*steps)


def _labels(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: "muon" if parameter(name).inputs else "adam" for name in params}


def _decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
    return {name: parameter(name).decays for name in params}


def _extra_keys(params: Mapping[str, Any]) -> dict[str, bool]:
    return {name: parameter(name).extra_key for name in params}


def _muon(momentum: float) -> optax.GradientTransformation:
    def dimensions(params: Any) -> Any:
        return {name: _matrix(name) or optax.MaskedNode() for name in params}

    def as_adam(updates: Any, params: Any) -> Any:
        del params
        return {name: _as_adam(name, update) for name, update in updates.items()}

    inner = optax.chain(
        scale_by_muon(beta=momentum, weight_dimension_numbers=dimensions),
        optax.stateless(as_adam),
    )

    def update(updates, state, params=None):
        if jax.sharding.get_abstract_mesh().empty:
            return inner.update(updates, state, params)
        # Products of matrices that are split both ways: XLA may choose how.
        layouts = jax.tree.map(lambda x: jax.typeof(x).sharding.spec, (updates, state))
        run: Any = jax.sharding.auto_axes(inner.update, out_sharding=layouts)
        return run(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def _matrix(name: str) -> MuonDimensionNumbers | None:
    """The axes that are rows and columns of a matrix of the blocks; None: it is not one.

    Axis 0 is the layer, and each layer's matrix is orthogonalized by itself. All heads together are
    one matrix, as a Linear layer has it.
    """
    row = parameter(name)
    axes = tuple(range(1, 1 + len(row.letters)))
    return MuonDimensionNumbers(axes[: row.inputs], axes[row.inputs :]) if row.inputs else None


def _as_adam(name: str, update: Any) -> Any:
    """An orthogonal matrix [m, n] has entries of size 1 / sqrt(max(m, n))."""
    if isinstance(update, optax.MaskedNode):
        return update
    inputs = parameter(name).inputs
    sides = update.shape[1 : 1 + inputs], update.shape[1 + inputs :]
    return MUON_RMS * max(map(math.prod, sides)) ** 0.5 * update
