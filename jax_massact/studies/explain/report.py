"""The report of `massact explain`: attention, norms, keys and values, value updates, locations."""

import math
from collections.abc import Sequence

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.page import Lines, Part, Section, Table
from jax_massact.report.sections import found_section, massive_tables, render_report
from jax_massact.report.terminal import Sheet
from jax_massact.report.words import Findings
from jax_massact.studies.explain.figures import (
    FIGURES,
    HIGH_SINK_RATE,
    MAP_TOKENS,
    VECTORS,
    charts,
    emergence,
    map_layers,
    massive_call,
    mean_of,
    sink_rates,
)
from jax_massact.studies.explain.result import (
    AttentionMap,
    ExplainResult,
    Location,
    MeanStd,
    UpdateStats,
    VectorStats,
)

__all__ = ["FIGURES", "charts", "page", "show"]
_LOCATION_ROWS = 5  # of each definition, in the terminal


def spread(value: MeanStd | None, sequences: int, plus_minus: str = " ± ") -> str:
    """`0.91 ± 0.01`, over sequences; the mean alone when there is one."""
    if value is None or not math.isfinite(value["mean"]):
        return "-"
    mean = f"{value['mean']:.2f}"
    return mean if sequences == 1 else f"{mean}{plus_minus}{value['std']:.2f}"


def findings(result: ExplainResult) -> Findings:
    """The findings in sentences."""
    if result["warnings"]:
        return words.withheld(result["warnings"])
    sequences, strength = result["data"]["sequences"], words.strength(result["massive"])
    sink = (
        f"The sink rate is {spread(result['sink_rate'], sequences)}: the share of heads whose mean "
        f"attention to the first token exceeds {result['sink_epsilon']:g} (first "
        f"{result['sink_length']} queries). {_sink_layers(result)}"
    )
    first = emergence(result)
    if first is None:
        nothing = words.nothing_found(result["definition"], result["data"]["sequence_length"])
        return Findings([nothing, sink], strength)
    call = {
        "strict": "Massive activations (strict)",
        "relaxed": "Activations over the relaxed threshold only",
    }[strength]
    number = result["massive_tokens"]
    tokens = f"{words.number(number)} token" + ("" if number == 1 else "s")
    lines = [
        f"{call} stand in the output of block {first} and after, at {tokens} of a sequence on "
        "average.",
        sink,
    ]
    return Findings(lines + _mechanism(result, map_layers(result)[-1]), strength)


def _sink_layers(result: ExplainResult) -> str:
    """Where attention sinks are: the mean over layers hides it."""
    rates = sink_rates(result)
    high = [layer for layer, rate in enumerate(rates) if rate >= HIGH_SINK_RATE]
    if not high:
        top = max(range(len(rates)), key=lambda layer: rates[layer])
        return f"It is highest in layer {top}, {rates[top]:.2f}."
    # Neighbouring layers share what is left when their place in the list is taken off.
    runs: dict[int, list[int]] = {}
    for place, layer in enumerate(high):
        runs.setdefault(layer - place, []).append(layer)

    def span(run: list[int]) -> str:
        low, top = (f"{end(rates[layer] for layer in run):.2f}" for end in (min, max))
        return (f"{words.layer_span(run[0], run[-1])} "
                f"({low if low == top else f'{low} to {top}'})")

    spans = map(span, runs.values())
    first = emergence(result)
    early = first is not None and high[0] <= first
    return (
        f"It is {HIGH_SINK_RATE:g} or more in layers {', '.join(spans)}"
        + (f"; layers up to {first} do not see the massive activations yet." if early else ".")
    )


