"""Where parameters lie in files: names of tensors, and the layout of the numbers in them.

A layout is an einsum-like rule from the axes of the file's array to those of the parameter:

    "(nh)d->dnh"      the first axis is split into heads, the second moves in front
    "(nij)d->dn(ji)"  within a head, pairs (i) of two coordinates (j) become two halves
    "(nwij)d->dn(wji)"  where the first part of a head is turned: in each part of that size (w)
    "d([1]nh)->dnh"   a fused tensor: the parameters in it follow one another along the axis in
                      brackets, in the order of the table; this one takes 1 of it

Only reshapes, transposes and slices are possible, and the addition of one number, so that every row
can be read backwards. Letters are those of `ModelConfig`, in lower case; a patch has `a` rows and
`b` columns of `c` channels. `sizes_of` lists all.
"""

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from jax_massact.errors import WeightsError
from jax_massact.nn.block_config import RopeConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.parameters import parameter
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.nn.variants import variant_of


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter lies in a file.

    Attributes:
      template: the tensor's name, with {l} for the number of the block; another letter in braces,
        such as {e}, stands for the entry of the first axis, of which each is a tensor.
      layout: from the file's array to the parameter's.
      added: to the parameter in the file: GGUF files of Gemma hold 1 + scale.
    """

    template: str
    layout: str
    added: float = 0.0

    def tensors(self, layer: int, sizes: "Sizes") -> list[str]:
        """The names of the tensors for a block: one, or one for each entry of the first axis."""
        name, index = self.template.replace("{l}", str(layer)), self.index
        if not index:
            return [name]
        return [name.replace(f"{{{index}}}", str(i)) for i in range(sizes[index])]

    @property
    def index(self) -> str:
        """The letter of the first axis where its entries are tensors of their own; else empty."""
        return "".join(set(re.findall(r"\{(\w)\}", self.template)) - {"l"})

    @property
    def in_every_block(self) -> bool:
        return "{l}" in self.template


# Parameter, as in `nn.transformer.parameters`, -> its place.
Names = Mapping[str, Place]
Sizes = Mapping[str, int]


def in_blocks(prefix: str, rows: Names) -> dict[str, Place]:
    """Rows of parameters that every block has; `prefix` begins the names of their tensors."""
    return {
        f"blocks.{name}": replace(place, template=prefix + place.template)
        for name, place in rows.items()
    }


def sizes_of(config: ModelConfig) -> dict[str, int]:
    """The size of each letter of a layout."""
    attention, patches = config.block.attention, config.embed.patches
    turned = attention.rope.turned(attention.head_dim)
    return {
        "1": 1,
        "q": 1,
        "a": 1 if patches is None else patches.size,
        "b": 1 if patches is None else patches.size,
        "c": 1 if patches is None else patches.channels,
        "y": config.width * (1 + (config.head.pool == "cls_mean")),
        "v": config.embed.vocab_size,
        "p": config.context_length,
        "s": variant_of(config).prefix + config.registers,
        "d": config.width,
        "n": attention.heads,
        "k": attention.kv_heads,
        "g": attention.heads // attention.kv_heads,
        "h": attention.head_dim,
        "w": attention.head_dim // turned,
        "i": turned // 2,
        "j": 2,
        "r": attention.extra_keys,
        "f": config.block.mlp.hidden,
        "e": config.block.mlp.moe.experts,
        "u": config.block.mlp.moe.shared,
    }


# What a variant adds lies beside its block's other tensors under the parameter's own name, but for
# these, which were named before.
_VARIANTS = {
    "gate": Place("variant.gate.weight", "nd->dn"),
    "v_bias": Place("variant.v", "kh->kh"),
}


def places_of(names: Names, config: ModelConfig, about: str) -> dict[str, Place]:
    """The place of every parameter of a model, in the order of `names`.

    A bias lies beside its matrix or scale, and what a variant adds beside the block's other
    tensors, so that neither needs a row.

    Args:
      names: the rows of a file format.
      about: which files these are, for errors.

    Raises:
      WeightsError: such files have no place for a parameter.
    """
    order = list(names)
    places = {name: _place(names, name, axes, about) for name, axes in _axes_of(_small(config))}
    return dict(sorted(places.items(), key=lambda item: _rank(order, item[0])))


def _small(config: ModelConfig) -> ModelConfig:
    """The least configuration with the same parameters: the sizes in a file may still be lies."""
    block = config.block
    attention = replace(
        block.attention, heads=2, kv_heads=1, head_dim=2, rope=RopeConfig(), position="none",
        slopes=None, extra_keys=1,
    )
    moe = block.mlp.moe
    if moe.experts:
        moe = replace(moe, experts=1, active=1, shared=min(1, moe.shared))
    block = replace(block, attention=attention, mlp=replace(block.mlp, hidden=1, moe=moe))
    patches = config.embed.patches
    if patches is not None:
        patches = replace(
            patches, size=1, grid=(1, 1), channels=1, mean=patches.mean[:1], std=patches.std[:1]
        )
    embed = replace(config.embed, vocab_size=1, patches=patches)
    return replace(
        config, depth=1, width=2, context_length=1, embed=embed, block=block, others=(),
        registers=min(1, config.registers),
    )


@functools.lru_cache
def _axes_of(config: ModelConfig) -> list[tuple[str, str]]:
    """Every parameter of a model with one key/value head, and the letters of its axes."""
    found = []
    for name, leaf in parameters(abstract(config)).items():
        letters = parameter(name).letters
        shape = leaf.shape[len(leaf.shape) - len(letters) :]
        pairs = zip(letters, shape, strict=True)
        axes = ["k" if letter == "n" and size == 1 else letter for letter, size in pairs]
        found.append((name, "".join(axes)))
    return found


def _rank(order: Sequence[str], name: str) -> int:
    matrix = _matrix_of(name)
    return order.index(matrix) if matrix in order else len(order)


def _matrix_of(name: str) -> str:
    """The matrix or scale that a bias belongs to; any other parameter itself."""
    if name.endswith(".bias"):
        return f"{name.removesuffix('.bias')}.scale"
    return name.removesuffix("_bias")


def _place(names: Names, name: str, axes: str, about: str) -> Place:
    if name in names:
        return names[name]
    if name.startswith(_VARIANT):
        return _of_variant(names, name, axes)
    if (matrix := _matrix_of(name)) in names:
        return _beside(names[matrix], len(axes))
    raise WeightsError(
        f"{about} has no place for the parameter {name}; expected: one in its table of names"
    )


_VARIANT = "blocks.attn.variant."


def _of_variant(names: Names, name: str, axes: str) -> Place:
    start = names["blocks.attn.out"].template.partition("{l}")[0]
    short = name.removeprefix(_VARIANT)
    # Several extra keys are more rows: one of them looks as it did when there was no axis for them.
    file = f"(r{axes[1]}){axes[2:]}" if axes[0] == "r" and len(axes) > 1 else axes
    place = _VARIANTS.get(short, Place(f"variant.{short}", f"{file}->{axes}"))
    return replace(place, template=f"{start}{{l}}.{place.template}")


def _beside(matrix: Place, axes: int) -> Place:
    """The place of a bias, whose axes are the last ones of its matrix."""
    file, result = matrix.layout.split("->")
    kept = "".join(re.findall(_AXIS, result)[-axes:])
    for letter in set(result) - set(kept) - set("()"):
        file = file.replace(letter, "")
    template = matrix.template.removesuffix("weight") + "bias"
    return Place(template, f"{file.replace('()', '')}->{kept}")


def fused(places: Names) -> list[dict[str, Place]]:
    """The places in groups that lie in the same tensor, in their order."""
    groups: dict[str, dict[str, Place]] = {}
    for name, place in places.items():
        groups.setdefault(place.template, {})[name] = place
    return list(groups.values())


def file_shape(group: Names, sizes: Sizes) -> tuple[int, ...]:
    """The shape of the file's array that holds these parameters (of one block)."""
    rule, sizes = _rule_of(group), _whole(group, sizes)
    return tuple(math.prod(sizes[letter] for letter in axis) for axis in rule.file)


