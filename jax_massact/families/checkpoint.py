"""A checkpoint: its configuration, and its tensors found to fit it, before any is read."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import jax

from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import WeightsError
from jax_massact.families.names import (
    CONSTANTS,
    Format,
    Place,
    by_template,
    letter_sizes,
    table_for,
)
from jax_massact.families.placing import Destination
from jax_massact.nn.config import DType, ModelConfig, RopeConfig
from jax_massact.nn.transformer import (
    Transformer,
    abstract,
    from_parameters,
    parameters,
)
from jax_massact.settings import check_in
from jax_massact.weights.tensors import Tensor

# How many names an error lists beside the first.
_LISTED = 3


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose header has been read and found to fit its configuration; no weight has.

    Attributes:
      path: the GGUF file or the folder.
      format: which kind of file it is.
      config: the model's configuration; its compute dtype is that of `load_model`.
      tensors: the tensors that are parameters, by their name in the file.
      places: where each parameter of the decoder lies among them.
      load_tokenizer: reads its tokenizer.
    """

    path: Path
    format: Format
    config: ModelConfig
    tensors: Mapping[str, Tensor]
    places: Mapping[str, Place]
    load_tokenizer: Callable[[], Tokenizer]

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
        shapes = {name: leaf.shape for name, leaf in parameters(abstract(config)).items()}
        arrays: dict[str, jax.Array | None] = {}
        # A tensor that holds several parameters is read once. The largest come first, while there
        # is the most room for their copy on the host.
        for places in sorted(by_template(self.places), key=self._size, reverse=True):
            parts = {name: Destination(name, shapes[name], dtype, mesh) for name in places}
            self._fill(parts, places)
            arrays.update((name, part.array) for name, part in parts.items())
        return from_parameters(config, arrays)

    def _size(self, places: Mapping[str, Place]) -> int:
        return math.prod(self.tensors[next(iter(places.values())).tensor(0)].shape)

    def _fill(
        self, destinations: Mapping[str, Destination], places: Mapping[str, Place]
    ) -> None:
        """Reads the tensors that `places`, of one template, have in common."""
        sizes = letter_sizes(self.config, len(places))
        place = next(iter(places.values()))
        for layer in range(self.config.depth if place.in_every_block else 1):
            array = self.tensors[place.tensor(layer)].read()
            for name, destination in destinations.items():
                destination.put(places[name].parameter(array, sizes), layer)
            del array  # before the next is read


def check_tensors(
    path: Path,
    stated_in: Path,
    fmt: Format,
    config: ModelConfig,
    tensors: Mapping[str, Tensor],
    tokenizer: Callable[[], Tokenizer],
) -> Checkpoint:
    """The checkpoint, if its tensors are exactly those that its configuration calls for.

    Args:
      path: the file or folder.
      stated_in: the file that states the configuration, for errors.
      tensors: all of the checkpoint's tensors.
      tokenizer: see `Checkpoint.load_tokenizer`.

    Raises:
      WeightsError: a tensor is missing, mis-shaped, of a type that holds no weights, or not part
        of the model.
    """
    table = table_for(fmt, config, tensors)
    places = {name: table[name] for name in _parameter_names(_small(config))}
    _check_depth(path, stated_in, config, places, tensors)
    used: dict[str, Tensor] = {}
    for sharers in by_template(places):
        place = next(iter(sharers.values()))
        shape = place.file_shape(letter_sizes(config, len(sharers)))
        for layer in range(config.depth if place.in_every_block else 1):
            name = place.tensor(layer)
            used[name] = _expect(path, stated_in, tensors, name, shape)
    extra = [name for name in tensors if name not in used and not CONSTANTS[fmt].fullmatch(name)]
    if extra:
        raise tensors[extra[0]].error(
            f"is not part of a {config.family} model as {stated_in.name} describes it"
            + _and_more(extra),
            f"{len(used)} tensors and no other",
        )
    return Checkpoint(path, fmt, config, used, places, tokenizer)


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
    place = places["blocks.attn_norm.scale"]
    before, after = place.template.split("{l}")
    found = {
        name[len(before) : -len(after)]
        for name in tensors
        if name.startswith(before) and name.endswith(after)
    }
    if len(found) != config.depth:
        raise WeightsError(
            f"{path}: {stated_in.name} states {config.depth:,} blocks; expected: {len(found)}, the "
            f"number of tensors {place.tensor(0)!r}, {place.tensor(1)!r}, ..."
        )


def _and_more(names: list[str]) -> str:
    more = names[1 : 1 + _LISTED]
    rest = ", ..." if len(names) > 1 + _LISTED else ""
    return f" (nor is {', '.join(map(repr, more))}{rest})" if more else ""


def _small(config: ModelConfig) -> ModelConfig:
    """The least configuration with the same parameters: sizes may still be lies."""
    return dataclasses.replace(
        config,
        **{"vocab_size": 1, "depth": 1, "width": 2, "num_heads": 1, "num_kv_heads": 1},
        **{"head_dim": 2, "mlp_dim": 1, "context_length": 1, "norm_eps": 1.0},
        rope=RopeConfig(),
        sliding_window=None,
    )


@functools.lru_cache
def _parameter_names(config: ModelConfig) -> tuple[str, ...]:
    return tuple(parameters(abstract(config)))