def _mechanism(result: ExplainResult, at: int) -> list[str]:
    layer, sequences = result["layers"][at], result["data"]["sequences"]
    share, cosine = mean_of(layer["attention"]["massive"]), layer["keys"]["cosine_massive"]
    tokens = "these tokens" if massive_call(result) == "massive" else "these (relaxed) tokens"
    lines, parts = [], []
    if share is not None:
        parts.append(f"{tokens} take {words.percent(share)} of the attention of the others")
    if cosine is not None:
        parts.append(f"their keys have a mean cosine of {words.number(cosine)} between sequences")
    if layer["value_drain"] is not None:
        parts.append(f"their values have {words.number(layer['value_drain'])} times the norm of "
                     "other tokens' values")
    if parts:
        lines.append(f"In layer {at} {'; '.join(parts)}.")
    if (update := layer["massive_update"]) is not None:
        lines.append(
            f"What they add to that layer's attention output is "
            f"{words.percent(update['share']['mean'])} of it; its cosine to its mean over queries "
            f"is {spread(update['cosine'], sequences)}, its relative deviation from it "
            f"{spread(update['deviation'], sequences)}."
        )
    return lines


def show(result: ExplainResult, console: Console) -> None:
    """Prints the verdict, a row for every layer, and where massive activations sit."""
    sheet = Sheet(console)
    sheet.opening(result, words.data_line(result["data"]), findings(result))
    sheet.title("Layers (attention of the block; means over sequences and heads)")
    share = "relaxed" if massive_call(result) != "massive" else "massive"
    head = ("layer", "sink rate", share, "cos K", "drain", "update cos", "deviation", "share")
    sheet.table(head, _glance(result, sheet.plus_minus))
    for place in result["locations"]:
        about = location_line(place)
        titles = (f"{about}: massive (strict)", f"{about}: relaxed only")
        sheet.massive(place["massive"], titles, _LOCATION_ROWS)
        if not place["massive"]:
            sheet.title(about)
            sheet.line("none found, strict or relaxed")
    sheet.close(words.definition(result["definition"]))


def location_line(place: Location) -> str:
    """`With BOS, 100 sequences of 256 tokens`."""
    return (
        f"{'With' if place['bos'] else 'Without'} BOS, "
        f"{words.count(place['sequences'], 'sequence')} of "
        f"{words.count(place['sequence_length'], 'token')}"
    )


def _glance(result: ExplainResult, plus_minus: str) -> list[list[str]]:
    sequences = result["data"]["sequences"]
    rows = []
    for layer in result["layers"]:
        u = layer["massive_update"]
        rows.append([
            str(layer["layer"]),
            spread(layer["attention"]["sink_rate"], sequences, plus_minus),
            words.percent(mean_of(layer["attention"]["massive"])),
            words.number(layer["keys"]["cosine_massive"]),
            words.number(layer["value_drain"]),
            spread(u and u["cosine"], sequences, plus_minus),
            spread(u and u["deviation"], sequences, plus_minus),
            words.percent(u and u["share"]["mean"]),
        ])
    return rows


def page(result: ExplainResult, attention_map: AttentionMap) -> str:
    """The page, as HTML."""
    title = f"What attention makes of massive activations in {result['model']['name']}"
    return render_report(title, result, sections(result, attention_map))


def sections(result: ExplainResult, attention_map: AttentionMap) -> list[Section]:
    """The sections of the page, in reading order."""
    call = massive_call(result)
    maps, shares, vectors, updates = charts(result, attention_map)
    vectors_note = Lines([
        f"Full lines: {call} tokens; dotted: the others. Stream: what enters the block; normed: "
        "after its norm; keys: before rotary positions."
    ], "soft")
    found = [
        found_section(findings(result), [("Data", words.data_line(result["data"]))], result),
        Section("maps", "Attention before and after", [maps, _maps_note(attention_map, call)]),
        Section("shares", "Where attention goes", [shares]),
        Section("norms", "From the norm to keys and values", [vectors, vectors_note]),
    ]
    if any(layer["massive_update"] for layer in result["layers"]):
        note = (f"The attention output is the sum of what {call} tokens add and of what the others "
                "add: their shares add up to 1.")
        found.append(Section("updates", "Value updates", [updates, Lines([note], "soft")]))
    if result["locations"]:
        *_, last = places = result["locations"]
        found.append(Section("locations", "Where they sit", [
            part for place in places
            for part in massive_tables(
                place["massive"], location_line(place), explain=place is last
            )
        ]))
    return [*found, Section("layers", "Every layer", _layer_tables(result))]


