"""Where outlier patches are, since when, and which MLP units are large at them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Float

from jax_massact.measure.image_tokens import outlier_patches
from jax_massact.measure.register_neurons import unit_sums
from jax_massact.nn.transformer import Transformer
from jax_massact.studies.inputs import ImageInputs
from jax_massact.studies.registers.result import Neuron
from jax_massact.studies.registers.settings import AUTO, RegistersConfig


class Outliers(NamedTuple):
    """The outlier patches of the calibration pictures.

    Attributes:
      kind: "outliers", or "largest": there are none, and these are the largest patches.
      layer: after which block they are looked for.
      begins: after which block half of them have begun.
      last: neurons are of the blocks up to this one.
      share: of the patches.
      ratio: of a picture's largest patch norm to its median, after `layer`; mean over pictures.
      at: the patches.
    """

    kind: str
    layer: int
    begins: int
    last: int
    share: float
    ratio: float
    at: Bool[np.ndarray, "S N"]


def norms_of(
    norms: Callable[[np.ndarray], Any], inputs: ImageInputs, size: int
) -> Float[np.ndarray, "L S N"]:
    """The norms of all patches after every block.

    Args:
      norms: from images to the norms of all tokens [L B S], the patches last.
    """
    patches = inputs.grid[0] * inputs.grid[1]
    parts = []
    for rows, pixels, _ in inputs.batches(size):
        found: Any = jax.device_get(norms(pixels))
        parts.append(np.float64(found[:, : rows.stop - rows.start, -patches:]))
    return np.concatenate(parts, axis=1)


def ratio_of(norms: Float[np.ndarray, "... N"]) -> Float[np.ndarray, " ..."]:
    """Each picture's largest norm over its median."""
    return norms.max(-1) / np.maximum(np.median(norms, -1), np.finfo(float).tiny)


def find_outliers(norms: Float[np.ndarray, "L S N"], config: RegistersConfig) -> Outliers:
    """The outlier patches after `config.layer`, or where they stand out most in the later half of
    the blocks."""
    outlier, ratio = outlier_patches(norms, np), ratio_of(norms).mean(1)
    layer = config.layer
    if layer == AUTO:
        half = len(norms) // 2
        some, late = outlier[half:].any((1, 2)), ratio[half:]
        layer = half + int(np.argmax(np.where(some, late, 0) if some.any() else late))
    largest = np.arange(norms.shape[-1]) == norms.argmax(-1)[..., None]
    marked = outlier if outlier[layer].any() else largest
    at = marked[layer]
    begun = (marked & at).sum((1, 2)) >= at.sum() / 2
    begins = int(np.argmax(begun))
    return Outliers(
        kind="outliers" if marked is outlier else "largest", layer=layer, begins=begins,
        last=begins if config.last_block == AUTO else config.last_block,
        share=float(outlier[layer].mean()), ratio=float(ratio[layer]), at=at,
    )


def rank_neurons(
    model: Transformer, inputs: ImageInputs, outliers: Outliers, size: int, most: int
) -> list[Neuron]:
    """The units of the largest mean |activation| at the outlier patches."""
    sums, front = jax.jit(unit_sums), inputs.front
    inside, outside = np.zeros(()), np.zeros(())
    for rows, pixels, _ in inputs.batches(size):
        masks = np.zeros((2, size, inputs.length), bool)
        n = rows.stop - rows.start
        masks[0, :n, front:] = outliers.at[rows]
        masks[1, :n, front:] = ~outliers.at[rows]
        found = [jax.device_get(sums(model, pixels, mask)) for mask in masks]
        inside, outside = inside + np.float64(found[0]), outside + np.float64(found[1])
    score = inside[: outliers.last + 1] / outliers.at.sum()
    rest = outside / max((~outliers.at).sum(), 1)
    blocks, units = np.unravel_index(np.argsort(-score, axis=None)[:most], score.shape)
    return [
        Neuron(block=int(l), unit=int(u), score=float(score[l, u]), elsewhere=float(rest[l, u]))
        for l, u in zip(blocks, units, strict=True)
    ]


def others(
    neurons: list[Neuron], units: int, rng: np.random.Generator
) -> list[tuple[int, int]]:
    """As many units of the same blocks that are none of these."""
    found = []
    for block in sorted({n["block"] for n in neurons}):
        own = [n["unit"] for n in neurons if n["block"] == block]
        free = np.setdiff1d(np.arange(units), own)
        found += [(block, int(u)) for u in rng.choice(free, len(own), replace=False)]
    return found
