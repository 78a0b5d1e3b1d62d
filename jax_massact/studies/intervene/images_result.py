"""The schema of `intervene.json` of an encoder of images."""

from typing import TypedDict

from jax_massact.results import DataInfo, DefinitionInfo, MassiveRecord, ModelInfo, Remarks
from jax_massact.studies.image_scores import ImageScore


class ImageTarget(TypedDict):
    """One (layer, dimension) whose activations are changed."""

    layer: int
    dim: int
    # "strict", "relaxed", or "largest": nothing is massive, and these are the largest activations.
    kind: str
    tokens: dict[str, int]  # where they are in how many pictures: {"CLS": 2}; 16 at most
    activations: int  # changed ones
    value_mean: float  # over pictures, of the mean in each picture
    value_std: float
    next_dim: int  # of the control that is set to zero: the largest other one at these tokens


class ImageInterveneResult(Remarks):
    schema: int
    model: ModelInfo
    data: DataInfo
    classes: int  # of the pictures; 0: they have no labels
    definition: DefinitionInfo
    massive: list[MassiveRecord]
    targets: list[ImageTarget]
    scores: dict[str, ImageScore]  # "original", then the changes; of several draws their mean
    draws: int  # of the random vector
    config: dict
    seconds: dict[str, float]
    versions: dict[str, str]
