"""From the name of a checkpoint to a model, and its tokenizer or how it wants its pictures."""

import dataclasses
import difflib
import functools
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from jax_massact.cache import cache_folder, make_once
from jax_massact.data.gguf_tokenizer import gguf_tokenizer
from jax_massact.data.preprocessing import Preprocessing
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.data.tokenizer_files import read_tokenizer
from jax_massact.errors import WeightsError
from jax_massact.families import focus
from jax_massact.families.checkpoint import Checkpoint, check_tensors
from jax_massact.families.config_files import read_config, read_gguf_config
from jax_massact.families.encoder_files import encoder_of, open_encoder
from jax_massact.families.open_model import OpenModel
from jax_massact.families.own import names_of
from jax_massact.families.places import Names
from jax_massact.families.run_checkpoint import is_run, open_run
from jax_massact.nn.config import DType, HeadConfig, ModelConfig
from jax_massact.nn.transformer import Transformer
from jax_massact.resources import RESOURCES, fetch
from jax_massact.weights.folder import CONFIG, open_folder
from jax_massact.weights.gguf import open_gguf
from jax_massact.weights.hub import fetch_from_hub, hub_model, in_cache_folder
from jax_massact.weights.tensors import Tensor, check_digest

# Where a training run and `massact fold` put the model, beside what they measured.
RUN_MODEL = "model"
_MODELS = [
    n for n, r in RESOURCES.items() if (r.single_file or "").endswith((".gguf", ".onnx"))
]


def load(
    source: str | Path,
    *,
    step: int | None = None,
    dtype: DType = "float32",
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Transformer, Tokenizer]:
    """A pretrained decoder and its tokenizer.

    Args:
      source: a named resource, the path of a GGUF file or of a Hugging Face folder, or the id of a
        model on the Hugging Face hub, or the folder of a training run.
      step: the checkpoint of a training run that is read; None: the model at its end, or, of a run
        that has not ended, its newest checkpoint.
      dtype: of the parameters and of the computation.
      mesh: the devices to lay the parameters out on; None: the default device.

    Raises:
      WeightsError: there is no such checkpoint, or it is damaged or of a kind not supported.
      DataError: it has no tokenizer that can be read.
      ResourceError: a named resource could not be fetched.
    """
    checkpoint = open_checkpoint(source, step)
    tokenizer = checkpoint.load_tokenizer()  # first: it is soon known whether there is one
    return checkpoint.load_model(dtype, mesh), tokenizer


def open(
    source: str | Path, *, dtype: DType = "float32", mesh: jax.sharding.Mesh | None = None
) -> OpenModel:
    """A model, of text or of images, whose blocks stay in its file, for models larger than memory.

    It is called like a model in memory, outside of `jax.jit`, and reads its blocks one by one:
    `stream`, `magnitudes`, `explain`, `token_losses`, `super_weights` and `fold` take it, too. Its
    tokenizer is `open(source).tokenizer`.

    Args:
      source: as for `load`; of a training run, one that has ended.
      dtype: of the computation.
      mesh: the devices to lay a block out on; None: the default device.

    Raises:
      WeightsError: there is no such checkpoint, or it is damaged or of a kind not supported.
      ResourceError: a named resource could not be fetched.
    """
    return OpenModel(open_checkpoint(source), dtype, mesh)


def load_encoder(
    source: str | Path,
    *,
    dtype: DType = "float32",
    mesh: jax.sharding.Mesh | None = None,
) -> tuple[Transformer, Preprocessing]:
    """A pretrained encoder of images, and how pictures are prepared for it.

    `model(prepare([path, ...]))` gives its logits; `model.features(model.residual(images)[0])` its
    features.

    Args:
      source: as for `load`: a Hugging Face folder, one of timm, or a named resource.
      dtype: of the parameters and of the computation.
      mesh: the devices to lay the parameters out on; None: the default device.

    Raises:
      WeightsError: there is no such checkpoint, or it is damaged or takes no images.
      ResourceError: a named resource could not be fetched.
    """
    checkpoint = open_checkpoint(source)
    if checkpoint.pictures is None:
        raise WeightsError(f"{source} takes text; expected: an encoder of images, or ma.load")
    return checkpoint.load_model(dtype, mesh), checkpoint.pictures


def open_checkpoint(source: str | Path, step: int | None = None) -> Checkpoint:
    """Finds a checkpoint and reads its configuration and the list of its tensors.

    Every tensor that the configuration calls for must be there with its shape, and no other.

    Args:
      source: as for `load`. A path that exists comes before a name; the folder of a training run
        stands for the model in it.
      step: as for `load`.

    Raises:
      WeightsError: there is no such checkpoint, or it is damaged or of a kind not supported.
      ResourceError: a named resource could not be fetched.
    """
    path = _locate(source)
    has_model = (path / RUN_MODEL / CONFIG).is_file()
    if is_run(path) and (step is not None or not has_model):
        return open_run(path, step)
    if step is not None:
        raise WeightsError(f"{source} has no step {step}; expected: the folder of a training run")
    if has_model:
        path = path / RUN_MODEL
    return _open_folder_checkpoint(path) if path.is_dir() else _open_gguf_checkpoint(path)


