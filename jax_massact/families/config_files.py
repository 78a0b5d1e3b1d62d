"""From a file to a model's family and configuration, and back to a `config.json`."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_massact.errors import ConfigError, WeightsError
from jax_massact.families.family import Family
from jax_massact.families.fields import Fields, build, flat
from jax_massact.families.own import GROUP, names_of, read_group, write_group
from jax_massact.families.places import places_of
from jax_massact.families.rope import readable_rope
from jax_massact.families.table import FAMILIES, TRAINED
from jax_massact.nn.block_config import BlockConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.safetensors import parse_json
from jax_massact.weights.settings import Settings
from jax_massact.weights.tensors import check_digest, reading

# How `model_type` and the architecture begin in files that only this package reads.
OWN = f"{GROUP}-"
# Settings by which relatives of a family change the computation, each with the values that change
# nothing. A family that knows one has it among its defaults.
_FOREIGN: dict[str, tuple[Any, ...]] = {
    "alibi": (False,),
    "attention_multiplier": (),
    "attn_logit_softcapping": (),
    "clip_qkv": (),
    "embedding_multiplier": (1,),
    "final_logit_softcapping": (),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "n_routed_experts": (0,),
    "no_rope_layers": ([],),
    "num_experts": (0,),
    "num_local_experts": (0,),
    "parallel_attn": (False,),
    "qk_layernorm": (False,),
    "query_pre_attn_scalar": (),
    "residual_multiplier": (1,),
    "use_mrope": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
}
_OWN_CLASS = "Massact"
# Models that also take images, and the family of what computes text in them.
_TEXT_PARTS = {"gemma3": "gemma3_text"}
# What other families need that is not computed yet, by their `model_type` and in GGUF files.
_MISSING = {
    **dict.fromkeys(
        ("qwen3_next", "qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3next",
         "qwen35", "qwen35moe"),
        "layers of Gated DeltaNet (linear attention with a recurrent state)",
    ),
    **dict.fromkeys(
        ("deepseek_v2", "deepseek_v3", "deepseek_v32", "deepseek2"),
        "multi-head latent attention (MLA) and blocks of two kinds of MLP",
    ),
    **dict.fromkeys(
        ("gemma4", "gemma4_text"),
        "embeddings for each layer, keys and values that layers share, and heads of two sizes",
    ),
    **dict.fromkeys(
        ("llama4", "llama4_text"),
        "attention in chunks, a temperature for each position, and experts that scale their input",
    ),
}  # fmt: skip


def _check_known(settings: Settings, name: str) -> None:
    """Raises WeightsError for a family that is known, with what it needs."""
    kind = settings.get(name)
    if isinstance(kind, str) and kind in _MISSING:
        raise settings.error(name, f"a family that is computed; missing: {_MISSING[kind]}")


def read_config(path: Path) -> tuple[Family, ModelConfig]:
    """The family and configuration of a `config.json`, with float32 as its compute dtype.

    Raises:
      WeightsError: the architecture or a setting is not supported, or one is missing or wrong.
    """
    check_digest(path)
    with reading(path) as file:
        settings = _of_text(Settings(parse_json(file.read(), str(path)), path))
    family, own, has_head = _family_of(settings)
    _check_quantization(settings)
    for name, unused in _FOREIGN.items():
        if name not in family.defaults and settings.has(name) and settings.get(name) not in unused:
            expected = " or ".join(map(repr, unused)) or "nothing"
            raise settings.error(name, f"{expected} in a {family.model_type} model")
    settings = Settings({**family.defaults, **settings.values}, path)
    try:
        config = build({**family.read(settings), **read_group(settings, required=own)})
    except ConfigError as error:
        raise WeightsError(f"{path}: {error}") from error
    return family, config if has_head or config.head.tied else without_head(config)


def _of_text(settings: Settings) -> Settings:
    """The settings of a model, or of the text part of one that also takes images."""
    family = _TEXT_PARTS.get(str(settings.get("model_type")))
    if family is None:
        return settings
    text = settings.get("text_config", {})
    if not isinstance(text, Mapping):
        raise settings.error("text_config", "an object, the settings of the text part")
    outer = {name: settings.get(name) for name in ("quantization_config", "tie_word_embeddings")}
    return Settings(
        {**outer, **text, "model_type": family, "architectures": None}, settings.file
    )


def _check_quantization(settings: Settings) -> None:
    """Raises WeightsError where weights are quantized in a way that is not read."""
    stated = settings.get("quantization_config")
    method = stated.get("quant_method") if isinstance(stated, Mapping) else None
    if stated is not None and method != "mxfp4":
        raise settings.error(
            "quantization_config", "nothing, or MXFP4; other quantized weights only as GGUF"
        )


def without_head(config: ModelConfig) -> ModelConfig:
    """The configuration of the same model without its own head."""
    return dataclasses.replace(config, head=dataclasses.replace(config.head, present=False))


def _family_of(settings: Settings) -> tuple[Family, bool, bool]:
    """The family, whether the model is of this package's own kind, and whether it has a head."""
    _check_known(settings, "model_type")
    types = {f.model_type: (f, False) for f in FAMILIES}
    types |= {f"{OWN}{f.model_type}": (f, True) for f in FAMILIES}
    architectures = settings.get("architectures", [])
    if not architectures:
        return *types[settings.one_of("model_type", tuple(types))], True
    with_head = {f"{_OWN_CLASS * own}{f.architecture}": name for name, (f, own) in types.items()}
    known = with_head | {f"{_OWN_CLASS * own}{f.base}": name for name, (f, own) in types.items()}
    if not isinstance(architectures, list) or str(architectures[0]) not in known:
        raise settings.error("architectures", f"one of {', '.join(known)}")
    model_type = known[architectures[0]]
    row = types[settings.one_of("model_type", (model_type,), model_type)]
    return *row, architectures[0] in with_head


