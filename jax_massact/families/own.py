"""The group `massact` of a `config.json`: settings of a model that Hugging Face has no name for.

A model's other settings and tensors stand under the names of the family that it resembles most;
what no word of the group and no family has stands under this package's own names.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_args

from jax_massact.errors import WeightsError
from jax_massact.families.family import Family
from jax_massact.families.fields import Fields, defaults
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.nn.block_config import NormKind
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.variants import VARIANTS
from jax_massact.settings import unknown_key
from jax_massact.weights.settings import Settings

GROUP = "massact"
# The kinds of blocks after the first, each as a group of its own settings.
_KINDS = "kinds"


class _Setting(NamedTuple):
    """One setting of the group.

    Attributes:
      paths: the fields that it decides.
      read: its value.
      words: its value -> those of the fields; None: all have its value.
    """

    paths: tuple[str, ...]
    read: Callable[[Settings, str], Any]
    words: Mapping[str, tuple[Any, ...]] | None = None

    def fields(self, value: Any) -> dict[str, Any]:
        values = (value,) * len(self.paths) if self.words is None else self.words[value]
        return dict(zip(self.paths, values, strict=True))

    def value(self, fields: Fields) -> Any:
        """The value that gives these fields."""
        values = tuple(fields.get(path) for path in self.paths)
        if self.words is None:
            return values[0]
        return next(word for word, found in self.words.items() if found == values)


def _one_of(*allowed: Any) -> Callable[[Settings, str], Any]:
    return lambda settings, name: settings.one_of(name, allowed)


def _or_null(read: Callable[[Settings, str], Any]) -> Callable[[Settings, str], Any]:
    return lambda settings, name: read(settings, name) if settings.has(name) else None


_flag, _norm = _one_of(True, False), _one_of(*get_args(NormKind))
_POSITIONS = {
    "rope": ("rope", "none"),
    "learned": ("none", "learned"),
    "none": ("none", "none"),
    "rope and learned": ("rope", "learned"),
    "alibi": ("alibi", "none"),
    "alibi and learned": ("alibi", "learned"),
    "rounded alibi": ("alibi_rounded", "none"),
    "rounded alibi and learned": ("alibi_rounded", "learned"),
}
# Later ones replace what earlier ones decide.
_SETTINGS = {
    "attention": _Setting(("block.attention.variant",), _one_of(*VARIANTS)),
    "attn_out_bias": _Setting(("block.attention.out_bias",), _flag),
    "bias_position": _Setting(("bias_position",), Settings.count),
    "extra_keys": _Setting(("block.attention.extra_keys",), Settings.size),
    "first_position": _Setting(("first_position",), Settings.count),
    "gated_mlp": _Setting(("block.mlp.gated",), _flag),
    "head_dim": _Setting(("block.attention.head_dim",), Settings.size),
    "logit_scale": _Setting(("block.attention.scale",), _or_null(Settings.number)),
    "logit_softcap": _Setting(("block.attention.softcap",), _or_null(Settings.number)),
    "mlp_bias": _Setting(("block.mlp.bias",), _flag),
    "norm": _Setting(("block.norm.kind", "final_norm.kind"), _norm),
    "norm_bias": _Setting(("block.norm.bias", "final_norm.bias"), _flag),
    "final_norm": _Setting(("final_norm.kind",), _norm),
    "final_norm_bias": _Setting(("final_norm.bias",), _flag),
    "final_norm_eps": _Setting(("final_norm.eps",), Settings.number),
    "num_kv_heads": _Setting(("block.attention.kv_heads",), Settings.size),
    "position": _Setting(
        ("block.attention.position", "embed.positions"), _one_of(*_POSITIONS), _POSITIONS
    ),
    "qkv_bias": _Setting(("block.attention.qkv_bias",), _flag),
    "rope_base": _Setting(("block.attention.rope.base",), Settings.number),
    "rope_factors": _Setting(("block.attention.rope.factors",), _or_null(Settings.numbers)),
    "rope_scale": _Setting(("block.attention.rope.scale",), Settings.number),
    "slopes": _Setting(("block.attention.slopes",), _or_null(Settings.numbers)),
    "sliding_window": _Setting(("block.attention.window",), _or_null(Settings.size)),
}
# The fields that stand under their own paths where they differ; the others are no part of a file.
_PATHS = frozenset(defaults()) - {
    "others", "dtype", "block.attention.implementation",
    *(path for setting in _SETTINGS.values() for path in setting.paths),
}  # fmt: skip
# What the kinds of blocks of one model may differ in.
_OF_A_KIND = {
    "logit_scale", "logit_softcap", "position", "rope_base", "rope_factors", "rope_scale",
    "slopes", "sliding_window",
}  # fmt: skip


def read_group(settings: Settings, *, required: bool) -> Fields:
    """The fields that the group of a `config.json` decides.

    Args:
      required: whether the model must have the group; if not, it must not have it.

    Raises:
      WeightsError: it is missing, out of place, or not a group of known settings.
    """
    if not required:
        if settings.has(GROUP):
            # Other programs would not see it, and run another model.
            raise settings.error(GROUP, f"nothing, unless model_type begins with {GROUP}-")
        return {}
    values = settings.get(GROUP)
    if not isinstance(values, Mapping):
        raise settings.error(GROUP, "a group of settings")
    fields = _read(settings, GROUP, values, {*_SETTINGS, _KINDS, *_PATHS})
    if _KINDS in values:
        fields["others"] = tuple(_kinds(settings, values[_KINDS]))
    return fields


def _read(settings: Settings, name: str, values: Mapping, known: set[str]) -> dict[str, Any]:
    for key in values:
        if key not in known:
            raise WeightsError(f"{settings.file}: {unknown_key(f'{name}.{key}', key, known)}")
    prefixed = {f"{name}.{key}": value for key, value in values.items()}
    group = Settings(prefixed, settings.file, f"{name}.")
    fields: dict[str, Any] = {}
    for key, setting in _SETTINGS.items():
        if key in values:
            fields |= setting.fields(setting.read(group, key))
    return fields | {path: _tuples(values[path]) for path in _PATHS & values.keys()}


def _tuples(value: Any) -> Any:
    """JSON's lists as configurations have them."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _kinds(settings: Settings, kinds: Any) -> list[dict[str, Any]]:
    if not isinstance(kinds, list) or not all(isinstance(kind, Mapping) for kind in kinds):
        raise WeightsError(
            f"{settings.file}: {GROUP}.{_KINDS} is {kinds!r}; expected: a list of groups"
        )
    return [
        {
            path.removeprefix("block."): value
            for path, value in _read(settings, f"{GROUP}.{_KINDS}[{i}]", kind, _OF_A_KIND).items()
            if path.startswith("block.")
        }
        for i, kind in enumerate(kinds)
    ]


