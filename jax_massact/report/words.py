"""Numbers, records, models and texts in words: the same in the terminal, on paper and on the page.

Layers and positions count from 0 everywhere. A record that meets the relaxed definition only is
never called massive without the word "relaxed".
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jax_massact.results import (
    DataInfo,
    DefinitionInfo,
    MassiveRecord,
    ModelInfo,
    OutlierFeature,
    Writer,
)

SAID_IN_FULL = 3  # records that get a sentence of their own; the others are counted and listed
KINDS = {
    "first": "the first token", "delimiter": "delimiter tokens", "other": "other tokens",
    "cls": "CLS", "register": "registers", "patch": "patches",
}
# The columns of a table of records that their headings do not explain.
COLUMNS = (
    "value: the largest of each sequence, mean and deviation over n sequences (those in which the "
    "dimension is among the largest), at the layer of its peak; ratio: to the median"
)
SUBLAYERS = {"attn": "attention", "mlp": "MLP"}


class Findings(NamedTuple):
    """What a report says first.

    Attributes:
      lines: the verdict in sentences, the most important first; none where no verdict is possible.
      strength: `strict`, `relaxed` or `none`, which gives the colour.
      warning: what stands before all else.
    """

    lines: list[str]
    strength: str
    warning: str | None = None


def withheld(warnings: Sequence[str]) -> Findings:
    """No verdict, where something is not finite."""
    return Findings([], "none", " ".join(warnings))


def printable(text: str, *, ascii_only: bool = False) -> str:
    """The text with control characters, lone surrogates and the like spelled out.

    Line breaks and tabs stay. With `ascii_only`, so is whatever is not ASCII.
    """
    shown = lambda c: (c.isprintable() and (c.isascii() or not ascii_only)) or c in "\n\t"
    return "".join(c if shown(c) else c.encode("unicode_escape").decode() for c in text)


def number(value: float | None) -> str:
    """`24,926`, `840.2`, `1.65`, `3.2e-05`: five digits at most before the exponent takes over."""
    if value is None:
        return "-"
    if not math.isfinite(value):
        return str(float(value))
    if abs(value) >= 1e7 or 0 < abs(value) < 1e-3:
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def percent(share: float | None) -> str:
    """`100%`, `<1%`: no false precision, and never a 0 or a 100 that is not exact."""
    if share is None or not math.isfinite(share):
        return number(share)
    if 0 < share < 0.01:
        return "<1%"
    if 0.99 < share < 1:
        return ">99%"
    return f"{100 * share:.0f}%"


def count(n: int, noun: str) -> str:
    """`1 sequence`, `1,024 sequences`."""
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def mean_and_std(mean: float | None, std: float | None, n: int, plus_minus: str) -> str:
    """`24,926 ± 141`; the mean alone where it is of one and so has no deviation."""
    return number(mean) if n == 1 else f"{number(mean)} {plus_minus} {number(std)}"


def over_batches(losses: Sequence[float], std: float | None, plus_minus: str = "+-") -> str:
    """` +- 0.02 over batches`; batches of the same few rows have no spread to speak of."""
    if std is None:
        return ""
    if len(set(losses)) == 1 and len(losses) > 1:
        return f" ({len(losses)} batches of the same rows: no spread)"
    return f" {plus_minus} {std:.2g} over batches"


def layer_span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}-{last}"


def sublayer(writer: Writer | None) -> str:
    """`MLP 11`, `attention 3`, `embedding`; `-` for a remover that does not exist."""
    if writer is None:
        return "-"
    if writer["sublayer"] == "embedding":
        return "embedding"
    return f"{SUBLAYERS[writer['sublayer']]} {writer['layer']}"


def unremoved(record: MassiveRecord) -> str:
    """What became of a record that has no remover."""
    if record["last_layer"] == len(record["trajectory"]) - 1:
        return "still there after the last block"
    return "removed by no single sublayer"


def kinds(record: MassiveRecord) -> str:
    """`the first token (62%) and delimiter tokens (38%)`, kinds under 5% left out."""
    ranked = sorted(record["kinds"].items(), key=lambda item: -item[1])
    kept = [(kind, share) for kind, share in ranked if share >= 0.05]
    if len(kept) == 1:
        return KINDS[kept[0][0]]
    return " and ".join(f"{KINDS[kind]} ({percent(share)})" for kind, share in kept)


def token_label(token: str, limit: int = 24) -> str:
    """The token in quotes with whitespace and control characters spelled out: `' the'`, `'\\n'`."""
    text = repr(token)
    return text if len(text) <= limit else text[: limit - 4] + "..." + text[-1]


def ascii_label(token: str, limit: int = 24) -> str:
    """As `token_label`, in ASCII: no font and no terminal lacks a glyph for it."""
    text = ascii(token)
    return text if len(text) <= limit else text[: limit - 4] + "..." + text[-1]


def ranked(records: Sequence[MassiveRecord]) -> list[MassiveRecord]:
    """The largest mean value first, NaN last."""

    def size(record: MassiveRecord) -> float:
        value = record["value_mean"]
        return abs(value) if math.isfinite(value) else -1.0

    return sorted(records, key=size, reverse=True)


def by_size(records: Sequence[MassiveRecord], *, strict: bool) -> list[MassiveRecord]:
    """The strict, or the relaxed-only, records, `ranked`."""
    return ranked([r for r in records if r["strict"] == strict])


def strength(records: Sequence[MassiveRecord]) -> str:
    """`strict`, `relaxed` (no record is more) or `none`."""
    if not records:
        return "none"
    return "strict" if any(r["strict"] for r in records) else "relaxed"


def nothing_found(definition: DefinitionInfo, tokens: int) -> str:
    """What no record at all means, in sequences of so many tokens."""
    share = definition["outlier"]["share"]
    if 1 / tokens > share:  # whatever is large at one token is large at most of them
        return (
            f"Whether there are massive activations cannot be said: in sequences of "
            f"{count(tokens, 'token')}, one token is more than {percent(share)} of them, and what "
            "is large there counts as an outlier feature. Expected: longer sequences "
            "(--config.sequence_length)."
        )
    return "No massive activations found, strict or relaxed."


def strongest(records: Sequence[MassiveRecord]) -> list[MassiveRecord]:
    """Every record, strict before relaxed, the largest first."""
    return by_size(records, strict=True) + by_size(records, strict=False)


def in_both(
    features: Sequence[OutlierFeature], records: Sequence[MassiveRecord]
) -> list[OutlierFeature]:
    """The outlier features whose dimension carries massive activations, strict or relaxed, too."""
    dims = {r["dim"] for r in records}
    return [f for f in features if f["dim"] in dims]


IN_BOTH = (
    "A dimension in both tables is large at most tokens, and over the threshold of massive "
    "activations, which is far higher, at a few."
)


def definition(thresholds: DefinitionInfo) -> list[str]:
    """What counts as strict, relaxed and outlier, one line each, as configured for this run."""

    def rule(kind: str) -> str:
        t = thresholds[kind]
        return f"|a| > {number(t['magnitude'])} and |a| >= {number(t['ratio'])} x median"

    share = percent(thresholds["outlier"]["share"])
    layers = count(thresholds["min_layers"], "layer") + (
        " or more" if thresholds["min_layers"] > 1 else ""
    )
    sequences = percent(thresholds["min_share"])
    return [
        f"strict (massive): {rule('strict')}, "
        f"in more than {sequences} of the sequences at {layers}",
        f"relaxed: {rule('relaxed')}, in any sequence at any layer",
        f"outlier feature: {rule('outlier')}, at more than {share} of the tokens",
    ]


def seconds_line(seconds: Mapping[str, float]) -> str:
    """`load 0.31 s, run 0.94 s`."""
    return ", ".join(f"{phase.replace('_', ' ')} {number(s)} s" for phase, s in seconds.items())


def model_line(model: ModelInfo) -> str:
    heads = f"{model['num_heads']} heads"
    if model["num_kv_heads"] != model["num_heads"]:
        heads += f" ({model['num_kv_heads']} KV)"
    return (
        f"{model['name']}: {model['family']}, {_size(model['parameters'])} parameters, "
        f"{count(model['depth'], 'layer')}, width {model['width']}, {heads}, {model['dtype']}"
    )


def data_line(data: DataInfo) -> str:
    """What was read and, always, whether it began with BOS: the choice moves the result."""
    named = "BOS" if data["bos_token"] is None else f"BOS {token_label(data['bos_token'])}"
    begins = f"each beginning with {named}" if data["bos"] else "without BOS"
    return (
        f"{count(data['sequences'], 'sequence')} of {count(data['sequence_length'], 'token')} "
        f"from {data['source']}, {begins} (bos={data['bos_setting']})"
    )


def held_out_line(data: Mapping[str, Any]) -> str:
    """What was read where a part calibrates and the rest is held out: `InterveneData`."""
    bos = "each beginning with BOS" if data["bos"] else "without BOS"
    return (
        f"{data['source']}, {bos} (bos={data['bos_setting']}): "
        f"{count(data['calibration_sequences'], 'sequence')} for calibration, "
        f"{data['sequences']} held out; windows of {data['window']} tokens, stride "
        f"{data['stride']}, {data['scored_tokens']:,} tokens scored"
    )


def sentence(record: MassiveRecord) -> str:
    """One record in a sentence: what, where in depth, who wrote it, at which tokens, who ended it.

    Example: Dimension 507 is massive (strict) from layer 11 to 28, written by the MLP of block 11
    at the first token, removed by the MLP of block 29.
    """
    call = "is massive (strict)" if record["strict"] else "meets the relaxed definition only"
    first, last = record["first_layer"], record["last_layer"]
    span = f"at layer {first} alone" if first == last else f"from layer {first} to {last}"
    where = kinds(record)
    parts = [f"Dimension {record['dim']} {call} {span}"]
    parts.append(f"written by {_in_full(record['written_by'])}" + (f" at {where}" if where else ""))
    if record["removed_by"] is not None:
        parts.append(f"removed by {_in_full(record['removed_by'])}")
    else:
        parts.append(unremoved(record))
    if record["share_of_sequences"] < 1:
        parts.append(f"in {percent(record['share_of_sequences'])} of the sequences")
    return ", ".join(parts) + "."


def _in_full(writer: Writer) -> str:
    if writer["sublayer"] == "embedding":
        return "the embedding"
    return f"the {SUBLAYERS[writer['sublayer']]} of block {writer['layer']}"


def sentences(records: Sequence[MassiveRecord], call: str) -> list[str]:
    """The first records in full, and how many more there are."""
    lines = [sentence(record) for record in records[:SAID_IN_FULL]]
    if rest := records[SAID_IN_FULL:]:
        dims = listed([r["dim"] for r in rest])
        lines.append(f"{count(len(rest), 'more dimension')} ({call}): {dims}.")
    return lines


def listed(dims: Sequence[int], limit: int = 12) -> str:
    """`5, 7, 9`; the first `limit` and how many more there are."""
    shown = ", ".join(str(d) for d in dims[:limit])
    return shown if len(dims) <= limit else f"{shown} and {len(dims) - limit} more"


def _size(parameters: int) -> str:
    for unit, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if parameters >= scale:
            return f"{parameters / scale:.4g}{unit}"
    return str(parameters)
