"""The schema of `fold.json` of an encoder of images."""

from typing import TypedDict

from jax_massact.results import DataInfo, DefinitionInfo, MassiveRecord, ModelInfo, Remarks
from jax_massact.studies.image_scores import ImageScore


class Distance(TypedDict):
    """|new - old| / |old| of a picture, over pictures."""

    mean: float
    max: float


class FoldImagesResult(Remarks):
    """Whether registers that are fixed to their means can be constant keys and values, and what
    the model loses."""

    schema: int
    model: ModelInfo  # the folded model
    registers: int
    calibration: int  # pictures that the means are over; all else is of the others
    data: DataInfo
    # Of the folded model to the one whose registers are fixed to their means at every block's
    # input: the largest |difference| over the largest magnitude. "stream": after the last block, of
    # CLS and patches; "features": of what the model pools.
    difference: dict[str, float]
    allowed_difference: float
    unchanged: bool
    # Scores of the unedited and of the folded model, cosines to the unedited one.
    original: ImageScore
    folded: ImageScore
    distance: dict[str, Distance]  # of the folded to the unedited model, the same two
    definition: DefinitionInfo
    massive_before: list[MassiveRecord]  # of the unedited model
    massive_after: list[MassiveRecord]  # of the folded model
    largest_before: float  # |resid_post| at any token and layer
    largest_after: float
    saved_to: str | None
    config: dict
    seconds: dict[str, float]
    versions: dict[str, str]
