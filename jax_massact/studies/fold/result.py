"""The schema of `fold.json`."""

from typing import NotRequired, TypedDict

from jax_massact.results import (
    DataInfo,
    DefinitionInfo,
    LoadsIn,
    MassiveRecord,
    MediumResult,
    ModelInfo,
    OutlierFeature,
    Remarks,
)


class Followed(TypedDict):
    """Mean signed value of a dimension after every block, and with something else set to zero."""

    dim: int
    original: list[float]
    zeroed: list[float]


class DirectPart(TypedDict):
    """How much of an outlier feature attention to k' writes, without detours through other blocks.

    Where attention gives it, the weights on v' add up to at most 1: it sets a level.
    """

    dim: int
    layer: int  # where its mean is largest
    mean: float  # over tokens
    direct: float  # of that, written by k', v' up to there


class OutlierStudy(TypedDict):
    """Massive activations and outlier features, on the sequences of `medium.sequences`."""

    before: list[OutlierFeature]  # of the original, with its first token
    after: list[OutlierFeature]  # of the folded model
    # Over the other tokens: the largest |difference| of the two models' residual streams over the
    # largest |h|. Folding leaves them alone, by construction, and with them the outlier features.
    stream_difference: float
    # Of each outlier feature: means over tokens that are not massive, with the massive activations
    # set to zero where they first appear. Empty: nothing is massive in these sequences.
    outliers_without_massive: list[Followed]
    # Of each massive dimension: its value, with the outlier features set to zero at all other
    # tokens where they first appear.
    massive_without_outliers: list[Followed]
    direct: list[DirectPart]


class FoldResult(Remarks):
    """Whether the first token's keys and values as explicit k', v' leave the model unchanged."""

    schema: int
    model: ModelInfo  # the folded model
    first_token: str
    first_token_id: int
    data: DataInfo
    # Over all tokens but the first: the largest |difference| of logits over the largest |logit|.
    logit_difference: float
    allowed_difference: float
    unchanged: bool
    perplexity_original: float
    perplexity_folded: float
    definition: DefinitionInfo
    massive_before: list[MassiveRecord]
    massive_after: list[MassiveRecord]  # what remains, at other tokens than the first
    largest_before: float  # |resid_post| at any token and layer
    largest_after: float
    # Of the sequences, how many have massive activations (strict) in the folded model all the same,
    # and in how many of these it is the first token that is left which becomes massive.
    massive_sequences_after: int
    massive_first_after: int
    # Of the folded model, and of both, where `medium.sequences` asks for it.
    medium: NotRequired[MediumResult]
    outliers: NotRequired[OutlierStudy]
    loads_in: LoadsIn  # which programs read the folded model
    saved_to: str | None
    config: dict
    seconds: dict[str, float]
    versions: dict[str, str]
