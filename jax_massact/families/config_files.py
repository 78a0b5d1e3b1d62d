"""From a file to a model's family and configuration, and back to a `config.json`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_massact.errors import ConfigError, WeightsError
from jax_massact.families.fields import build, flat
from jax_massact.families.own import GROUP, read_group, write_group
from jax_massact.families.rope import readable_rope
from jax_massact.families.table import FAMILIES, Family
from jax_massact.nn.config import BlockConfig, ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.safetensors import parse_json
from jax_massact.weights.settings import Settings
from jax_massact.weights.tensors import check_digest, reading

# How `model_type` and the architecture begin in files that only this package reads.
OWN = f"{GROUP}-"
_OWN_CLASS = "Massact"


def read_config(path: Path) -> tuple[Family, ModelConfig]:
    """The family and configuration of a `config.json`, with float32 as its compute dtype.

    Raises:
      WeightsError: the architecture or a setting is not supported, or one is missing or wrong.
    """
    check_digest(path)
    with reading(path) as file:
        settings = Settings(parse_json(file.read(), str(path)), path)
    family, own = _family_of(settings)
    if settings.has("quantization_config"):
        raise settings.error("quantization_config", "nothing; quantized weights only as GGUF")
    settings = Settings({**family.defaults, **settings.values}, path)
    try:
        return family, build({**family.read(settings), **read_group(settings, required=own)})
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def _family_of(settings: Settings) -> tuple[Family, bool]:
    """The family, and whether the model is one of this package's own."""
    types = {f.model_type: (f, False) for f in FAMILIES}
    types |= {f"{OWN}{f.model_type}": (f, True) for f in FAMILIES}
    architectures = settings.get("architectures", [])
    if not architectures:
        return types[settings.one_of("model_type", tuple(types))]
    known = {f"{_OWN_CLASS * own}{f.architecture}": name for name, (f, own) in types.items()}
    if not isinstance(architectures, list) or str(architectures[0]) not in known:
        raise settings.error("architectures", f"one of {', '.join(known)}")
    model_type = known[architectures[0]]
    return types[settings.one_of("model_type", (model_type,), model_type)]


def read_gguf_config(path: Path, file: GgufFile) -> tuple[Family, ModelConfig]:
    """The family and the configuration of a GGUF file, with float32 as its compute dtype.

    Raises:
      WeightsError: the architecture or a setting is not supported, or one is missing or wrong.
    """
    rows = {f.gguf.architecture: (f, f.gguf) for f in FAMILIES if f.gguf is not None}
    arch = Settings(file.metadata, path).one_of("general.architecture", tuple(rows))
    family, row = rows[arch]
    try:
        return family, build(row.read(Settings(file.metadata, path, f"{arch}."), file))
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error


def describe(config: ModelConfig) -> tuple[Family, dict[str, Any]]:
    """The family that a model is saved as, and the settings of its `config.json`.

    With them transformers, or this package alone, runs the same model. It is the first family whose
    settings state all of the configuration; else the one whose settings leave the least out, with
    the rest in the group `massact`, under a `model_type` that transformers does not know lest it
    run another model under these weights.

    Raises:
      WeightsError: no settings state this configuration.
    """
    wanted = readable(config)
    found = [described for family in FAMILIES if (described := _as_family(family, wanted))]
    if not found:
        raise WeightsError("no file can state this configuration; expected: one that `load` reads")
    family, settings, group = min(found, key=lambda described: _distance(described[2]))
    own = {GROUP: group} if group else {}
    return family, {
        "architectures": [f"{_OWN_CLASS * bool(group)}{family.architecture}"],
        "model_type": f"{OWN * bool(group)}{family.model_type}",
        **settings,
        **own,
    }


def _distance(group: Mapping[str, Any]) -> tuple[int, int]:
    """How much a model differs from its family: biases left out count least."""
    return sum(not name.endswith("bias") for name in group), len(group)


def _as_family(
    family: Family, config: ModelConfig
) -> tuple[Family, dict[str, Any], dict[str, Any]] | None:
    """What a `config.json` of the family says of a configuration, and the group, if it can."""
    settings, file = family.write(config), Path("config.json")
    try:
        stated = family.read(Settings({**family.defaults, **settings, GROUP: {}}, file))
        group = write_group(stated, flat(config))
        rest = read_group(Settings({GROUP: group}, file), required=True)
        is_all = build({**stated, **rest}) == config
    except (ConfigError, WeightsError):
        return None
    return (family, settings, group) if is_all else None


def readable(config: ModelConfig) -> ModelConfig:
    """The configuration as it will be read again.

    The compute dtype is float32, as for every file, attention is the fastest implementation, rotary
    settings of a model without rotary positions are the defaults, and Llama 3's factors are exactly
    those of its formula.
    """
    block, *others = (_readable_kind(kind) for kind in config.pattern)
    return dataclasses.replace(config, block=block, others=tuple(others), dtype="float32")


def _readable_kind(kind: BlockConfig) -> BlockConfig:
    rope = readable_rope(kind.attention)
    attention = dataclasses.replace(kind.attention, rope=rope, implementation=None)
    return dataclasses.replace(kind, attention=attention)
