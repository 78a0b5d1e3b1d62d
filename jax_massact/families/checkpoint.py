"""A checkpoint: its configuration, and its tensors found to fit it, before any is read."""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import WeightsError
from jax_massact.families.places import (
    Names,
    Place,
    file_shape,
    fused,
    places_of,
    read_stack,
    sizes_of,
    split,
)
from jax_massact.families.placing import Destination
from jax_massact.nn.config import DType, ModelConfig
from jax_massact.nn.transformer import Transformer, abstract, from_parameters, parameters
from jax_massact.settings import check_in
from jax_massact.weights.tensors import Tensor

# How many names an error lists beside the first.
_LISTED = 3
# Tensors that some files hold and that follow from the configuration: constants, not weights.
_CONSTANTS = re.compile(
    r"(.*\.)?rotary_emb\.inv_freq|(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
    r"|rope_freqs\.weight|rope_factors_(long|short)\.weight"
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose header has been read and found to fit its configuration; no weight has.

    Attributes:
      path: the GGUF file or the folder.
      family: the `model_type` of its family.
      config: the model's configuration; its compute dtype is that of `load_model`.
      tensors: the tensors that are parameters, by their name in the file.
      places: where each parameter of the model lies among them.
      load_tokenizer: reads its tokenizer.
      pictures: how pictures are prepared for it; None: it takes text.
    """

    path: Path
    family: str
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    places: Mapping[str, Place]
    load_tokenizer: Callable[[], Tokenizer]
    pictures: Preprocessing | None = None

    @property
    def stored_dtypes(self) -> tuple[str, ...]:
        """The file's types of tensors, the most bytes first."""
        sizes: dict[str, int] = {}
        for tensor in self.tensors.values():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
        return tuple(sorted(sizes, key=lambda dtype: -sizes[dtype]))

    def load_model(
        self, dtype: DType = "float32", mesh: jax.sharding.Mesh | None = None
    ) -> Transformer:
        """Reads the weights, one tensor at a time, each straight to where it lives.

        Args:
          dtype: of the parameters and of the computation. Rounding to bfloat16 is the only change
            that a weight can undergo.
          mesh: the devices to lay the parameters out on; None: the default device.

        Raises:
          WeightsError: a tensor cannot be read any more, or some number in it is not finite.
        """
        check_in("dtype", dtype, ("float32", "bfloat16"))
        config = dataclasses.replace(self.config, dtype=dtype)
        return from_parameters(config, self.load_parameters(self.places, dtype, mesh))

    def load_parameters(
        self, names: Collection[str], dtype: DType, mesh: jax.sharding.Mesh | None = None
    ) -> dict[str, jax.Array | None]:
        """Reads some of the parameters; see `load_model`."""
        shapes = {name: leaf.shape for name, leaf in parameters(abstract(self.config)).items()}
        arrays: dict[str, jax.Array | None] = {}
        # A tensor that holds several parameters is read once. The largest come first, while there
        # is the most room for their copy on the host.
        for group in sorted(fused(self.places), key=self._size, reverse=True):
            if group.keys().isdisjoint(names):
                continue
            parts = {name: Destination(name, shapes[name], dtype, mesh) for name in group}
            self._fill(parts, group)
            arrays.update((name, part.array) for name, part in parts.items())
        return arrays

    def _size(self, group: Names) -> int:
        return math.prod(file_shape(group, sizes_of(self.config)))

    def _fill(self, destinations: Mapping[str, Destination], group: Names) -> None:
        """Reads the tensors that a group of parameters has in common."""
        sizes, place = sizes_of(self.config), next(iter(group.values()))
        for layer in range(self.config.depth if place.in_every_block else 1):
            array = read_stack(place, layer, sizes, lambda name: self.tensors[name].read())
            for name, part in split(group, array, sizes).items():
                destinations[name].put(part, layer)
            del array, part  # before the next is read


def check_tensors(
    path: Path,
    stated_in: Path,
    family: str,
    names: Names,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Callable[[], Tokenizer],
) -> Checkpoint:
    """The checkpoint, if its tensors are exactly those that its configuration calls for.

    Args:
      path: the file or folder.
      stated_in: the file that states the configuration, for errors.
      family: the `model_type`.
      names: where the parameters lie.
      tensors: all of the checkpoint's tensors, by the names of `names`.
      tokenizer: see `Checkpoint.load_tokenizer`.

    Raises:
      WeightsError: a tensor is missing, mis-shaped, of a type that holds no weights, or not part
        of the model.
    """
    places = places_of(names, config, f"a file of a {family} model")
    _check_depth(path, stated_in, config, places, tensors)
    used: dict[str, Tensor] = {}
    sizes = sizes_of(config)
    for group in fused(places):
        place, shape = next(iter(group.values())), file_shape(group, sizes)
        for layer in range(config.depth if place.in_every_block else 1):
            for name in place.tensors(layer, sizes):
                one = shape[1:] if place.index else shape
                used[name] = _expect(path, stated_in, tensors, name, one)
    extra = [name for name in tensors if name not in used and not _CONSTANTS.fullmatch(name)]
    if extra:
        raise tensors[extra[0]].error(
            f"is not part of a {family} model as {stated_in.name} describes it" + _and_more(extra),
            f"{len(used)} tensors and no other",
        )
    return Checkpoint(path, family, config, used, places, tokenizer)


def _expect(
    path: Path,
    stated_in: Path,
    tensors: Mapping[str, Tensor],
    name: str,
    shape: tuple[int, ...],
) -> Tensor:
    tensor = tensors.get(name)
    if tensor is None:
        raise WeightsError(
            f"{path}: tensor {name!r} is missing; expected: shape {[*shape]}, from "
            f"{stated_in.name}"
        )
    if tensor.shape != shape:
        raise tensor.error(
            f"has shape {[*tensor.shape]}", f"{[*shape]}, from the sizes in {stated_in.name}"
        )
    if tensor.decode is None:
        raise tensor.error(f"is of type {tensor.dtype}", "a type of floating-point weights")
    return tensor


def _check_depth(
    path: Path,
    stated_in: Path,
    config: ModelConfig,
    places: Mapping[str, Place],
    tensors: Mapping[str, Tensor],
) -> None:
    """Compares the number of blocks first, so that a wild one is not counted up to."""
    place = next(p for p in places.values() if p.in_every_block and not p.index)
    before, after = place.template.split("{l}")
    found = {
        name[len(before) : -len(after)]
        for name in tensors
        if name.startswith(before) and name.endswith(after)
    }
    if len(found) != config.depth:
        raise WeightsError(
            f"{path}: {stated_in.name} states {config.depth:,} blocks; expected: {len(found)}, the "
            f"number of tensors {place.tensors(0, {})[0]!r}, {place.tensors(1, {})[0]!r}, ..."
        )


def _and_more(names: list[str]) -> str:
    more = names[1 : 1 + _LISTED]
    rest = ", ..." if len(names) > 1 + _LISTED else ""
    return f" (nor is {', '.join(map(repr, more))}{rest})" if more else ""
