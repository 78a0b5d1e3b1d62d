"""The schema of `probe.json`."""

from typing import TypedDict

from jax_massact.results import (
    DataInfo,
    DefinitionInfo,
    LayerStats,
    MassiveRecord,
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
    prompt: Prompt
    config: dict  # the settings of the run, resolved
    seconds: dict[str, float]  # load, compile, run
    versions: dict[str, str]
