"""From the folder of an image encoder to a checkpoint, whoever wrote it."""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_massact.data.preprocessing import FilterKind, Preprocessing
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import ConfigError, DataError, WeightsError
from jax_massact.families import clip, dinov2, dinov3, own_encoder, timm, vit
from jax_massact.families.checkpoint import Checkpoint, check_tensors
from jax_massact.families.encoder import Encoder
from jax_massact.families.fields import Fields, build
from jax_massact.weights.folder import open_folder
from jax_massact.weights.safetensors import parse_json
from jax_massact.weights.settings import Settings
from jax_massact.weights.tensors import Tensor, check_digest, reading

ENCODERS = (
    vit.FAMILY, vit.MAE, dinov2.FAMILY, dinov2.REGISTERS, dinov3.FAMILY, clip.CLIP, clip.SIGLIP,
    timm.FAMILY, own_encoder.FAMILY,
)  # fmt: skip
# PIL's numbers, as Hugging Face states them.
_FILTERS: dict[Any, FilterKind] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic",
    "nearest": "nearest", "bilinear": "bilinear", "bicubic": "bicubic", "lanczos": "lanczos",
}  # fmt: skip


def encoder_of(stated_in: Path) -> Encoder | None:
    """The family of a `config.json`, if it is one of image encoders.

    Raises:
      WeightsError: the file is not JSON.
    """
    values = _stated(stated_in)
    kind = values.get("model_type")
    if kind is None and "architecture" in values and "architectures" not in values:
        kind = "timm"
    return next((family for family in ENCODERS if kind in family.model_types), None)


def open_encoder(folder: Path, stated_in: Path, family: Encoder) -> Checkpoint:
    """The checkpoint of an image encoder.

    Text towers, decoders and mask tokens are left out; a classifier or a projection is the head.

    Raises:
      WeightsError: a setting is not supported, or a tensor missing, mis-shaped or unknown.
    """
    values = _stated(stated_in)
    if family.group and isinstance(values.get(family.group), Mapping):
        values = {**values[family.group]}
    settings = Settings({**family.defaults, **values}, stated_in)
    tensors = _named(open_folder(folder), family)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    try:
        fields, pictures = _pictures(family, folder, settings, family.read(settings, shapes))
        config = build(fields)
        names = family.names(config, shapes)
        head = names["head"].template if "head" in names else ""
        if head in shapes and len(shapes[head]) == 2:
            bias = f"{head.removesuffix('weight')}bias" in shapes
            whole = {"head.present": True, "head.bias": bias, "embed.vocab_size": shapes[head][0]}
            config = build(fields | whole)
    except ConfigError as error:
        raise WeightsError(f"{stated_in}: {error}") from error
    if config.head.pool != "map":
        tensors = {n: x for n, x in tensors.items() if not re.fullmatch(family.of_pool, n)}
    checkpoint = check_tensors(
        folder, stated_in, family.model_types[0], names, config, tensors, _no_tokenizer
    )
    return dataclasses.replace(checkpoint, pictures=pictures)


def _no_tokenizer() -> Tokenizer:
    raise DataError("an encoder of images has no tokenizer; expected: load_encoder, or pictures")


def _stated(path: Path) -> dict[str, Any]:
    check_digest(path)
    with reading(path) as file:
        return parse_json(file.read(), str(path))


def _named(tensors: Mapping[str, Tensor], family: Encoder) -> dict[str, Tensor]:
    """The encoder's tensors by the names of its table."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for pattern, new in family.renames:
            name = re.sub(pattern, new, name)
        if re.fullmatch(family.ignored, name) or 0 in tensor.shape:
            continue  # the registers of a model without any are a tensor of none
        if name in found:
            raise tensor.error(f"has the same place as {found[name].name!r}", "one of the two")
        found[name] = tensor
    return found


def _pictures(
    family: Encoder, folder: Path, settings: Settings, fields: Fields
) -> tuple[dict[str, Any], Preprocessing]:
    """The fields with the normalization of the channels, and how pictures are prepared."""
    channels = fields.get("embed.patches.channels", 3)
    normalization, pictures = dict(family.normalization), family.pictures
    if timm.FAMILY is family:
        normalization, pictures = _of_timm(settings, normalization)
    elif (path := folder / own_encoder.PREPROCESSOR).is_file():
        stated = Settings(_stated(path), path)
        for ours, name in (("mean", "image_mean"), ("std", "image_std")):
            values = stated.get(name)
            if isinstance(values, list) and stated.flag("do_normalize", True):
                normalization[ours] = tuple(float(x) for x in values)
        pictures = _of_hugging_face(stated, pictures)
    if len(normalization["mean"]) != channels:
        normalization = {"mean": (0.5,) * channels, "std": (0.5,) * channels}
    own = {f"embed.patches.{name}": value for name, value in normalization.items()}
    return {**own, **fields}, pictures


def _of_hugging_face(stated: Settings, otherwise: Preprocessing) -> Preprocessing:
    size, crop = stated.get("size", otherwise.edge), stated.get("crop_size")
    squash = isinstance(size, Mapping) and "height" in size
    if isinstance(size, Mapping):
        size = size.get("shortest_edge", size.get("height", otherwise.edge))
    elif not stated.flag("do_center_crop", False):
        squash = True  # a single number meant both sides before there were names for them
    if isinstance(crop, Mapping):
        crop = crop.get("height")
    if not stated.flag("do_center_crop", crop is not None) or crop is None:
        crop = size if squash else min(size, otherwise.crop)
    filter = stated.get("resample", 3 if otherwise.filter == "bicubic" else 2)
    if filter not in _FILTERS or type(size) is not int or type(crop) is not int:
        raise stated.error("size", "one that is stated as a number, or height and width")
    kind = "squash" if squash else "short"
    return Preprocessing(
        edge=max(size, crop), crop=crop, resize=kind, filter=_FILTERS[filter]
    )


def _of_timm(
    settings: Settings, normalization: dict[str, tuple[float, ...]]
) -> tuple[dict[str, tuple[float, ...]], Preprocessing]:
    values = settings.get("pretrained_cfg", {})
    stated = Settings(values if isinstance(values, Mapping) else {}, settings.file)
    for name in normalization:
        if isinstance(stated.get(name), list):
            normalization[name] = tuple(float(x) for x in stated.get(name))
    size = stated.get("input_size", [3, 224, 224])
    if not (isinstance(size, list) and len(size) == 3 and type(size[1]) is int):
        raise stated.error("input_size", "channels, rows and columns")
    filter = stated.get("interpolation", "bicubic")
    crop = stated.get("crop_mode", "center")
    if filter not in _FILTERS or crop not in ("center", "squash"):
        raise stated.error("crop_mode", "'center' or 'squash', and an interpolation of PIL")
    edge = math.floor(size[1] / stated.number("crop_pct", 0.875))
    kind = "squash" if crop == "squash" else "short"
    return normalization, Preprocessing(
        edge=max(edge, size[1]), crop=size[1], resize=kind, filter=_FILTERS[filter]
    )
