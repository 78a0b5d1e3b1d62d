"""Super weights: the one entry of a down projection through which an MLP writes a dimension."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_massact.nn import sharded
from jax_massact.nn.acts import Acts
from jax_massact.nn.patches import ModelInput
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer, parameters

# The expert of units that serve every token.
EVERY_TOKEN = -1


class SuperWeights(NamedTuple):
    """Of each sequence and each (layer, dimension): the unit of the MLP that writes it, at the
    token where that MLP adds the most to the dimension.

    Shares are of the sum over all units, before the bias, the out-norm and the residual multiplier
    that some models have.

    Attributes:
      position: of the token.
      expert: of a mixture, the expert that writes the most; -1 where the MLP serves every token.
      expert_share: of that expert's units together; 1 where there are no experts.
      column: the unit, a column of `down_proj` as PyTorch has it (its row is the dimension).
      weight: that entry of the matrix.
      activation: of the unit.
      share: of weight x activation, times the expert's weight.
    """

    position: Int[Array, "B E"]
    expert: Int[Array, "B E"]
    expert_share: Float[Array, "B E"]
    column: Int[Array, "B E"]
    weight: Float[Array, "B E"]
    activation: Float[Array, "B E"]
    share: Float[Array, "B E"]


class _Token(NamedTuple):
    """One block at the token where its MLP adds the most to each dimension."""

    position: Int[Array, "B E"]
    units: Float[Array, "B E F"]
    experts: Int[Array, "B E k"] | None
    weights: Float[Array, "B E k"] | None


class _Part(NamedTuple):
    """Units that belong together, S times: those of each expert, or those for every token."""

    expert: Int[Array, "B E S"]
    entries: Float[Array, "B E S F"]
    units: Float[Array, "B E S F"]
    factor: Float[Array, "B E S"]


def super_weights(
    model: Transformer | BlockSource,
    tokens: ModelInput,
    layer: Int[Array, " E"] | list[int],
    dim: Int[Array, " E"] | list[int],
) -> SuperWeights:
    """The entries of down projections that write these dimensions (Yu et al. 2024, "The Super
    Weight in Large Language Models"), from the weights and one forward pass.

    Pure; works under `jax.jit`, but for a model whose blocks are on disk, of which those up to the
    last layer are read. The unit is the one whose product with its weight is the largest
    part of what the MLP adds, so the weight's input and output are both large, as in the paper.

    Args:
      tokens: ids in [0, V), or images.
      layer: blocks, from 0; `find_massive` says which one writes a dimension.
      dim: one dimension of the residual stream for each.

    Raises:
      ValueError: `tokens` does not have a shape or dtype that the model takes.
    """
    layer, dim = (jnp.asarray(x, jnp.int32) for x in (layer, dim))

    def tap(acts: Acts) -> _Token:
        added = jnp.abs(sharded.by_sequence(acts.mlp_out)[..., dim])
        position = added.argmax(1)
        at = lambda x: jax.vmap(lambda x, p: x[p])(sharded.by_sequence(x), position)
        router = (None, None) if acts.router is None else map(at, acts.router)
        return _Token(position, at(acts.mlp_hidden), *router)

    if isinstance(model, BlockSource):
        taps = model.residual(tokens, tap=tap, depth=1 + int(layer.max()))[1]
    else:
        taps = model.residual(tokens, tap=tap)[1]
    # Of each entry its own layer: [L B E ...] to [B E ...].
    own = lambda x: jax.vmap(lambda x, l: x[l], (2, 0), 1)(x, layer)
    token = jax.tree.map(own, taps)
    parts = _parts(model, token, layer, dim)
    products = [part.entries * part.units * part.factor[..., None] for part in parts]
    total = sum(x.sum((-2, -1)) for x in products)
    found = [_best(*pair, jnp.sign(total)) for pair in zip(parts, products, strict=True)]
    best, *others = found
    for other in others:
        more = jnp.abs(other.expert_share) > jnp.abs(best.expert_share)
        best = jax.tree.map(lambda a, b, more=more: jnp.where(more, b, a), best, other)
    return best._replace(
        position=token.position, share=best.share / total, expert_share=best.expert_share / total
    )


def _parts(
    model: Transformer | BlockSource, token: _Token, layer: jax.Array, dim: jax.Array
) -> list[_Part]:
    moe = model.config.block.mlp.moe
    units = token.units.astype(jnp.float32)

    def served(name: str, units: jax.Array) -> _Part:
        entries = _columns(model, name, layer, dim).astype(jnp.float32)
        shape = (*units.shape[:2], 1)
        entries = jnp.broadcast_to(entries, units.shape)[:, :, None]
        return _Part(jnp.full(shape, EVERY_TOKEN), entries, units[:, :, None], jnp.ones(shape))

    if token.experts is None or token.weights is None:
        return [served("blocks.mlp.down", units)]
    experts = sharded.whole(token.experts)
    entries = _columns(model, "blocks.mlp.experts.down", layer, dim, experts).astype(jnp.float32)
    routed = units[..., : units.shape[-1] - moe.shared].reshape(*experts.shape, -1)
    parts = [_Part(token.experts, entries, routed, token.weights)]
    if moe.shared:
        parts.append(served("blocks.mlp.shared.down", units[..., -moe.shared :]))
    return parts


def _columns(
    model: Transformer | BlockSource, name: str, layer: Int[Array, " E"], dim: Int[Array, " E"],
    experts: Int[Array, "B E k"] | None = None,
) -> jax.Array:
    """What each unit of a layer writes to its dimension: [E F], or [B E k F] of some experts."""
    if isinstance(model, BlockSource):
        found = [model.column(name, int(l), int(d)) for l, d in zip(layer, dim, strict=True)]
        if experts is None:
            return jnp.stack(found)
        return jnp.stack([x[experts[:, e]] for e, x in enumerate(found)], 1)
    own = (layer, slice(None), dim)
    if experts is not None:
        own = (layer[:, None], experts, slice(None), dim[:, None])
    return sharded.entries(parameters(model)[name], own)


def _best(part: _Part, products: jax.Array, sign: Float[Array, "B E"]) -> SuperWeights:
    """The largest of a part; shares are still amounts."""
    sums = products.sum(-1)
    slot = (sums * sign[..., None]).argmax(-1)
    pick = lambda x: jnp.take_along_axis(x, slot[..., None], -1)[..., 0]
    row = lambda x: jnp.take_along_axis(x, slot[..., None, None], -2)[..., 0, :]
    column = (row(products) * sign[..., None]).argmax(-1)
    entry = lambda x: jnp.take_along_axis(row(x), column[..., None], -1)[..., 0]
    return SuperWeights(
        position=slot,
        expert=pick(part.expert),
        expert_share=pick(sums),
        column=column,
        weight=entry(part.entries),
        activation=entry(part.units),
        share=entry(products),
    )
