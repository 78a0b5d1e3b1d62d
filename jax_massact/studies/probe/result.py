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
)


class ProbeResult(TypedDict):
    schema: int
    model: ModelInfo
    data: DataInfo
    definition: DefinitionInfo
    layers: list[LayerStats]
    massive: list[MassiveRecord]
    outlier_features: list[OutlierFeature]
    prompt: Prompt
    config: dict  # the settings of the run, resolved
    seconds: dict[str, float]  # load, compile, run
    versions: dict[str, str]