def _locate(source: str | Path) -> Path:
    name = str(source)
    path = Path(os.path.expanduser(name))
    if name and os.path.exists(path):
        return in_cache_folder(path)
    if name in _MODELS:
        return _resource(name)
    looks_like_path = path.suffix in (".gguf", ".safetensors") or name.startswith((".", "~"))
    model = None if looks_like_path or isinstance(source, Path) else hub_model(name)
    if model is not None:
        if path.parent != Path(".") and path.parent.is_dir():
            raise WeightsError(f"there is no {path.name!r} in the folder {path.parent}")
        return fetch_from_hub(model)
    if looks_like_path or path.name != name or isinstance(source, Path):
        raise WeightsError(
            f"{name} does not exist; expected: a .gguf file, a folder with a config.json and "
            "safetensors, the folder of a run, or a model's id on the Hugging Face Hub"
        )
    near = difflib.get_close_matches(name.lower(), _MODELS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise WeightsError(
        f"no model is called {name!r}.{hint} Expected: a named resource ({', '.join(_MODELS)}), "
        f"a .gguf file, a folder with {CONFIG}, or a Hugging Face id such as organisation/model"
    )


def _resource(name: str) -> Path:
    """The file or folder of a named model; what lies in an ONNX file is written anew once."""
    path = fetch(name)
    if path.suffix != ".onnx":
        return path
    say = lambda line: print(line, file=sys.stderr, flush=True)
    folder = f"{path.parent.name}-safetensors"
    return make_once(
        cache_folder(), folder, lambda new: focus.write_folder(path, new), say,
        needed_bytes=2 * path.stat().st_size,
    )


def _open_gguf_checkpoint(path: Path) -> Checkpoint:
    if path.suffix == ".safetensors":
        raise WeightsError(f"{path} is one file of a model; expected: its folder, with {CONFIG}")
    file = open_gguf(path)
    family, config = read_gguf_config(path, file)
    assert family.gguf is not None
    tokenizer = functools.partial(gguf_tokenizer, file.metadata, str(path))
    return check_tensors(
        path, path, family.model_type, family.gguf.names(config), config, file.tensors, tokenizer
    )


def _open_folder_checkpoint(folder: Path) -> Checkpoint:
    stated_in = folder / CONFIG
    if not stated_in.exists():
        ggufs = sorted(path.name for path in folder.glob("*.gguf"))
        hint = f". It holds {ggufs[0]}: name that file" if ggufs else ""
        raise WeightsError(f"{folder} has no {CONFIG}; expected: a Hugging Face folder{hint}")
    if (encoder := encoder_of(stated_in)) is not None:
        return open_encoder(folder, stated_in, encoder)
    family, config = read_config(stated_in)
    names = names_of(family, config)
    tensors = _with_names(open_folder(folder), names)
    tensors = _with_one_head(config, tensors, names, stated_in)
    if names["head"].template in tensors and not config.head.present:
        config = dataclasses.replace(config, head=HeadConfig())
    tokenizer = functools.partial(_read_tokenizer, folder / "tokenizer.json")
    return check_tensors(
        folder, stated_in, family.model_type, names, config, tensors, tokenizer
    )


def _read_tokenizer(path: Path) -> Tokenizer:
    check_digest(path)
    return read_tokenizer(path)


# What torch.compile and DistributedDataParallel put into the names of what they wrap.
_WRAPPERS = re.compile(r"(^|\.)(_orig_mod|module)(?=\.)")


# How the names of a text part begin: as transformers saves it, and as it is called in memory.
_TEXT = re.compile(r"(language_model\.(?=model\.|lm_head\.)|model\.language_model\.)(.*)")


def _of_text(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors, or those of the text part of a model that also takes images."""
    found = {}
    for name, tensor in tensors.items():
        if match := _TEXT.fullmatch(name):
            found[match[2] if match[1].startswith("l") else f"model.{match[2]}"] = tensor
    if found and "lm_head.weight" in tensors:
        found["lm_head.weight"] = tensors["lm_head.weight"]
    return found or tensors


def _with_names(tensors: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """The tensors by the names of a table, whatever wrapped the model when it was saved."""
    found: dict[str, Tensor] = {}
    for name, tensor in _of_text(tensors).items():
        name = _WRAPPERS.sub("", name).removeprefix(".")
        if name in found:
            raise tensor.error(f"has the same place as {found[name].name!r}", "one of the two")
        found[name] = tensor
    embed, head = names["embed"].template, names["head"].template
    # A model that was saved without its head lacks what stands before all other names.
    before, _, bare = embed.partition(".")
    if embed in found or bare not in found:
        return found
    return {name if name == head else f"{before}.{name}": tensor for name, tensor in found.items()}


def _with_one_head(
    config: ModelConfig, tensors: dict[str, Tensor], names: Names, stated_in: Path
) -> dict[str, Tensor]:
    """A tied head may be stored beside an embedding that equals it, or in its place."""
    embed_name, head_name = names["embed"].template, names["head"].template
    head, embed = tensors.get(head_name), tensors.get(embed_name)
    if head is None or not config.head.tied:
        return tensors
    if embed is not None and not _same_bytes(head, embed):
        raise head.error(
            f"differs from the embedding and {stated_in.name} has tie_word_embeddings true",
            "a head equal to the embedding, or tie_word_embeddings false",
        )
    return {embed_name: embed or head, **_without(tensors, head_name, embed_name)}


def _without(tensors: Mapping[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def _same_bytes(a: Tensor, b: Tensor) -> bool:
    return (a.shape, a.dtype) == (b.shape, b.dtype) and np.array_equal(a.raw(), b.raw())