def _maps_note(attention_map: AttentionMap, call: str) -> Lines:
    marked = (f"Tokens marked with * are {call}." if any(attention_map.massive[:MAP_TOKENS])
              else "None of these tokens is massive.")
    shown = words.count(min(MAP_TOKENS, len(attention_map.tokens)), "token")
    return Lines([f"The first {shown} of the first sequence, mean over heads. {marked}"], "soft")


def _layer_tables(result: ExplainResult) -> list[Part]:
    call = massive_call(result)
    note = (
        "Attention and value updates are the block's own; stream, normed stream, keys and values "
        "are what enters it. Shares and logits are means over heads. Pooled: to the one mean of "
        "all sequences. Effective dimensions: (Σ x²)² / Σ x⁴."
        + ("" if result["data"]["sequences"] == 1 else " ± is the standard deviation over "
           "sequences.")
    )
    return [
        _attention_table(result),
        _vector_table(result, f"L2 norm, {call} / other", ("norm",), drain=True),
        _vector_table(
            result, f"Cosine between sequences and effective dimensions, {call} / other",
            ("cosine", "dims"),
        ),
        *_update_tables(result),
        Lines([note], "soft"),
    ]


def _attention_table(result: ExplainResult) -> Table:
    has_extra = any(layer["attention"]["extra"] is not None for layer in result["layers"])
    fields = ("first", "massive", *(("extra",) if has_extra else ()), "logit_massive",
              "logit_other")
    titles = {"first": "on the first token", "massive": f"on {massive_call(result)} tokens",
              "extra": "on the extra key", "logit_massive": f"logit to {massive_call(result)}",
              "logit_other": "logit to others"}
    rows = [
        [
            str(layer["layer"]),
            spread(layer["attention"]["sink_rate"], result["data"]["sequences"]),
            *(words.number(mean_of(layer["attention"][field])) for field in fields),
        ]
        for layer in result["layers"]
    ]
    return Table(("layer", "sink rate", *(titles[f] for f in fields)), rows,
                 caption="Attention")


def _vector_table(
    result: ExplainResult, caption: str, measures: Sequence[str], *, drain: bool = False
) -> Table:
    def cell(stats: VectorStats, measure: str) -> str:
        massive, other = (stats[f"{measure}_{part}"] for part in ("massive", "other"))
        return f"{words.number(massive)} / {words.number(other)}"

    short = {"norm": "", "cosine": "cos ", "dims": "dims "}
    head = ["layer", *(f"{short[m]}{name}" for m in measures for name in VECTORS)]
    rows = []
    for layer in result["layers"]:
        cells = [cell(layer[name], m) for m in measures for name in VECTORS]
        rows.append([str(layer["layer"]), *cells])
        if drain:
            rows[-1].append(words.number(layer["value_drain"]))
    return Table([*head, *(["value drain"] if drain else [])], rows, caption=caption)


def _update_tables(result: ExplainResult) -> list[Part]:
    sequences = result["data"]["sequences"]

    def cells(u: UpdateStats | None) -> list[str]:
        if u is None:
            return ["-"] * 5
        return [
            spread(u["cosine"], sequences), words.number(u["cosine_pooled"]),
            spread(u["deviation"], sequences), words.number(u["deviation_pooled"]),
            spread(u["share"], sequences),
        ]

    columns = ("cosine", "cosine pooled", "deviation", "deviation pooled", "share")
    parts = (("massive_update", massive_call(result)), ("other_update", "other"))
    return [
        Table(("layer", *columns),
              [[str(layer["layer"]), *cells(layer[key])] for layer in result["layers"]],
              caption=f"Value updates from {call} tokens")
        for key, call in parts
    ]
