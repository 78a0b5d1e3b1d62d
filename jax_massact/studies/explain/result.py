"""The schema of `explain.json`: plain dictionaries, typed and documented.

Conventions as in `results`; the measures are defined in `measure.attention` and
`measure.mechanism`.
"Massive tokens" are those that carry a massive activation at any of the layers at which its
dimension is massive. A list of one number for each query head is ordered by head. None: there is
nothing to measure it on.
"""

from typing import NamedTuple, TypedDict

import numpy as np

from jax_massact.results import (
    DataInfo,
    DefinitionInfo,
    MassiveRecord,
    ModelInfo,
    Remarks,
)


class MeanStd(TypedDict):
    """Over sequences."""

    mean: float
    std: float


class AttentionRecord(TypedDict):
    sink_rate: MeanStd  # share of heads whose mean attention to the first token exceeds epsilon
    first: list[float]  # share of attention mass on the first token, each head
    massive: list[float] | None  # on massive tokens, from queries that see one and are not massive
    extra: list[float] | None  # on the extra key of the attention variant
    logit_massive: list[float] | None  # mean logit q.k / sqrt(H) to massive keys, each head
    logit_other: list[float]  # to other keys


class VectorStats(TypedDict):
    """One kind of vector (normed stream, keys before rotary positions, values, stream)."""

    norm_massive: float | None  # mean L2 norm
    norm_other: float
    cosine_massive: float | None  # mean cosine between massive tokens of different sequences
    cosine_other: float | None  # the same for ordinary tokens
    dims_massive: float | None  # effective number of dimensions, (sum x^2)^2 / sum x^4
    dims_other: float


class UpdateStats(TypedDict):
    """One part of the value update, over the queries that see a massive token."""

    cosine: MeanStd  # mean cosine to the sequence's mean update
    deviation: MeanStd  # root mean square distance from that mean, over its norm
    cosine_pooled: float  # the same, to the one mean of all sequences
    deviation_pooled: float
    share: MeanStd  # projection on the whole update: mean of u.z / |z|^2; the two parts add up to 1


class ExplainLayer(TypedDict):
    layer: int
    attention: AttentionRecord
    stream: VectorStats  # resid_pre
    normed: VectorStats
    keys: VectorStats
    values: VectorStats
    value_drain: float | None  # norm_massive / norm_other of the values
    massive_update: UpdateStats | None  # sum over massive tokens of p v
    other_update: UpdateStats | None  # sum over the other tokens


class Location(TypedDict):
    """Where massive activations sit in many sequences: the paper's constancy table."""

    bos: bool
    sequences: int
    sequence_length: int
    # value_mean +- value_std, kinds, tokens and positions of each dimension
    massive: list[MassiveRecord]


class ExplainResult(Remarks):
    schema: int
    model: ModelInfo
    data: DataInfo
    definition: DefinitionInfo
    massive: list[MassiveRecord]  # found on this text
    massive_tokens: float  # mean number in a sequence
    sink_epsilon: float
    sink_length: int  # only the first so many queries count for the sink rate
    sink_rate: MeanStd  # over all layers and heads; spread over sequences
    layers: list[ExplainLayer]
    locations: list[Location]  # without BOS, and with it where the tokenizer has one
    config: dict
    seconds: dict[str, float]
    versions: dict[str, str]


class AttentionMap(NamedTuple):
    """Attention of the first sequence for pictures, averaged over heads.

    Attributes:
      weight: float32 [L, tokens, tokens], queries then keys; rows sum to 1 less the extra key's
        share. At most 48 tokens.
      tokens: the token strings.
      massive: which of them are massive tokens.
    """

    weight: np.ndarray
    tokens: list[str]
    massive: list[bool]
