"""From images to the residual stream before the first block."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from jax_massact.nn import sharded
from jax_massact.nn.config import ModelConfig, PatchConfig, ResampleKind
from jax_massact.nn.linear import project
from jax_massact.nn.norms import Norm

Images = Float[Array | np.ndarray, "B Y X C"] | UInt8[Array | np.ndarray, "B Y X C"]
# What a model takes: ids, or images.
ModelInput = Int[Array | np.ndarray, "B T"] | Images


class Resampling(NamedTuple):
    """How learned positions are resampled along one axis, as PyTorch's `interpolate` does it.

    Attributes:
      antialias: cubic kernel of Keys (1981) with a = -0.5, as wide as the coarser grid asks for and
        cut at the border; else with a = -0.75, four positions wide, whose border is repeated.
      offset: added to the new number of positions before the step between them is computed.
    """

    antialias: bool = False
    offset: float = 0.0


# `exact`: Hugging Face, but for DINOv2 with registers. `antialias`: timm, and DINOv2 with
# registers. `offset`: Meta's code of DINOv2 without registers.
RESAMPLE: dict[ResampleKind, Resampling] = {
    "exact": Resampling(),
    "antialias": Resampling(antialias=True),
    "offset": Resampling(offset=0.1),
}


def embed_images(
    config: ModelConfig,
    images: Images,
    weight: nnx.Param,
    bias: nnx.Param | None,
    front: Float[Array, "R D"] | None,
    positions: nnx.Param | None,
    norm: Norm | None,
) -> Float[Array, "B S D"]:
    """CLS and registers, then the patches, row by row.

    Args:
      images: uint8, or numbers that are normalized already.
      weight: of the projection of patches [X D]; a patch is laid out as [C, Y, X].
      front: CLS with its position, and the registers.
      positions: one row for each patch of the grid that they were learned for [P D].
      norm: of the result.
    """
    patches = config.embed.patches
    assert patches is not None
    x = project_patches(config, images, weight, bias)
    if positions is not None:
        grid = grid_of(patches, images.shape)
        rows = resampled(sharded.gathered(positions[...], "pd"), patches, grid)
        x = x + sharded.broadcast(rows.astype(x.dtype), x)
    if config.embed.scale != 1:
        x = x * jnp.asarray(config.embed.scale, x.dtype)
    if front is not None:
        shape = (x.shape[0], *front.shape)
        front = sharded.constrain(jnp.broadcast_to(front.astype(x.dtype), shape), "btd")
        x = jnp.concatenate([front, x], axis=1)
    return x if norm is None else norm(x)


def project_patches(
    config: ModelConfig, images: Images, weight: nnx.Param, bias: nnx.Param | None
) -> Float[Array, "B N D"]:
    """The patches before anything is added to them."""
    patches = config.embed.patches
    assert patches is not None
    x = normalized(patches, sharded.by_sequence(jnp.asarray(images))).astype(config.dtype)
    return project(_cut(x, patches.size), weight, "xd", bias)


def normalized(patches: PatchConfig, images: Array) -> Float[Array, "B Y X C"]:
    """(image / 255 - mean) / std in float32 for uint8; anything else as it is."""
    if images.dtype != jnp.uint8:
        return images
    mean, std = (np.asarray(x, np.float32) for x in (patches.mean, patches.std))
    return (images.astype(jnp.float32) / 255 - mean) / std


def grid_of(patches: PatchConfig, shape: tuple[int, ...]) -> tuple[int, int]:
    """Rows and columns of patches of images [B Y X C]."""
    return shape[1] // patches.size, shape[2] // patches.size


def places_of(grid: tuple[int, int], front: int) -> Float[np.ndarray, "S 2"]:
    """Row and column of each patch's centre in [-1, 1], and 0 for the tokens in front."""
    rows, columns = ((2 * np.arange(n) + 1) / n - 1 for n in grid)
    centres = np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)
    return np.concatenate([np.zeros((front, 2)), centres]).astype(np.float32)


def _cut(images: Float[Array, "B Y X C"], size: int) -> Float[Array, "B N XYC"]:
    _, Y, X, C = images.shape
    rows, columns = Y // size, X // size
    x = sharded.reshaped(images, rows, size, columns, size, C).transpose(0, 1, 3, 5, 2, 4)
    return sharded.reshaped(x, rows * columns, C * size * size)


def resampled(
    positions: Float[Array, "P D"], patches: PatchConfig, grid: tuple[int, int]
) -> Float[Array, "N D"]:
    """The positions of another grid, in float32, by the rule of the model's files."""
    if grid == patches.grid:
        return positions
    table = positions.astype(jnp.float32).reshape(*patches.grid, -1)
    rule = RESAMPLE[patches.resample]
    down, across = (
        jnp.asarray(_matrix(old, new, rule)) for old, new in zip(patches.grid, grid, strict=True)
    )
    found = jnp.einsum(
        "yi,xj,ijd->yxd", down, across, table, precision=jax.lax.Precision.HIGHEST
    )
    return found.reshape(-1, positions.shape[-1])


def _matrix(old: int, new: int, rule: Resampling) -> Float[np.ndarray, "new old"]:
    """From the old positions along an axis to the new ones."""
    step = old / (new + rule.offset)
    centres, found = (np.arange(new) + 0.5) * step, np.zeros((new, old))
    width = max(step, 1.0) if rule.antialias else 1.0
    for i, centre in enumerate(centres):
        if rule.antialias:
            first = max(int(centre - 2 * width + 0.5), 0)
            places = np.arange(first, min(int(centre + 2 * width + 0.5), old))
        else:
            places = np.floor(centre - 0.5) + np.arange(-1, 3)
        weights = _cubic((places + 0.5 - centre) / width, -0.5 if rule.antialias else -0.75)
        places = np.clip(places, 0, old - 1).astype(int)
        np.add.at(found[i], places, weights / weights.sum())
    return found.astype(np.float32)


def _cubic(x: np.ndarray, a: float) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
