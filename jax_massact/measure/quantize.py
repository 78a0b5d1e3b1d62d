"""What numbers of few bits would lose: ranges of activations, and weights made ready for them."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from jax_massact.errors import ConfigError
from jax_massact.measure.statistics import quantiles
from jax_massact.nn.acts import SITES, Acts
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.parameters import PARAMETERS
from jax_massact.nn.rounding import INTEGER, levels_of, scale_of, to_format, turned
from jax_massact.nn.stream import Altered, BlockSource
from jax_massact.nn.transformer import Transformer, from_parameters, parameters

# The sites that are vectors at a token: all but the softmax, whose range is known.
VECTORS = tuple(site for site in SITES if site != "weights")
# Those whose ranges a report shows: linear inputs, results, and the residual sums.
REPORTED = (
    "attn_in", "z", "attn_out", "resid_mid", "mlp_in", "mlp_hidden", "mlp_out", "resid_post",
)
# LLM.int8() keeps a column in 16 bits in which one magnitude reaches this (Dettmers et al. 2022).
COLUMN = 6.0
# The linear layers' parameters, with the axes that are summed over: what remains are the output
# channels, each of which has a scale of its own. Embeddings, head, routers and gates of heads stay
# in float.
LINEAR = {
    **{name: tuple(range(1, 1 + row.inputs)) for name, row in PARAMETERS.items() if row.inputs},
    **{f"blocks.mlp.experts.{name}": (2,) for name in ("up", "gate", "down")},
    **{f"blocks.mlp.shared.{name}": (1,) for name in ("up", "gate", "down")},
}
# What reads the result of each norm, and which axis of it (after the layers') is the stream's.
READERS = {
    "attn_norm": {f"blocks.attn.{name}": 1 for name in ("q", "k", "v", "variant.gate")},
    "mlp_norm": {
        **{f"blocks.mlp.{name}": 1 for name in (
            "up", "gate", "router", "shared.up", "shared.gate", "shared_gate")},
        **{f"blocks.mlp.experts.{name}": 2 for name in ("up", "gate")},
    },
}
_SMALLEST = 1e-5  # of a factor between norm and linear layer


M = TypeVar("M", Transformer, BlockSource, Transformer | BlockSource)


def round_weights(model: M, bits: int) -> M:
    """A model whose linear layers have integer weights times one scale for each output channel.

    Scales are the largest magnitude over the largest integer; nothing is cut.

    Args:
      model: in memory, or with its blocks on disk, each of which is rounded when it is read.
    """
    if isinstance(model, BlockSource):
        change = lambda block: _rounded(block, bits, layers=0)
        return cast(M, Altered(model, model.config, change=change))
    return cast(M, from_parameters(model.config, _rounded(parameters(model), bits, layers=1)))


def _rounded(params: Mapping[str, Any], bits: int, layers: int) -> dict[str, Any]:
    """The parameters, rounded; with so many axes of layers in front."""
    found, levels = dict(params), levels_of(bits)
    for name, axes in LINEAR.items():
        if name in found:
            w = found[name].astype(jnp.float32)
            summed = tuple(axis - 1 + layers for axis in axes)
            scale = scale_of(jnp.abs(w).max(summed, keepdims=True), levels)
            rounded = to_format(w, scale, INTEGER, levels) * scale
            found[name] = rounded.astype(found[name].dtype)
    return found


def check_smoothable(config: ModelConfig) -> None:
    """Raises ConfigError unless norms with scales stand before attention and MLP."""
    for kind in config.pattern:
        if kind.norms == "out" or not kind.norm.scale:
            raise ConfigError(
                "smooth needs norms that scale the inputs of attention and MLP, which this model "
                "does not have; expected for it: 0"
            )


def smooth(
    model: Transformer, largest: Mapping[str, Float[Array | np.ndarray, "L D"]], alpha: float
) -> Transformer:
    """The same model with large activations moved into weights (SmoothQuant, Xiao et al. 2023).

    Each dimension j that a norm gives to linear layers is divided by
    s_j = max|x_j|^alpha / max|W_j|^(1 - alpha), and the layers' weights are multiplied by it.

    Args:
      largest: the largest magnitude of each dimension of `attn_in` and `mlp_in`.
      alpha: from 0 (weights are as even as they get) to 1 (activations are).

    Raises:
      ConfigError: the model has no norms, with scales, before its linear layers.
    """
    check_smoothable(model.config)
    params, offset = parameters(model), model.config.block.norm.offset
    shared = model.config.block.shared_norm
    groups = {"attn_norm": ("attn_in", READERS["attn_norm"]),
              "mlp_norm": ("mlp_in", READERS["mlp_norm"])}
    if shared:
        groups = {"attn_norm": ("attn_in", READERS["attn_norm"] | READERS["mlp_norm"])}
    for norm, (site, readers) in groups.items():
        there = {name: axis for name, axis in readers.items() if name in params}
        of_dim = lambda name, axis: jnp.abs(params[name]).max(
            tuple(a for a in range(1, params[name].ndim) if a != axis)
        )
        weight = jnp.stack([of_dim(name, axis) for name, axis in there.items()]).max(0)
        x = jnp.maximum(jnp.asarray(largest[site], jnp.float32), _SMALLEST)
        s = x**alpha / jnp.maximum(weight.astype(jnp.float32), _SMALLEST) ** (1 - alpha)
        s = jnp.maximum(s, _SMALLEST)
        for name, axis in there.items():
            tall = s.reshape(s.shape[0], *(-1 if a == axis else 1
                                           for a in range(1, params[name].ndim)))
            params[name] = (params[name] * tall).astype(params[name].dtype)
        for part, shift in (("scale", offset), ("bias", 0.0)):
            name = f"blocks.{norm}.{part}"
            if name in params:
                params[name] = ((params[name] + shift) / s - shift).astype(params[name].dtype)
    return from_parameters(model.config, params)


def limits_tap(
    acts: Acts,
    kept: Bool[Array, "B T"],
    quantile: float | None = None,
    rotations: Mapping[str, Float[Array, "D D"]] | None = None,
) -> tuple[Float[Array, "S B"], dict[str, Float[Array, "B D"]]]:
    """The static ranges of one block, and what `smooth` needs of it.

    Args:
      kept: tokens that stay in float, which do not count.
      quantile: of the magnitudes, in place of the largest; the tokens that do not count are 0.
      rotations: as in `nn.rounding.Rounding`, made before magnitudes are taken.

    Returns:
      Of each of `nn.acts.SITES` the largest magnitude of each sequence (0 of the softmax); and of
      each dimension of `attn_in` and `mlp_in`.
    """
    limits, per_dim = [], {}
    for site in SITES:
        if site == "weights":
            limits.append(jnp.zeros(kept.shape[0]))
            continue
        x = getattr(acts, site)
        x = x.reshape(*x.shape[:2], -1).astype(jnp.float32)
        if site in ("attn_in", "mlp_in"):
            per_dim[site] = jnp.where(kept[..., None], 0, jnp.abs(x)).max(1)
        rotation = (rotations or {}).get(str(x.shape[2]))
        x = x if rotation is None else turned(x, rotation)
        size = jnp.where(kept[..., None], 0, jnp.abs(x))
        whole = size.max((1, 2)) if quantile is None else quantiles(size, (quantile,))[:, 0]
        limits.append(whole)
    return jnp.stack(limits), per_dim


class Ranges(NamedTuple):
    """What one range for a whole sequence, in 8 bits, means at one site; per sequence.

    Attributes:
      top, position: the largest magnitude, and at which token.
      top_without: the largest at tokens that are not massive.
      token_ratio: the largest over the median of the tokens' own largest magnitudes
        (PrefixQuant, Chen et al. 2024).
      sqnr, sqnr_without: signal over quantization noise in dB, of the tokens that are not massive:
        in a range with, and without, the massive ones.
      zero_share: share of their activations that become 0, in the range with the massive ones.
      columns, columns_without: dimensions with a magnitude of COLUMN or more, at any token, and at
        any that is not massive.
    """

    top: Float[Array, "S B"]
    position: Int[Array, "S B"]
    top_without: Float[Array, "S B"]
    token_ratio: Float[Array, "S B"]
    sqnr: Float[Array, "S B"]
    sqnr_without: Float[Array, "S B"]
    zero_share: Float[Array, "S B"]
    columns: Int[Array, "S B"]
    columns_without: Int[Array, "S B"]


def ranges_tap(acts: Acts, massive: Bool[Array, "B T"]) -> Ranges:
    """`Ranges` of one block at the sites REPORTED.

    Args:
      massive: the massive tokens.
    """
    rows = [_ranges(getattr(acts, site), massive) for site in REPORTED]
    return jax.tree.map(lambda *parts: jnp.stack(parts), *rows)


def _ranges(x: jax.Array, massive: Bool[Array, "B T"]) -> Ranges:
    x = x.reshape(*x.shape[:2], -1).astype(jnp.float32)
    size, other = jnp.abs(x), ~massive[..., None]
    token = size.max(-1)
    without = jnp.where(massive, 0, token).max(1)
    levels = levels_of(8)

    def rounded(limit):
        scale = scale_of(limit, levels)[:, None, None]
        return to_format(x, scale, INTEGER, levels) * scale

    def sqnr(y):
        power = lambda a: jnp.where(other, jnp.square(a), 0).sum((1, 2))
        return 10 * jnp.log10(power(x) / power(x - y))

    coarse = rounded(token.max(1))
    zeros = jnp.where(other, coarse == 0, False).sum((1, 2))
    number = jnp.maximum(other.sum((1, 2)), 1) * x.shape[2]
    wide = size >= COLUMN
    return Ranges(
        top=token.max(1),
        position=token.argmax(1),
        top_without=without,
        token_ratio=token.max(1) / jnp.median(token, axis=1),
        sqnr=sqnr(coarse),
        sqnr_without=sqnr(rounded(without)),
        zero_share=zeros / number,
        columns=wide.any(1).sum(-1),
        columns_without=(wide & other).any(1).sum(-1),
    )
