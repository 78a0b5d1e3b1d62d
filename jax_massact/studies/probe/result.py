"""The schema of `probe.json`."""

from typing import NotRequired, TypedDict

from jax_massact.results import (
    DataInfo,
    DefinitionInfo,
    LayerStats,
    MassiveRecord,
    MediumResult,
    ModelInfo,
    OutlierFeature,
    Prompt,
    Remarks,
)


class SuperWeight(TypedDict):
    """The entry of a down projection through which most of a massive dimension is written."""

    layer: int
    dim: int  # a row of the matrix, as PyTorch has it
    column: int  # the MLP's unit
    expert: int | None  # of a mixture; None: the MLP serves every token
    tensor: str | None  # its name in the file
    weight: float
    # At one token: of the unit, and the share of its product with the weight in what all units add.
    activation: float
    share: float
    expert_share: float  # of all units of the expert; 1 where there are no experts
    sequence: int  # where the token is
    position: int


class TokenNorm(TypedDict):
    """L2 norms of resid_post over dimensions: means over pictures of their median and largest."""

    median: float
    max: float


class ImageLayer(TypedDict):
    """Means over pictures, of one layer."""

    layer: int
    norm: dict[str, TokenNorm]  # by kind: "cls", "register", "patch", of those that there are
    # Patches of a picture whose norm is above 150, 75, 30, the mean + 3 standard deviations of its
    # patches; and its outlier patches, which `ImageFindings.rule` defines.
    patches_above: dict[str, float]
    # Attention from each kind to each, and to "outlier" patches and "extra" keys: shares of 1.
    attention: dict[str, dict[str, float]]


class OutlierPatch(TypedDict):
    image: str
    row: int
    column: int
    norm: float
    cosine: float  # mean to its neighbours, as they are embedded


class ImageFindings(TypedDict):
    """What the probe of an encoder of images says beside what every probe says."""

    image_size: list[int]  # rows and columns, in pixels
    grid: list[int]  # of patches
    cls: bool
    registers: int
    layers: list[ImageLayer]
    attention_queries: int  # patches in each picture whose attention was measured
    # An outlier patch: norm > median + mads x MAD and > medians x median, of its picture's patches.
    rule: dict[str, float]
    outlier_layer: int  # where outliers stand out most, or the largest patch, if there are none
    outlier_share: float  # of all patches, there
    outlier_cosine: float | None
    other_cosine: float
    outliers: list[OutlierPatch]  # the largest there, 64 at most


class ProbeResult(Remarks):
    schema: int
    model: ModelInfo
    data: DataInfo
    definition: DefinitionInfo
    layers: list[LayerStats]
    massive: list[MassiveRecord]
    # Of the strict dimensions that an MLP writes, or else of the relaxed ones; 16 at most.
    super_weights: list[SuperWeight]
    outlier_features: list[OutlierFeature]
    medium: NotRequired[MediumResult]  # where `medium.sequences` asks for it
    prompt: Prompt
    images: NotRequired[ImageFindings]  # of an encoder of images
    config: dict  # the settings of the run, resolved
    seconds: dict[str, float]  # load, compile, run
    versions: dict[str, str]
