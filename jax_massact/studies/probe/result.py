"""The schema of `probe.json`."""

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


class ProbeResult(Remarks):
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
