"""Writes a model as a Hugging Face folder, which `load` reads again to the bit."""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import WeightsError
from jax_massact.families import own_encoder
from jax_massact.families.config_files import describe
from jax_massact.families.own import GROUP, names_of
from jax_massact.families.places import Names, fused, join, places_of, sizes_of
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer, abstract, parameters
from jax_massact.results import LoadsIn
from jax_massact.weights.folder import CONFIG, INDEX, WEIGHTS

# More would not fit into memory beside the model, and not onto every file system.
_SHARD_BYTES = 4 * 10**9
_SHARDS = "model-*-of-*.safetensors"
_DTYPES = ("float32", "bfloat16")
# How a folder is known again as one that may be overwritten.
_MARK = {"written_by": "jax_massact"}
# While the files of a folder are being replaced, it is no model.
_UNFINISHED = {"model_type": "massact-unfinished", **_MARK}


def save(
    model: Transformer | BlockSource,
    folder: str | Path,
    *,
    tokenizer: Tokenizer | None = None,
    pictures: Preprocessing | None = None,
) -> list[Path]:
    """Writes a model so that `load` gives it back, and transformers loads it where it knows it.

    Parameters keep their type and every bit. `load` returns an equal configuration but for the
    compute dtype, which is the caller's as always, and what `families.config_files.readable` says.

    A model that transformers has becomes what it expects, under the name of the first family in
    `families.table` that can state the configuration. Any other model (another attention, a first
    position, ...) gets a `model_type` beginning with `massact-`, which transformers refuses, and
    its settings in the group `massact`. So does every encoder of images. `read_by` says what a
    program would lose that took a language model for one of the nearest family.

    Args:
      model: in memory, or one whose blocks are read from a file while they are written.
      folder: made if need be. One that this function wrote before is overwritten; other files in
        it stay, and a tokenizer, too, unless a new one is given.
      tokenizer: written beside the model, if given.
      pictures: how pictures are prepared for an encoder of images, likewise.

    Returns:
      The files written, `config.json` last.

    Raises:
      WeightsError: the folder holds a model that something else wrote, or cannot be written; the
        no file can state the model's configuration, or a parameter is not finite or neither float32
        nor bfloat16.
      DataError: the tokenizer cannot be written as a `tokenizer.json`.
    """
    folder = Path(os.path.expanduser(folder))
    if model.config.embed.patches is not None:
        config, places = own_encoder.write(model.config), own_encoder.NAMES
        places = places_of(places, model.config, "a file of an encoder")
    else:
        family, settings = describe(model.config)
        names = names_of(family, model.config)
        places = places_of(names, model.config, f"a file of a {family.model_type} model")
        config = settings | _tokens(tokenizer)
        if lost := loads_in(model.config)["lost"]:
            config["read_by"] = (
                f"jax_massact alone. A program that took it for {family.model_type} would lose: "
                + "; ".join(lost)
            )
    config |= _MARK
    config["torch_dtype"] = _check_parameters(model)
    files = {} if tokenizer is None else tokenizer.files()
    if pictures is not None:
        files |= own_encoder.picture_files(pictures)
    try:
        _check_folder(folder)
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(folder / CONFIG, _UNFINISHED)
        written = _write_weights(model, places, folder)
        for name, text in files.items():
            written.append(_write_text(folder / name, text))
        return [*written, _write_json(folder / CONFIG, config)]
    except OSError as error:
        raise WeightsError(f"{folder} cannot be written: {error.strerror or error}") from error


def loads_in(config: ModelConfig) -> LoadsIn:
    """Which programs read the folder of a language model that `save` writes, and what any other
    would lose; none do where no file can state the configuration."""
    try:
        group = describe(config)[1].get(GROUP, {})
    except WeightsError as error:
        return LoadsIn(programs=[], lost=[str(error)])
    lost = [f"{name}={value}" for name, value in group.items()]
    names = parameters(abstract(config)) if group else ()
    own = [name for name in names if name.startswith(("blocks.attn.variant", "prefix"))]
    lost += [f"the tensors {', '.join(own)}"] if own else []
    return LoadsIn(programs=["jax_massact"] + ["transformers"] * (not group), lost=lost)


def _tokens(tokenizer: Tokenizer | None) -> dict[str, Any]:
    # Null rather than absent: transformers' defaults are the ids of another vocabulary.
    bos, eos = (None, None) if tokenizer is None else (tokenizer.bos_id, tokenizer.eos_id)
    return {"bos_token_id": bos, "eos_token_id": eos}


def _check_parameters(model: Transformer | BlockSource) -> str:
    """The type of most parameters, if each is one that `load` would take."""
    if isinstance(model, BlockSource):
        return model.config.dtype  # numbers are checked as they are read
    sizes: dict[str, int] = {}
    for name, array in parameters(model).items():
        dtype = array.dtype.name
        if dtype not in _DTYPES:
            raise WeightsError(f"{name} is of type {dtype}; expected: {' or '.join(_DTYPES)}")
        if not (array.is_fully_addressable or array.is_fully_replicated):
            raise WeightsError(
                f"{name} is spread over several processes; expected: arrays of this process"
            )
        # On one CPU device NumPy reads it where it lies, and nothing is compiled.
        on_host = [device.platform for device in array.devices()] == ["cpu"]
        if not (np.isfinite(array).all() if on_host else _is_finite(array)):
            raise WeightsError(f"{name} has numbers that are infinite or NaN; expected: finite")
        sizes[dtype] = sizes.get(dtype, 0) + array.size
    return max(sizes, key=lambda dtype: sizes[dtype])


