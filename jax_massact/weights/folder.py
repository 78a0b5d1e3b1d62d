"""Hugging Face folders: one safetensors file, or several and an index. Never a pickle."""

from collections.abc import Mapping
from pathlib import Path

from jax_massact.errors import WeightsError
from jax_massact.weights.mxfp4 import unpacked
from jax_massact.weights.safetensors import open_safetensors, parse_json
from jax_massact.weights.tensors import (
    Tensor,
    check_digest,
    merge,
    reading,
)

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle")


def open_folder(folder: Path) -> dict[str, Tensor]:
    """The tensors of `model.safetensors`, else of the shards that the index names.

    Raises:
      WeightsError: there are none, a shard is missing, or index and shards disagree.
    """
    if (folder / WEIGHTS).exists():
        return unpacked(open_safetensors(folder / WEIGHTS))
    if (folder / INDEX).exists():
        return unpacked(_open_shards(folder / INDEX))
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise WeightsError(
            f"{folder} holds its weights as a pickle only ({pickles[0]}), which can run any code "
            f"and is never loaded; expected: {WEIGHTS}. Where transformers and PyTorch are there, "
            "AutoModelForCausalLM.from_pretrained(folder).save_pretrained(other) writes it"
        )
    others = sorted(path.name for path in folder.glob("*.safetensors"))
    found = f"only {', '.join(others)}" if others else "no safetensors file"
    raise WeightsError(f"{folder} holds {found}; expected: {WEIGHTS} or {INDEX}")


def _open_shards(index: Path) -> dict[str, Tensor]:
    places = _weight_map(index)
    files = {name: index.with_name(name) for name in sorted(set(places.values()))}
    for name, file in files.items():
        if not file.is_file():
            raise WeightsError(f"{index}: shard {name} is missing; expected: {file}")
    tensors = merge(open_safetensors(file) for file in files.values())
    for tensor in tensors.values():
        stated = places.get(tensor.name)
        if stated != tensor.file.name:
            found = f"places it in {stated}" if stated else "does not name it"
            raise tensor.error(
                f"lies here and {index.name} {found}", "index and shards that agree"
            )
    for name, file in places.items():
        if name not in tensors:
            raise WeightsError(
                f"{index.with_name(file)}: tensor {name!r} is missing; expected: the tensor that "
                f"{index.name} places there"
            )
    return tensors


def _weight_map(index: Path) -> Mapping[str, str]:
    check_digest(index)
    with reading(index) as file:
        places = parse_json(file.read(), str(index)).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise WeightsError(f"{index}: weight_map is {places!r}; expected: tensor names and files")
    for name, file in places.items():
        # A name with folders in it could point anywhere on this machine.
        if not isinstance(file, str) or not file.endswith(".safetensors") or _has_folders(file):
            raise WeightsError(
                f"{index}: weight_map places {name!r} in {file!r}; expected: the name of a "
                "safetensors file in the same folder"
            )
    return places


def _has_folders(name: str) -> bool:
    return "/" in name or "\\" in name or "\0" in name
