"""The schema of `probe.json`: plain dictionaries, typed and documented, no arrays.

Conventions. Layers count from 0 and `layer` means the residual stream after that block
(`resid_post`); positions and dimensions count from 0. Every magnitude is in the units of the
residual stream. "Mean" is the mean over the probed sequences unless said otherwise.
"""

from typing import NamedTuple, TypedDict

import numpy as np

SCHEMA_VERSION = 1


class Remarks(TypedDict):
    """What stands before the findings of every result.

    Attributes:
      warnings: what is not finite. A result with any has no verdict.
      notices: what the user should know, though the numbers are sound.
    """

    warnings: list[str]
    notices: list[str]


class ModelInfo(TypedDict):
    name: str  # as the user gave it, the last part of a path
    source: str  # the file, folder or resource that was read
    family: str
    parameters: int
    depth: int
    width: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    vocab_size: int
    dtype: str  # of the computation


class DataInfo(TypedDict):
    source: str  # what was read, in words
    sequences: int
    sequence_length: int  # tokens in each, BOS included
    bos: bool  # whether every sequence begins with the BOS token
    bos_setting: str  # auto, true or false
    bos_token: str | None


class ThresholdInfo(TypedDict):
    """|a| > magnitude and |a| >= ratio x median of the sequence at that layer."""

    magnitude: float
    ratio: float


class OutlierThreshold(TypedDict):
    """As ThresholdInfo, at more than `share` of the tokens of a sequence."""

    magnitude: float
    ratio: float
    share: float


class DefinitionInfo(TypedDict):
    strict: ThresholdInfo
    relaxed: ThresholdInfo
    outlier: OutlierThreshold
    # Strict: in more than this share of the sequences, at this many layers or more.
    min_share: float
    min_layers: int


class TopEntry(TypedDict):
    """The k-th largest magnitude of a sequence, over tokens x dimensions."""

    value: float  # mean of the signed value
    magnitude: float  # mean of |value|
    magnitude_std: float  # standard deviation over sequences
    position: int  # the most frequent position, dimension and token of the k-th largest
    dim: int
    token: str
    share: float  # share of sequences in which that position and dimension are the k-th largest


class LayerStats(TypedDict):
    layer: int
    top: list[TopEntry]
    median: float  # mean of the exact median of |a| over tokens x dimensions
    quantile: dict[str, float]  # {"0.9": ..., "0.99": ...}: means of the exact quantiles of |a|
    kurtosis: float  # mean of E[(a - mean)^4] / var^2
    max: float  # the largest magnitude of all sequences, not a mean
    count_above: dict[str, float]  # {"10": ..., "100": ..., "1000": ...}: means of counts
    dims_above: dict[str, float]  # mean number of dimensions that hold at least one such value
    tokens_above: dict[str, float]  # mean number of tokens that hold at least one such value
    strict: float  # mean number of activations over the strict, the relaxed threshold
    relaxed: float
    nonfinite: int  # NaN or infinite activations, summed over sequences; 0 in a sound model


class Writer(TypedDict):
    layer: int  # -1: it is already in the embedding
    sublayer: str  # "attn", "mlp" or "embedding"
    value: float  # mean contribution of that sublayer at the massive activation's place


class PositionCount(TypedDict):
    position: int
    sequences: int


class TokenCount(TypedDict):
    token: str
    kind: str  # "first", "delimiter" or "other"
    sequences: int


class MassiveRecord(TypedDict):
    """One dimension that carries massive activations, merged over layers and sequences."""

    dim: int
    # Over the strict threshold in enough sequences and layers; False: relaxed only.
    strict: bool
    first_layer: int
    last_layer: int
    # Where, between those, the mean over all sequences is largest; the values below are from there.
    peak_layer: int
    # The dimension's largest value in each sequence, over the threshold or not.
    value_mean: float
    value_std: float
    value_sequences: int  # of so many: all, unless it is too small in some to be followed
    ratio: float  # mean of |value| / median
    share_of_sequences: float  # share of sequences in which it is found
    positions: list[PositionCount]  # most frequent first, 16 at most
    tokens: list[TokenCount]  # most frequent first, 16 at most
    # Shares of its occurrences: "first", "delimiter", "other", or "cls", "register", "patch".
    kinds: dict[str, float]
    written_by: Writer
    removed_by: Writer | None  # None: still there after the last block, or it fades away
    trajectory: list[float | None]  # mean signed value at every layer; None where it is not found


class OutlierFeature(TypedDict):
    """A dimension that is large at most tokens: not massive (Dettmers et al. 2022, LLM.int8())."""

    dim: int
    first_layer: int
    last_layer: int
    share_of_tokens: float  # largest mean share over layers
    share_of_sequences: float
    magnitude: float  # mean magnitude over its large tokens, at the layer where that is largest


class LoadsIn(TypedDict):
    """Which programs read a model that was saved."""

    programs: list[str]
    # What any other program would lose that read it as the nearest family: settings and values.
    lost: list[str]


class MediumDim(TypedDict):
    """Activations of medium scale in one dimension, over the blocks where they are of one kind."""

    dim: int
    # feature: over the lower bound at more than half of the tokens; token: at fewer than 2%; mixed.
    kind: str
    first_layer: int
    last_layer: int
    peak_layer: int  # of those, where the squares of these activations add up to most
    activations: int  # over the sequences and these layers
    share: float  # of tokens over the lower bound, at the peak
    mean: float  # signed; over all tokens at the peak, of kind token over these activations
    # (E h)^2 / E h^2 over tokens, the smallest and the largest of these layers: 1 is a constant.
    # None of kind token.
    constancy: tuple[float, float] | None
    spread: float | None  # of kind token: std over mean of these activations at the peak
    tokens: list[TokenCount]  # of kind token, the most frequent first: activations, not sequences
    written_by: list[Writer]  # what most of the mean is from, 3 at most
    # The MLP unit that gives most of what the first MLP among `written_by` adds; None: there is no
    # such MLP, or it is a mixture.
    unit: int | None
    unit_share: float | None


class MediumLayer(TypedDict):
    layer: int
    activations: int
    energy: float  # share of the stream's mean square in outlier features (kind feature)
    constant: float  # share of it in their means alone
    divided: float  # by how much more a norm divides the stream because of these activations


class MediumResult(TypedDict):
    """Activations between `low` and `high`, after all blocks but the last."""

    low: float
    high: float
    sequences: int  # that the statistics are from
    activations: int
    kinds: dict[str, float]  # {"feature", "mixed", "token"}: shares of the activations
    dims: list[MediumDim]  # most activations first, 24 at most
    layers: list[MediumLayer]
    held_out: int  # sequences of the interventions
    # Keys: original, zero, mean (by layer and dimension), clip (to `low`), control (as many others,
    # next above the median of their token, set to zero).
    perplexity: dict[str, float]


class Prompt(TypedDict):
    """The first probed sequence, for the page: at most 512 tokens."""

    tokens: list[str]
    # (position, dim) of massive activations in this sequence, with their record's `dim`.
    massive: list[tuple[int, int]]


class ActivationMap(NamedTuple):
    """|resid_post| of the first sequence, for pictures: largest magnitude in each bin of dims.

    Attributes:
      magnitude: float32 [L, tokens, bins]; at most 64 tokens and 128 bins.
      first_dim: int [bins]; a bin holds the dimensions from its own first up to the next one's.
      tokens: the token strings, one per row.
    """

    magnitude: np.ndarray
    first_dim: np.ndarray
    tokens: list[str]
