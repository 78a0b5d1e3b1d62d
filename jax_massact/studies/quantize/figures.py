"""The charts of `massact quantize`: what rows cost, one block at a time, and the ranges."""

from collections.abc import Sequence

from jax_massact.report import words
from jax_massact.report.chart import (
    BLUE,
    ORANGE,
    PALETTE,
    Axis,
    Chart,
    Panel,
    Rule,
    Series,
    layers,
    titled,
)
from jax_massact.studies.quantize.result import QuantizeResult, RangeRecord, RowRecord

FIGURES = ("ratios", "sensitivity", "ranges")
MARKERS = "os^DX"
VARIANTS = {
    "original": "original", "first": "first token in front", "folded": "folded",
    "kept": "some tokens in float", "halved": "massive halved",
}
PICTURED = ("mlp_hidden", "resid_post")  # of the ranges: where they are written and stay


def charts(result: QuantizeResult) -> list[Chart]:
    """All of them, in reading order."""
    return [*[ratio_chart(result)] * bool(rounded(result)),
            *[sensitivity_chart(result)] * bool(result["sensitivity"]), range_chart(result)]


def label(row: RowRecord) -> str:
    """`linear int8 tensor`, and what else is not usual."""
    parts = [row["sites"], row["format"], row["granularity"]]
    if row["range"] != "minmax":
        parts.append(row["range"].removeprefix("percentile:") + "%")
    return " ".join(parts + ([] if row["weights"] is None else [f"w{row['weights']}"]))


def rounded(result: QuantizeResult) -> list[RowRecord]:
    """The rows that are not in float."""
    return [row for row in result["rows"] if row["bits"] is not None or row["weights"] is not None]


def variants(result: QuantizeResult) -> list[str]:
    """Those that were measured, in order."""
    return list(dict.fromkeys(row["variant"] for row in result["rows"]))


def ratio_chart(result: QuantizeResult) -> Chart:
    """The ratio of perplexities of each row, a mark for each variant."""
    rows = rounded(result)
    labels = list(dict.fromkeys(map(label, rows)))
    lines = []
    for number, variant in enumerate(variants(result)):
        own = [row for row in rows if row["variant"] == variant]
        x = [labels.index(label(row)) for row in own]
        y = [row["ratio"] for row in own]
        lines.append(Series(VARIANTS[variant], x, y, PALETTE[number], dash="",
                            marker=MARKERS[number]))
    ticks = tuple(text.replace(" ", "\n") for text in labels)
    axis = Axis(range=(-0.5, len(labels) - 0.5), ticks=ticks)
    panel = Panel([*lines, Rule(1.0)], x=axis, height=420,
                  y=Axis("perplexity over that in float", scale="log"))
    return Chart("ratios", titled(result["model"]["name"], "what rounding costs"),
                 "Perplexity with rounding over that without", [panel], size=(6.8, 3.6),
                 legend="right")


def sensitivity_chart(result: QuantizeResult) -> Chart:
    """What one block's rounding adds to the loss, a line for each site."""
    lines: list[Series | Rule] = []
    for number, site in enumerate(dict.fromkeys(r["site"] for r in result["sensitivity"])):
        own = [r for r in result["sensitivity"] if r["site"] == site]
        error = [r["stderr"] or 0.0 for r in own] if own[0]["stderr"] is not None else None
        lines.append(Series(site, [r["layer"] for r in own], [r["loss_change"] for r in own],
                            PALETTE[number % len(PALETTE)], marker="o", error=error))
    panel = Panel([*lines, *_writer_rules(result)], x=layers(result["model"]["depth"], "block"),
                  y=Axis("added loss, nats per token", zero=True))
    return Chart("sensitivity", titled(result["model"]["name"], "one block rounded to int8"),
                 "What rounding one block alone adds to the loss", [panel], size=(6.8, 3.2))


def _writer_rules(result: QuantizeResult) -> list[Rule]:
    verdict = result["verdict"]
    found = [] if verdict is None else [("writer", verdict["writer"]),
                                        ("remover", verdict["remover"])]
    return [Rule(place["layer"], "x", name) for name, place in found
            if place is not None and place["layer"] >= 0]


def range_chart(result: QuantizeResult) -> Chart:
    """The largest magnitude with and without massive tokens, by block."""

    def panel(site: str) -> Panel:
        own: Sequence[RangeRecord] = [r for r in result["ranges"] if r["site"] == site]
        x = [r["layer"] for r in own]
        lost = [f"{words.number(r['bits_lost'])} bits lost" for r in own]
        lines = [
            Series("all tokens", x, [r["top"] for r in own], ORANGE, marker="o", hover=lost),
            Series("without massive tokens", x, [r["top_without"] for r in own], BLUE, marker="s"),
        ]
        return Panel(lines, x=layers(result["model"]["depth"], "block"), name=site, title=site,
                     y=Axis("largest magnitude", scale="log"))

    return Chart("ranges", titled(result["model"]["name"], "ranges of 8 bits"),
                 "The largest magnitude by block, with and without massive tokens",
                 [panel(site) for site in PICTURED], size=(6.8, 3.2), beside=True)
