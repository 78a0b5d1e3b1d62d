"""The schema of `registers.json`."""

from typing import TypedDict

from jax_massact.results import DataInfo, ModelInfo, Remarks
from jax_massact.studies.image_scores import ImageScore, Similarity


class Neuron(TypedDict):
    """An MLP unit, with its mean |activation| at outlier patches and at all other patches."""

    block: int
    unit: int
    score: float
    elsewhere: float


class NormRow(TypedDict):
    """Means over pictures, after one block."""

    layer: int
    median: float  # of the patches' norms
    max: float
    outliers: float  # share of the patches
    register: float | None  # norm of the appended token
    attention: float | None  # share that patches give to the appended token, or to k'


class Trial(TypedDict):
    """The calibration pictures with so many neurons moved, after the block of the outliers."""

    neurons: int
    outliers: float  # share of the patches
    ratio: float  # of a picture's largest patch norm to its median


class Arm(TypedDict):
    """One change, on the other pictures; of several draws the mean."""

    score: ImageScore
    patches: Similarity  # of the patches after the final norm, each picture's mean
    norms: list[NormRow]


class RegistersResult(Remarks):
    schema: int
    model: ModelInfo
    data: DataInfo  # the pictures that the changes are scored on
    calibration: int  # the others, in which outliers and neurons are found
    # An outlier patch: norm > median + mads x MAD and > medians x median, of its picture's patches.
    rule: dict[str, float]
    # "outliers", or "largest": there are none, and the largest patch of each picture is taken.
    kind: str
    layer: int  # after which block they are looked for
    begins: int  # after which block half of them have begun
    last_block: int  # neurons are of the blocks up to here
    outliers: float  # share of the calibration pictures' patches
    chosen: int  # patches at which neurons are scored
    neurons: list[Neuron]  # those that are moved, the largest score first
    trials: list[Trial]  # the first without any neuron
    arms: dict[str, Arm]
    draws: int
    config: dict
    seconds: dict[str, float]
    versions: dict[str, str]
