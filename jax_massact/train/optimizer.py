"""The learning rate over time, what decays, and which optimizer serves which parameter."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import optax
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from jax_massact.train.config import TrainConfig

# Rows and columns of the matrices inside the blocks; axis 0 is the layer, and each layer's matrix
# is orthogonalized by itself. All heads together are one matrix, as a Linear layer has it.
MATRICES = {
    "blocks.attn.q": MuonDimensionNumbers(1, (2, 3)),
    "blocks.attn.k": MuonDimensionNumbers(1, (2, 3)),
    "blocks.attn.v": MuonDimensionNumbers(1, (2, 3)),
    "blocks.attn.out": MuonDimensionNumbers((1, 2), 3),
    "blocks.mlp.up": MuonDimensionNumbers(1, 2),
    "blocks.mlp.gate": MuonDimensionNumbers(1, 2),
    "blocks.mlp.down": MuonDimensionNumbers(1, 2),
}
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


def decays(name: str, array: Any) -> bool:
    """Whether the parameter `name` is subject to weight decay.

    The authors decay what they store with two or more dimensions: every matrix, the embeddings, the
    sink token, and k' and v', whose shape there is [1, heads, 1, H]. Norms and biases are vectors
    there: of our stacked biases [L, K, H] none decays.
    """
    if name.endswith(("bias", "scale", "logit")):
        return False
    return array.ndim - name.startswith("blocks.") >= 2


def make_optimizer(config: TrainConfig) -> optax.GradientTransformation:
    """Clipping, then AdamW, or Muon for MATRICES and AdamW for the rest, over named parameters."""
    settings = config.optimizer
    steps: list[optax.GradientTransformation] = []
    if settings.clip:
        steps.append(optax.clip_by_global_norm(settings.clip))
    adam = optax.scale_by_adam(settings.beta1, settings.beta2, settings.eps)
    if settings.name == "adamw":
        steps.append(adam)
    else:
        steps.append(optax.partition({"muon": _muon(settings.momentum), "adam": adam}, _labels))
    steps.append(optax.add_decayed_weights(settings.weight_decay, _decay_mask))
    steps.append(optax.scale_by_learning_rate(schedule(config)))
    return optax.chain(*steps)


def _labels(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: "muon" if name in MATRICES else "adam" for name in params}


def _decay_mask(params: Mapping[str, Any]) -> dict[str, bool]:
    return {name: decays(name, array) for name, array in params.items()}


def _muon(momentum: float) -> optax.GradientTransformation:
    def dimensions(params: Any) -> Any:
        return {name: MATRICES.get(name, optax.MaskedNode()) for name in params}

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


def _as_adam(name: str, update: Any) -> Any:
    """An orthogonal matrix [m, n] has entries of size 1 / sqrt(max(m, n))."""
    if isinstance(update, optax.MaskedNode):
        return update
    numbers = MATRICES[name]
    sides = (numbers.reduction_axis, numbers.output_axis)
    axes = [(side,) if isinstance(side, int) else side for side in sides]
    longer = max(math.prod(update.shape[a] for a in side) for side in axes)
    return MUON_RMS * longer**0.5 * update
