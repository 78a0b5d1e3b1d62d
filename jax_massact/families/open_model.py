"""A model whose blocks stay in its file and are read one at a time."""

import dataclasses
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import WeightsError
from jax_massact.families.checkpoint import Checkpoint
from jax_massact.families.places import fused, read_stack, sizes_of, split
from jax_massact.families.placing import transfer
from jax_massact.nn.config import DType
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer, abstract, parameters, partial_model

# What the way from the last residual stream to logits needs; all else outside blocks embeds.
_BACK = ("head", "final_norm", "pool")


class _Stamp(NamedTuple):
    """By which a file is known to be the same."""

    inode: int
    size: int
    modified_ns: int


class OpenModel(BlockSource):
    """A checkpoint as a model: called like a `Transformer`, it reads its blocks one by one.

    Args:
      checkpoint: has the tensors in files.
      dtype: of the computation. Rounding to bfloat16 is the only change that a weight can undergo.
      mesh: the devices to lay a block out on; None: the default device.

    Raises:
      WeightsError: it has no such files.
    """

    def __init__(
        self, checkpoint: Checkpoint, dtype: DType = "float32",
        mesh: jax.sharding.Mesh | None = None,
    ):
        if not checkpoint.places:
            raise WeightsError(
                f"{checkpoint.path} is a checkpoint of a training run, which is read as a whole; "
                "expected: a file of weights, such as the run's model at its end"
            )
        self.checkpoint, self.mesh = checkpoint, mesh
        self.config = dataclasses.replace(checkpoint.config, dtype=dtype)
        self._names = parameters(abstract(self.config))
        own = {name: place for name, place in checkpoint.places.items() if place.in_every_block}
        self._groups, self._sizes = fused(own), sizes_of(self.config)
        self._files = {
            path: _stamp(path) for path in sorted({t.file for t in checkpoint.tensors.values()})
        }

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer.

        Raises:
          DataError: it has none that can be read.
        """
        return self.checkpoint.load_tokenizer()

    def front(self) -> Transformer:
        """See `BlockSource.front`."""
        return self._outside([n for n in self._names if not n.startswith(("blocks.", *_BACK))])

    def back(self) -> Transformer:
        """See `BlockSource.back`."""
        names = [name for name in self._names if name.startswith(_BACK)]
        return self._outside([*names, "embed"] if self.config.head.tied else names)

    def _outside(self, names: Collection[str]) -> Transformer:
        """The model with these parameters; all others are None."""
        arrays = self.checkpoint.load_parameters(names, self.config.dtype, self.mesh)
        self._check_unchanged()
        return partial_model(self.config, arrays)

    def read(self, layer: int) -> list[jax.Array] | dict[str, jax.Array]:
        """The file's arrays of a block as they lie there; over a mesh, its parameters."""
        arrays, laid_out = [], {}
        for group in self._groups:
            place = next(iter(group.values()))
            array = read_stack(place, layer, self._sizes, self._read)
            if self.mesh is None:
                arrays.append(jax.device_put(array).block_until_ready())
                continue
            for name, part in split(group, array, self._sizes).items():
                laid_out[name] = transfer(name, part, self.mesh).block_until_ready()
        self._check_unchanged()
        return laid_out or arrays

    def unpack(self, arrays: Any) -> dict[str, jax.Array]:
        """See `BlockSource.unpack`."""
        if isinstance(arrays, list):
            found = {}
            for group, array in zip(self._groups, arrays, strict=True):
                found |= split(group, array, self._sizes)
        else:
            found = arrays
        dtype = jnp.dtype(self.config.dtype)
        return {name: x.astype(dtype) for name, x in found.items()}

    def block_bytes(self, layer: int) -> int:
        """See `BlockSource.block_bytes`."""
        places = (next(iter(group.values())) for group in self._groups)
        names = (name for place in places for name in place.tensors(layer, self._sizes))
        return sum(self.checkpoint.tensors[name].nbytes for name in names)

    def column(self, name: str, layer: int, dim: int) -> jax.Array:
        """See `BlockSource.column`."""
        group = next(group for group in self._groups if name in group)
        array = read_stack(group[name], layer, self._sizes, self._read)
        part = split(group, array, self._sizes)[name][..., dim]
        return jnp.asarray(np.ascontiguousarray(part)).astype(self.config.dtype)

    def _read(self, name: str) -> np.ndarray:
        return self.checkpoint.tensors[name].read()

    def _check_unchanged(self) -> None:
        for path, then in self._files.items():
            if _stamp(path) != then:
                raise WeightsError(
                    f"{path} has changed since it was opened; expected: a file that stays as it is "
                    "while its blocks are read. A download that goes on is the usual cause"
                )


def _stamp(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
    except OSError as error:
        raise WeightsError(
            f"{path} cannot be read any more: {error.strerror}; expected: a file that stays where "
            "it is while its blocks are read"
        ) from error
    return _Stamp(found.st_ino, found.st_size, found.st_mtime_ns)

