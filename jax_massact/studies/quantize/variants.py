"""The variants of a model that `massact quantize` compares: what runs on which tokens."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from jax_massact.errors import ConfigError, DataError
from jax_massact.measure.fold import check_foldable, fold
from jax_massact.nn.edits import Clips
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer
from jax_massact.studies.collector import Found
from jax_massact.studies.first_token import find_first_token
from jax_massact.studies.frame import Prepared
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.quantize.settings import QuantizeConfig
from jax_massact.studies.targets import Means, TargetPlace

HALF = 0.5  # of the mean, to which `halved` clips the dimensions of massive activations


class Text(NamedTuple):
    """Sequences of one variant.

    Attributes:
      inputs: what the model takes.
      kept: tokens that stay in float.
      massive: tokens with massive activations, whatever becomes of them.
      edits: changes to all of the sequences.
    """

    inputs: Inputs
    kept: Bool[np.ndarray, "S P+T"]
    massive: Bool[np.ndarray, "S P+T"]
    edits: Clips | None

    def rows(self, rows: slice, size: int) -> Bool[np.ndarray, "B T"]:
        """What is kept in one batch, filled up like its tokens."""
        return self.kept[np.minimum(np.arange(rows.start, rows.start + size), rows.stop - 1)]


class Variant(NamedTuple):
    """One variant: a model, the text it is measured on, and the text its ranges are from."""

    name: str
    model: Transformer | BlockSource
    held_out: Text
    calibration: Text


class Read(NamedTuple):
    """A text, and what one pass of the original model found in each of its sequences."""

    inputs: Inputs
    found: Sequence[Sequence[Found]]


def make_variants(
    model: Transformer | BlockSource,
    held_out: Read,
    calibration: Read,
    targets: Sequence[TargetPlace],
    means: Sequence[Means],
    prepared: Prepared,
    config: QuantizeConfig,
    kept: Sequence[Bool[np.ndarray, "S T"]],
) -> tuple[list[Variant], str | None, list[str]]:
    """The variants that there are, the first token's name, and what had to be left out, and why.

    Args:
      kept: the tokens of `config.keep`, in held-out and calibration text.
    """
    notices: list[str] = []
    clips = _clips(targets, means)
    plain = [_text(part, clips) for part in (held_out, calibration)]
    # Edits of the same shape, which share a compilation, that change nothing.
    none = clips and dataclasses.replace(clips, limit=np.full_like(clips.limit, np.inf))
    same = [text._replace(edits=none) for text in plain]
    of = lambda name, model, texts: Variant(name, model, *texts)
    variants = [of("original", model, same)]
    first, name = None, None
    if {"first", "folded"} & set(config.names):
        try:
            check_foldable(model.config)
            first = find_first_token(prepared.tokenizer, config.first_token)
            name = held_out.inputs.name(first)
        except (ConfigError, DataError) as error:
            notices.append(f"variants first and folded are left out: {error}")
    if first is not None:
        bare = [part.inputs for part in (held_out, calibration)]
        if prepared.bos:
            bare = [i.without_first() for i in bare]
            notices.append("every sequence begins with BOS: variant first is the original")
        elif "first" in config.names:
            variants.append(of("first", model, [_bare(i.behind(first)) for i in bare]))
        if "folded" in config.names:
            folded = fold(model, first)
            variants.append(of("folded", folded, [_bare(i) for i in bare]))
    if "kept" in config.names:
        texts = [text._replace(kept=mask) for text, mask in zip(same, kept, strict=True)]
        variants.append(of("kept", model, texts))
    if "halved" in config.names and targets:
        variants.append(of("halved", model, plain))
    return variants, name, notices


def _text(part: Read, edits: Clips | None) -> Text:
    shape = len(part.inputs), part.inputs.length
    return Text(part.inputs, np.zeros(shape, bool), massive_tokens(part.found, shape), edits)


def _clips(targets: Sequence[TargetPlace], means: Sequence[Means]) -> Clips | None:
    """The dimensions of massive activations at half their mean at most, where they are written."""
    if not targets:
        return None
    return Clips(
        np.array([target.layer for target in targets], np.int32),  # pyright: ignore[reportArgumentType]
        np.array([target.dim for target in targets], np.int32),  # pyright: ignore[reportArgumentType]
        np.array([HALF * abs(mean.overall) for mean in means], np.float32),  # pyright: ignore
    )


def _bare(inputs: Inputs) -> Text:
    none = np.zeros((len(inputs), inputs.length), bool)
    return Text(inputs, none, none, None)


def massive_tokens(
    found: Sequence[Sequence[Found]], shape: tuple[int, int]
) -> Bool[np.ndarray, "S T"]:
    """Tokens with a massive activation after any block: strict, or relaxed where none is."""
    strict = any(hit.strict for hits in found for hit in hits)
    mask = np.zeros(shape, bool)
    for sequence, hits in enumerate(found):
        for hit in hits:
            mask[sequence, hit.position] |= hit.strict or not strict
    return mask


def rotations_of(model: Transformer | BlockSource, seed: int) -> dict[str, np.ndarray]:
    """A random rotation for each size of activations that can be rounded."""
    c = model.config
    a = c.block.attention
    sizes = {c.width, a.heads * a.head_dim, a.kv_heads * a.head_dim, c.block.mlp.units}
    return {str(size): _rotation(size, seed) for size in sizes}


def _rotation(size: int, seed: int) -> np.ndarray:
    """Uniform over all rotations (Mezzadri 2007)."""
    q, r = np.linalg.qr(np.random.default_rng([seed, size]).standard_normal((size, size)))
    return (q * np.sign(np.diag(r))).astype(np.float32)


def first_tokens(shape: tuple[int, int]) -> Bool[np.ndarray, "S T"]:
    """Position 0, which is a learned row in front where there is one."""
    return np.broadcast_to(np.arange(shape[1]) == 0, shape)

