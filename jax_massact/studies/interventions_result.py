"""The schema of `intervene.json`: plain dictionaries, typed and documented, no arrays.

Conventions as in `results`. Losses are in nats per token, perplexity is exp of the mean loss
over all scored tokens.
"""

from typing import Literal, TypedDict

from jax_massact.results import DefinitionInfo, MassiveRecord, ModelInfo, Remarks

Verdict = Literal["needed", "rebuilt", "needed and rebuilt", "not needed"]


class KindMean(TypedDict):
    """The value of one dimension at one kind of token, over the calibration text."""

    kind: str  # "first", "delimiter" or "other"
    mean: float
    std: float
    count: int  # activations


class Target(TypedDict):
    """One (layer, dimension) whose massive activations are changed."""

    layer: int
    dim: int
    strict: bool  # False: over the relaxed threshold only
    means: list[KindMean]
    # Activations of the held-out text that are changed, and those of the control.
    activations: int
    control_dim: int
    control_activations: int


class Trajectory(TypedDict):
    """Mean signed value at the places that were set to zero, after every block."""

    dim: int
    original: list[float]
    zero: list[float]


class Rebuilt(TypedDict):
    """What is massive after the targets were set to zero."""

    verdict: Verdict
    # The targets' dimensions that are over their threshold again after a later block, at the same
    # tokens or others.
    dims: list[int]
    # Everything over the thresholds in the edited run, at layers after the first edit.
    massive: list[MassiveRecord]
    trajectories: list[Trajectory]


class Spread(TypedDict):
    """Mean loss, and its standard deviation over sequences."""

    mean: float
    std: float


class InterveneData(TypedDict):
    source: str
    calibration_sequences: int
    sequences: int  # held out; none of them is in the calibration text
    window: int  # tokens in each sequence, BOS included
    stride: int  # tokens from one window to the next of a document
    scored_tokens: int  # every token but the first of each window
    bos: bool
    bos_setting: str
    bos_token: str | None


class InterveneResult(Remarks):
    schema: int
    model: ModelInfo
    data: InterveneData
    definition: DefinitionInfo
    massive: list[MassiveRecord]  # found on the calibration text
    targets: list[Target]  # empty: none found, and nothing was changed
    # Keys: "original", "zero", "mean", "fraction_0.5" (and so on), "control_zero".
    perplexity: dict[str, float]
    loss: dict[str, Spread]
    after_zero: Rebuilt | None  # None: no targets, or numbers that are not finite
    config: dict
    seconds: dict[str, float]
    versions: dict[str, str]