def read_gguf_config(path: Path, file: GgufFile) -> tuple[Family, ModelConfig]:
    """The family and the configuration of a GGUF file, with float32 as its compute dtype.

    Raises:
      WeightsError: the architecture or a setting is not supported, or one is missing or wrong.
    """
    rows = {f.gguf.architecture: (f, f.gguf) for f in FAMILIES if f.gguf is not None}
    stated = Settings(file.metadata, path)
    _check_known(stated, "general.architecture")
    arch = stated.one_of("general.architecture", tuple(rows))
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
    # Whether there is a head says the architecture.
    wanted = readable(config)
    wanted = dataclasses.replace(wanted, head=dataclasses.replace(wanted.head, present=True))
    fields, found = flat(wanted), []
    for family in FAMILIES:
        if (described := _as_family(family, wanted, fields)) is not None:
            found.append(described)
            if not described[2]:
                break
    near = [described for described in found if not described[2]]
    if not near:
        # In the words of the families that this package trains, if they can be.
        placed = [described for described in found if _has_places(described[0], wanted)]
        near = [described for described in placed if described[0] in TRAINED] or placed
    if not near:
        raise WeightsError("no file can state this configuration; expected: one that `load` reads")
    family, settings, group = min(near, key=lambda described: _distance(described[2]))
    own = {GROUP: group} if group else {}
    architecture = family.architecture if config.head.present else family.base
    return family, {
        "architectures": [f"{_OWN_CLASS * bool(group)}{architecture}"],
        "model_type": f"{OWN * bool(group)}{family.model_type}",
        **settings,
        **own,
    }


def _has_places(family: Family, config: ModelConfig) -> bool:
    """Whether a file of the family has a place for every parameter."""
    try:
        return bool(places_of(names_of(family, config), config, "a file"))
    except WeightsError:
        return False


def _distance(group: Mapping[str, Any]) -> tuple[int, int]:
    """How much a model differs from its family: biases left out count least."""
    return sum(not name.endswith("bias") for name in group), len(group)


def _as_family(
    family: Family, config: ModelConfig, fields: Fields
) -> tuple[Family, dict[str, Any], dict[str, Any]] | None:
    """What a `config.json` of the family says of a configuration, and the group, if it can.

    `fields` are those of the configuration.
    """
    settings, file = family.write(config), Path("config.json")
    try:
        stated = family.read(Settings({**family.defaults, **settings, GROUP: {}}, file))
        group = write_group(stated, fields)
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