def write_group(stated: Fields, wanted: Fields) -> dict[str, Any]:
    """The settings of the group that turn fields as stated into those that are wanted."""
    fields = {**defaults(), **stated}
    group: dict[str, Any] = {}
    for name, setting in _SETTINGS.items():
        if any(fields[path] != wanted[path] for path in setting.paths):
            group[name] = setting.value(wanted)
            fields |= setting.fields(group[name])
    for path in sorted(_PATHS):
        if fields[path] != wanted[path]:
            group[path] = wanted[path]
    if tuple(fields["others"]) != tuple(wanted["others"]):
        group[_KINDS] = [_write_kind(kind) for kind in wanted["others"]]
    return group


def _write_kind(kind: Fields) -> dict[str, Any]:
    """A kind of block, given by what it has in place of the first kind's."""
    fields = {f"block.{path}": value for path, value in kind.items()}
    return {
        name: _SETTINGS[name].value({"embed.positions": "none", **fields})
        for name in sorted(_OF_A_KIND)
        if _SETTINGS[name].paths[0] in fields
    }


def names_of(family: Family, config: ModelConfig) -> Names:
    """Where the parameters of a model of this family lie, those included that the family lacks."""
    names = {**family.names(config), **family.own_names(config)}
    start = names["blocks.attn.out"].template.partition("{l}")[0]
    return {**in_blocks(f"{start}{{l}}.", _BLOCK), **_MODEL, **names}


_NORMS = ("attn_norm", "attn_out_norm", "mlp_norm", "mlp_out_norm")
_BLOCK = {
    **{f"{norm}.scale": Place(f"{norm}.weight", "d->d") for norm in _NORMS},
    **{f"{norm}.alpha": Place(f"{norm}.alpha", "1->") for norm in _NORMS},
    **{f"attn.{x}_norm.scale": Place(f"attn.{x}_norm.weight", "h->h") for x in "qk"},
    "attn.q_norm.scales": Place("attn.q_norm.weights", "nh->nh"),
    "attn.k_norm.scales": Place("attn.k_norm.weights", "kh->kh"),
    "attn_gain": Place("attn_gain", "d->d"),
    "mlp_gain": Place("mlp_gain", "d->d"),
}
_MODEL = {
    **{f"{norm}.alpha": Place(f"{norm}.alpha", "1->") for norm in ("embed_norm", "final_norm")},
    "embed_norm.scale": Place("embed_norm.weight", "d->d"),
}
