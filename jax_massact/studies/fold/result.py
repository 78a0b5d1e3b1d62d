"""The schema of `fold.json`."""

from jax_massact.results import (
    DataInfo,
    DefinitionInfo,
    MassiveRecord,
    ModelInfo,
    Remarks,
)


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
    saved_to: str | None
    config: dict
    seconds: dict[str, float]
    versions: dict[str, str]
