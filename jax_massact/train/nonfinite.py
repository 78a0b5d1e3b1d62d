"""Where in a forward pass numbers first stop being finite."""

import functools
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_massact.nn import sharded
from jax_massact.nn.acts import SITES, Acts
from jax_massact.nn.transformer import Transformer, parameters
from jax_massact.nn.variants import rows_in_front
from jax_massact.train.config import TrainConfig
from jax_massact.train.rows import logits_of, split_rows
from jax_massact.train.step import loss

# Of a block, in the order in which they are computed.
ACTIVATIONS = tuple(site for site in SITES if site != "weights")
_NAMED = 5


class Seen(NamedTuple):
    """Where numbers are not finite in the A micro-batches of a batch.

    Attributes:
      activations: for each of ACTIVATIONS and each row the first token with a number that is not
        finite, or the number of all tokens.
      logits: the same.
    """

    activations: Int[Array, "A L F B"]
    logits: Int[Array, "A B"]


def diagnose(model: Transformer, tokens: Int[Array, "A B T+1"], config: TrainConfig) -> str:
    """Says in words what is the first thing in a batch that is not finite.

    Looked at in this order: the parameters, every block's activations, the logits, and the gradient
    of each parameter.

    Args:
      model: as it was before the update that went wrong.
      tokens: its batch, as `step.place` gives it; every process has to call this.
    """
    bad = jax.device_get(_bad_parameters(model))
    if names := sorted(name for name, is_bad in bad.items() if is_bad):
        where = f"the parameters {_listed(names)} already hold numbers that are not finite; "
    else:
        where = ""
    seen = jax.device_get(_look(model, tokens, config))
    return where + (_in_activations(seen, _length(config))
                    or _in_gradient(model, tokens, config))


def _length(config: TrainConfig) -> int:
    """Tokens of a row with the rows in front: more than the index of any."""
    return rows_in_front(config.model) + config.sequence_length


def _in_activations(seen: Seen, length: int) -> str | None:
    # [L, F, A, B] -> [L, F, A x B]: rows as they are numbered in the batch.
    micro, layers, fields, rows = seen.activations.shape
    places = np.asarray(seen.activations).transpose(1, 2, 0, 3)
    places = places.reshape(layers, fields, micro * rows)
    for layer, field in np.ndindex(layers, fields):
        if (places[layer, field] < length).any():
            what = f"the first activation that is not finite is {ACTIVATIONS[field]} of layer "
            return f"{what}{layer} (from 0), {_rows(places[layer, field], length)}"
    logits = np.asarray(seen.logits).reshape(-1)
    if (logits < length).any():
        return f"all activations are finite, the logits are not, {_rows(logits, length)}"
    return None


def _in_gradient(model: Transformer, tokens: jax.Array, config: TrainConfig) -> str:
    size = tokens.shape[1]
    for index in range(tokens.shape[0]):
        bad = jax.device_get(_bad_gradients(model, tokens, index, config))
        if names := sorted(name for name, is_bad in bad.items() if is_bad):
            rows = f"rows {index * size} to {(index + 1) * size - 1}"
            return (
                "all activations and logits are finite; the gradient is not, of "
                f"{_listed(names)}, in {rows} of the batch"
            )
    return (
        "each activation, logit and gradient is finite; only the sum of the gradient's squares is "
        "too large for float32"
    )


def _rows(places: np.ndarray, length: int) -> str:
    rows = np.flatnonzero(places < length)
    word = "row" if len(rows) == 1 else "rows"
    return f"in {word} {_listed(map(str, rows))} of the batch, from token {places.min()}"


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


@jax.jit
def _bad_parameters(model: Transformer) -> dict[str, Bool[Array, ""]]:
    return {name: ~jnp.isfinite(x).all() for name, x in parameters(model).items()}


@functools.partial(jax.jit, static_argnums=2)
def _look(model: Transformer, tokens: Int[Array, "A B T+1"], config: TrainConfig) -> Seen:
    length = _length(config)

    def tap(acts: Acts):
        return jnp.stack([_first_token(getattr(acts, name), length) for name in ACTIVATIONS])

    def look(rows):
        logits, activations = model(split_rows(config.model, rows)[0], tap=tap)
        bad = _first_token(logits_of(config.model, logits), length)
        return Seen(sharded.whole(activations), bad)

    return jax.lax.map(look, tokens)


def _first_token(x: jax.Array, length: int) -> Int[Array, " B"]:
    """The first token with a number that is not finite; `length` where there is none."""
    bad = ~jnp.isfinite(x).all(range(2, x.ndim))
    index = jnp.arange(bad.shape[1])
    return sharded.whole(jnp.where(bad, index, length).min(1))


@functools.partial(jax.jit, static_argnums=(2, 3))
def _bad_gradients(
    model: Transformer, tokens: jax.Array, index: int, config: TrainConfig
) -> dict[str, Bool[Array, ""]]:
    return _bad_parameters(jax.grad(loss)(model, tokens[index], config))