def _check_folder(folder: Path) -> None:
    """Raises unless all that would be replaced there was written by `save`."""
    if folder.exists() and not folder.is_dir():
        raise WeightsError(f"{folder} is a file; expected: a folder, or a name for a new one")
    names = (CONFIG, WEIGHTS, INDEX, *Tokenizer.FILES)
    found = [name for name in names if (folder / name).exists()]
    found += sorted(path.name for path in folder.glob(_SHARDS))
    if found and not _is_ours(folder / CONFIG):
        raise WeightsError(
            f"{folder} holds {found[0]}, which was not written by this package and is not "
            "overwritten; expected: a new folder, or one without a model"
        )


def _is_ours(config: Path) -> bool:
    try:
        settings = json.loads(config.read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(settings, dict) and _MARK.items() <= settings.items()


def _write_weights(model: Transformer | BlockSource, places: Names, folder: Path) -> list[Path]:
    """`model.safetensors`, or shards and their index; what was there before is gone."""
    before = {folder / WEIGHTS, folder / INDEX, *folder.glob(_SHARDS)}
    with contextlib.ExitStack() as stack:
        parts: list[tuple[Path, Mapping[str, int]]] = []
        for shard in _shards(tensors_of(model, places)):
            path = stack.enter_context(_temporary(folder / f"{WEIGHTS}.{len(parts)}"))
            _write_safetensors(path, shard)
            parts.append((path, {name: array.nbytes for name, array in shard.items()}))
            del shard  # before the next is made
        count = len(parts)
        names = [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]
        files = [folder / name for name in (names if count > 1 else [WEIGHTS])]
        for (path, _), file in zip(parts, files, strict=True):
            os.replace(path, file)
    if count > 1:
        size = sum(sum(tensors.values()) for _, tensors in parts)
        lies_in = {
            name: file.name
            for (_, tensors), file in zip(parts, files, strict=True)
            for name in tensors
        }
        index = {"metadata": {"total_size": size}, "weight_map": lies_in}
        files.append(_write_json(folder / INDEX, index))
    for path in before.difference(files):
        path.unlink(missing_ok=True)
    return files


def tensors_of(
    model: Transformer | BlockSource, places: Names
) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a file by name, yielded one at a time; a block at a time from a file."""
    if isinstance(model, BlockSource):
        yield from _streamed_tensors(model, places)
        return
    config, arrays, sizes = model.config, parameters(model), sizes_of(model.config)
    for group in fused(places):
        place = next(iter(group.values()))
        parts = {name: np.asarray(jax.device_get(arrays[name])) for name in group}
        for layer in range(config.depth if place.in_every_block else 1):
            own = parts
            if place.in_every_block:
                own = {name: part[layer] for name, part in parts.items()}
            array = join(group, own, sizes)
            tensors = place.tensors(layer, sizes)
            yield from zip(tensors, array if place.index else [array], strict=True)


def _streamed_tensors(model: BlockSource, places: Names) -> Iterator[tuple[str, np.ndarray]]:
    groups, sizes = fused(places), sizes_of(model.config)
    unpack = jax.jit(lambda arrays: dict(model.unpack(arrays)))
    for layer in range(-1, model.config.depth):
        if layer < 0:
            arrays = parameters(model.front()) | parameters(model.back())
        else:
            arrays = unpack(model.take(layer, model.root.read(layer)))
        for group in groups:
            place = next(iter(group.values()))
            if place.in_every_block == (layer >= 0):
                array = join(group, {name: np.asarray(arrays[name]) for name in group}, sizes)
                tensors = place.tensors(layer, sizes)
                yield from zip(tensors, array if place.index else [array], strict=True)


def _shards(tensors: Iterator[tuple[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Groups of as many tensors as one file takes."""
    shard: dict[str, np.ndarray] = {}
    size = 0
    for name, array in tensors:
        if shard and size + array.nbytes > _SHARD_BYTES:
            yield shard
            shard, size = {}, 0
        shard[name] = array
        size += array.nbytes
    yield shard


def _write_safetensors(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        # transformers asks for the name of a framework, whose layout of bytes is the same.
        save_file(dict(tensors), path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(str(error)) from error


def _write_json(path: Path, value: Any) -> Path:
    return _write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _write_text(path: Path, text: str) -> Path:
    with _temporary(path) as temporary:
        temporary.write_bytes(text.encode("utf-8"))
        os.replace(temporary, path)
    return path


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A file beside `path`, to be moved to its place when it is whole; gone otherwise."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


@jax.jit
def _is_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()
