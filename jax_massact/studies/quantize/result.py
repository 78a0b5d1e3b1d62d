"""The schema of `quantize.json`: plain dictionaries, typed and documented, no arrays.

Conventions as in `results`. Losses are in nats per token, perplexity is exp of the mean loss over
all scored tokens.
"""

from typing import TypedDict

from jax_massact.results import DefinitionInfo, MassiveRecord, ModelInfo, Remarks, Writer
from jax_massact.studies.interventions_result import InterveneData, Spread


class RowRecord(TypedDict):
    """The perplexity of one variant with one kind of rounding."""

    variant: str  # original, first, folded, kept or halved
    sites: str  # as in the settings
    format: str  # float (as it is), fp8 or intN
    granularity: str  # tensor (one range for a sequence), token or static
    range: str  # minmax or percentile:P
    bits: int | None  # of an activation; None: not rounded
    weights: int | None  # bits of the weights; None: not rounded
    perplexity: float
    loss: Spread
    ratio: float  # to the perplexity of the same variant in float
    stderr: float | None  # standard error of ln(ratio) over sequences; None: one sequence


class RangeRecord(TypedDict):
    """What one 8-bit range for a sequence means at one site of one block; means over sequences."""

    site: str
    layer: int
    top: float  # the largest magnitude
    top_token: str  # the token where it is most often
    top_position: int
    top_without: float  # the largest at tokens that are not massive
    # The largest over the median of the tokens' own largest; None: that is 0.
    token_ratio: float | None
    # log2(top / top_without), by which the other tokens' numbers are coarser; None: those are 0.
    bits_lost: float | None
    # Signal over quantization noise of the other tokens, dB, in a range with and without massive
    # ones; None where it is infinite.
    sqnr: float | None
    sqnr_without: float | None
    zero_share: float  # share of the other tokens' activations that become 0
    # Dimensions that LLM.int8() would keep in 16 bits: of all tokens, of those not massive.
    columns: float
    columns_without: float


class SensitivityRecord(TypedDict):
    """One site of one block rounded to int8, one range for a sequence, all others in float."""

    variant: str
    site: str
    layer: int
    loss_change: float
    stderr: float | None  # over sequences


class BitsRecord(TypedDict):
    """The fewest bits, one range for a sequence, with which perplexity is at most 10% higher."""

    variant: str
    sites: str
    bits: int | None  # None: not even the most, 16
    ratio: float | None  # of perplexity, at that number


class QuantizeVerdict(TypedDict):
    """What the numbers say."""

    writer: Writer | None  # of the largest massive activation; None: there is none
    remover: Writer | None
    # Blocks that lose most when their `mlp_hidden` alone is rounded, the worst first; those that
    # add more than 0.02 to the loss.
    sensitive: list[int]
    others: list[int]  # of these, the ones that neither write nor remove
    bits_saved: dict[str, int]  # by folding: of `linear` and of `residual`, where both are known


class QuantizeResult(Remarks):
    schema: int
    model: ModelInfo
    data: InterveneData
    definition: DefinitionInfo
    massive: list[MassiveRecord]  # found on the calibration text
    first_token: str | None  # of `first` and `folded`
    kept_tokens: float | None  # in float, of each sequence on average; None: no such variant
    rows: list[RowRecord]
    ranges: list[RangeRecord]
    sensitivity: list[SensitivityRecord]
    bits: list[BitsRecord]
    verdict: QuantizeVerdict | None  # None: numbers that are not finite
    config: dict
    seconds: dict[str, float]
    versions: dict[str, str]
