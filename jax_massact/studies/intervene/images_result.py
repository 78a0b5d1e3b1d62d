"""The schema of `intervene.json` of an encoder of images."""

from typing import TypedDict

from jax_massact.results import DataInfo, DefinitionInfo, MassiveRecord, ModelInfo, Remarks


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


class Similarity(TypedDict):
    """Cosine to the unedited output, over pictures."""

    mean: float
    min: float


class ImageScore(TypedDict):
    """What a change does.

    Attributes are null where the model or the pictures do not have what they need.
    """

    features: Similarity  # of what the model pools
    cls: Similarity | None  # of CLS after the final norm
    top1_same: float | None  # pictures with the head's first choice unchanged
    knn: float | None  # accuracy of 20 nearest neighbours among the other pictures
    # Accuracy of a linear classifier of the unedited features of every second picture, on the rest.
    linear: float | None


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