def split(group: Names, array: np.ndarray, sizes: Sizes) -> dict[str, np.ndarray]:
    """The parameters (of one block) that the file's array holds; views where possible."""
    along, whole = _rule_of(group).along, _whole(group, sizes)
    array = array.reshape([whole[letter] for letter in _rule_of(group).letters])
    found, start = {}, 0
    for name, place in group.items():
        rule, part = _rule(place.layout), array
        if rule.share:
            end = start + sizes[rule.share]
            part, start = array[(slice(None),) * along + (slice(start, end),)], end
        # What is in the file's axes alone is the share "1".
        rest = [n for n, letter in enumerate(rule.letters) if letter not in "".join(rule.result)]
        letters = [letter for n, letter in enumerate(rule.letters) if n not in rest]
        part = part.squeeze(tuple(rest))
        part = part.transpose([letters.index(letter) for letter in "".join(rule.result)])
        part = part.reshape(
            [math.prod(sizes[letter] for letter in axis) for axis in rule.result]
        )
        found[name] = part - np.float32(place.added) if place.added else part
    return found


def join(group: Names, parts: Mapping[str, np.ndarray], sizes: Sizes) -> np.ndarray:
    """The file's array of these parameters (of one block); the inverse of `split`."""
    pieces = []
    for name, place in group.items():
        rule = _rule(place.layout)
        letters = "".join(rule.result)
        part = parts[name] + np.float32(place.added) if place.added else parts[name]
        part = part.reshape([sizes[letter] for letter in letters])
        part = part.transpose([letters.index(x) for x in rule.letters if x in letters])
        pieces.append(part.reshape([sizes[letter] for letter in rule.letters]))
    whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces, _rule_of(group).along)
    return np.ascontiguousarray(whole.reshape(file_shape(group, sizes)))


def read_stack(
    place: Place, layer: int, sizes: Sizes, read: Callable[[str], np.ndarray]
) -> np.ndarray:
    """The file's array of a place, which may be spread over tensors."""
    parts = [read(name) for name in place.tensors(layer, sizes)]
    return np.stack(parts) if place.index else parts[0]


_AXIS = r"\(\w+\)|\w"


class _Rule(NamedTuple):
    """A layout taken apart.

    Attributes:
      file, result: the letters of each axis, without brackets.
      share: the letter in brackets, or "".
      along: its index among the letters of the file.
    """

    file: tuple[str, ...]
    result: tuple[str, ...]
    share: str
    along: int

    @property
    def letters(self) -> str:
        return "".join(self.file)


@functools.lru_cache
def _rule(layout: str) -> _Rule:
    share = re.search(r"\[(\w)\]", layout)
    along = 0 if share is None else len(re.findall(r"\w", layout[: share.start()]))
    sides = layout.replace("[", "").replace("]", "").split("->")
    file, result = (
        tuple(axis.strip("()") for axis in re.findall(_AXIS, side)) for side in sides
    )
    return _Rule(file, result, share[1] if share else "", along)


def _rule_of(group: Names) -> _Rule:
    return _rule(next(iter(group.values())).layout)


def _whole(group: Names, sizes: Sizes) -> Sizes:
    """Sizes in which the letter of the first share stands for all of them together."""
    rule = _rule_of(group)
    if not rule.share:
        return sizes
    total = sum(sizes[_rule(place.layout).share] for place in group.values())
    return {**sizes, rule.share: total}
