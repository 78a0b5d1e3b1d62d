"""A folder of random weights in a model's real shape, for measuring what reads it."""

import json
from collections.abc import Container
from pathlib import Path

import ml_dtypes
import numpy as np
import tokenizers

from jax_massact.families.config_files import describe
from jax_massact.families.own import names_of
from jax_massact.families.places import Names, file_shape, fused, places_of, sizes_of
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.draw import INIT_STD
from jax_massact.weights.folder import CONFIG, INDEX

SHARD_BYTES = 5 * 10**9
# Numbers are taken from so many: drawing each would take longer than writing it.
_POOL = 1 << 22
_CHARACTERS = ["<unk>", "<s>", *map(chr, range(32, 127)), "\n"]


def write_random_folder(
    folder: Path, config: ModelConfig, *, filled: Container[int] | None = None, seed: int = 0
) -> int:
    """Writes a Hugging Face folder in bfloat16, in shards, with a tokenizer of characters.

    Args:
      folder: made if need be.
      filled: blocks that get numbers; all others are holes, which take no room and read as 0. None:
        all do.

    Returns:
      Bytes of the weights, holes included.
    """
    folder.mkdir(parents=True, exist_ok=True)
    family, settings = describe(config)
    places = places_of(names_of(family, config), config, f"a file of a {family.model_type} model")
    shards = _shards(config, places)
    rng = np.random.default_rng(seed)
    pool = (INIT_STD * rng.standard_normal(_POOL, np.float32)).astype(ml_dtypes.bfloat16)
    names = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    for name, shard in zip(names, shards, strict=True):
        _write_shard(folder / name, shard, pool, filled, rng)
    lies_in = {
        tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard
    }
    total = sum(_bytes(shape) for shard in shards for _, shape in shard.values())
    index = {"metadata": {"total_size": total}, "weight_map": lies_in}
    (folder / INDEX).write_text(json.dumps(index))
    more = {"torch_dtype": "bfloat16", "bos_token_id": 1, "eos_token_id": 1}
    (folder / CONFIG).write_text(json.dumps(settings | more))
    _write_tokenizer(folder)
    return total


# Tensor -> its block (-1: outside) and its shape.
_Shard = dict[str, tuple[int, tuple[int, ...]]]


def _shards(config: ModelConfig, places: Names) -> list[_Shard]:
    sizes = sizes_of(config)
    tensors: _Shard = {}
    groups = fused(places)
    for layer in range(-1, config.depth):
        for group in groups:
            place, shape = next(iter(group.values())), file_shape(group, sizes)
            if place.in_every_block == (layer >= 0):
                one = shape[1:] if place.index else shape
                tensors |= dict.fromkeys(place.tensors(layer, sizes), (layer, one))
    shards: list[_Shard] = [{}]
    room = SHARD_BYTES
    for name, row in tensors.items():
        if shards[-1] and _bytes(row[1]) > room:
            shards.append({})
            room = SHARD_BYTES
        shards[-1][name] = row
        room -= _bytes(row[1])
    return shards


def _bytes(shape: tuple[int, ...]) -> int:
    return 2 * int(np.prod(shape))


def _write_shard(
    path: Path, shard: _Shard, pool: np.ndarray, filled: Container[int] | None,
    rng: np.random.Generator,
) -> None:
    header, at = {}, 0
    for name, (_, shape) in shard.items():
        end = at + _bytes(shape)
        header[name] = {"dtype": "BF16", "shape": [*shape], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for layer, shape in shard.values():
            if layer >= 0 and filled is not None and layer not in filled:
                file.seek(_bytes(shape), 1)
            elif len(shape) == 1:  # the scale of a norm
                file.write(np.ones(shape, ml_dtypes.bfloat16).tobytes())
            else:
                _write_numbers(file, int(np.prod(shape)), pool, rng)
        file.truncate(8 + len(text) + at)


def _write_numbers(file, count: int, pool: np.ndarray, rng: np.random.Generator) -> None:
    while count > 0:
        part = np.roll(pool, int(rng.integers(len(pool))))[:count]
        file.write(part.tobytes())
        count -= len(part)


def _write_tokenizer(folder: Path) -> None:
    ids = {character: i for i, character in enumerate(_CHARACTERS)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(ids, unk_token="<unk>"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Split("", behavior="isolated")
    backend.add_special_tokens(["<s>"])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<s>", "add_bos_token": False}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
