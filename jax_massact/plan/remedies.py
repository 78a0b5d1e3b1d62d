"""What would make a run fit that does not: micro-batches, rematerialization, another mesh."""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from jax_massact.errors import ConfigError
from jax_massact.plan.estimate import Plan
from jax_massact.train.config import TrainConfig


class Remedy(NamedTuple):
    """Settings that are changed, and how a user says so."""

    options: str
    settings: TrainConfig


def remedies(settings: TrainConfig, plan: Plan) -> Iterator[Remedy]:
    """Changes that may make it fit, the cheapest first: each has to be planned to know.

    Accumulated gradients cost nothing but smaller products, rematerialization a third more
    arithmetic, and parameters along `fsdp` are sent in every pass.
    """
    memory = plan["memory"]
    state = memory["parameters"] + memory["optimizer"] + memory["gradients"]
    remat = {} if settings.remat else {"remat": True}
    if state < memory["available"]:
        parts = math.ceil(memory["activations"] / (memory["available"] - state))
        accumulate = {"accumulate": settings.accumulate * 2 ** math.ceil(math.log2(max(parts, 2)))}
        yield from _tried(settings, accumulate)
        if remat:
            yield from _tried(settings, remat)
            yield from _tried(settings, remat | accumulate)
    sizes = plan["mesh"]
    if sizes["data"] > 1:
        mesh = {"mesh": dataclasses.replace(
            settings.mesh.on(plan["devices"]), data=1, fsdp=sizes["data"] * sizes["fsdp"]
        )}
        yield from _tried(settings, mesh)
        if remat:
            yield from _tried(settings, mesh | remat)


def _tried(settings: TrainConfig, changes: dict[str, Any]) -> Iterator[Remedy]:
    try:
        changed = dataclasses.replace(settings, **changes)
    except ConfigError:
        return  # what does not divide is no remedy
    words = {"remat": "true"}
    said = [f"--config.{name}={words.get(name, value)}" for name, value in changes.items()]
    yield Remedy(" ".join(said), changed)
