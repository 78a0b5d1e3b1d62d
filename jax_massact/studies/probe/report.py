"""The report of `massact probe`: what is said, printed and written."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.page import Lines, Section, Table, Token, Tokens
from jax_massact.report.sections import found_section, massive_tables, render_report
from jax_massact.report.terminal import MAX_ROWS, Sheet
from jax_massact.report.words import Findings
from jax_massact.results import ActivationMap, LayerStats, MassiveRecord, OutlierFeature
from jax_massact.studies import medium_report
from jax_massact.studies.probe import images_report
from jax_massact.studies.probe.figures import FIGURES, MAX_TRAJECTORIES, charts
from jax_massact.studies.probe.images import PicturedImage
from jax_massact.studies.probe.result import ProbeResult, SuperWeight

__all__ = ["FIGURES", "PAGE", "charts", "page", "show"]
PAGE = "report.html"


def findings(result: ProbeResult) -> Findings:
    """The findings in sentences; no verdict where the numbers cannot be trusted."""
    if result["warnings"]:
        return words.withheld(result["warnings"])
    records = result["massive"]
    strict, relaxed = (words.by_size(records, strict=s) for s in (True, False))
    lines = []
    if not strict and relaxed:
        n = words.count(len(relaxed), "dimension")
        meet = "meets" if len(relaxed) == 1 else "meet"
        lines.append(
            f"No massive activations found by the strict definition; {n} {meet} the relaxed one."
        )
    elif not strict:
        lines.append(words.nothing_found(result["definition"], result["data"]["sequence_length"]))
    lines += words.sentences(strict, "massive (strict)")
    if strict and relaxed:
        n, dims = words.count(len(relaxed), "more dimension"), _dims(relaxed)
        lines.append(f"{n} by the relaxed definition only: {dims}.")
    else:
        lines += words.sentences(relaxed, "relaxed only")
    lines += [_written_through(w) for w in result["super_weights"][:1]]
    if images := result.get("images"):
        lines += images_report.sentences(images)
    if outliers := result["outlier_features"]:
        lines.append(_outliers_found(outliers, records))
    lines += medium_report.sentences(result.get("medium"))
    return Findings(lines, words.strength(records))


def _outliers_found(features: list[OutlierFeature], records: list[MassiveRecord]) -> str:
    n, dims = words.count(len(features), "outlier feature"), _dims(features)
    if not (both := words.in_both(features, records)):
        return f"{n}, large at most tokens and so not massive activations: dim {dims}."
    return (
        f"{n}, large at most tokens: dim {dims}. Massive or relaxed as well, at a few tokens where "
        f"they are far larger: dim {_dims(both)}."
    )


def _written_through(w: SuperWeight) -> str:
    expert = "" if w["expert"] is None else f" of expert {w['expert']}"
    return (
        f"Super weight: {words.percent(w['share'])} of what the MLP of block {w['layer']} writes "
        f"to dimension {w['dim']} comes through one weight, row {w['dim']} and column "
        f"{w['column']} of down_proj{expert}."
    )


def _super_weight_rows(weights: list[SuperWeight]) -> list[list[str]]:
    return [
        [str(w["layer"]), str(w["dim"]), str(w["column"]),
         "-" if w["expert"] is None else f"{w['expert']} ({words.percent(w['expert_share'])})",
         words.number(w["weight"]), words.number(w["activation"]), words.percent(w["share"]),
         str(w["position"]), w["tensor"] or "-"]
        for w in weights
    ]


_SUPER_WEIGHTS = (
    "block", "row", "column", "expert", "weight", "unit", "share", "position", "tensor"
)
_SUPER_WEIGHTS_NOTE = (
    "The entry of down_proj, in PyTorch's order of rows and columns, whose product with its unit "
    "is the largest part of what the MLP writes to the dimension, and that part (Yu et al. 2024). "
    "Of a mixture, the expert that writes the most, and its share."
)


def _dims(records: list[MassiveRecord] | list[OutlierFeature]) -> str:
    return words.listed([r["dim"] for r in records])


class Column(NamedTuple):
    """A number of every layer: its heading, the number, and whether the terminal shows it."""

    head: str
    value: Callable[[LayerStats], float | None]
    glance: bool = True


def columns(layers: list[LayerStats]) -> list[Column]:
    """The columns of the table of layers; a further statistic is a further row here."""
    ranks = max((len(layer["top"]) for layer in layers), default=0)
    first = layers[0] if layers else None

    def top(rank: int) -> Column:
        def value(layer: LayerStats) -> float | None:
            return layer["top"][rank]["magnitude"] if rank < len(layer["top"]) else None

        return Column(f"top-{rank + 1}", value, rank < 3)

    return [
        *map(top, range(ranks)),
        Column("median", lambda layer: layer["median"]),
        *(Column(f"q{q}", lambda layer, q=q: layer["quantile"].get(q), False)
          for q in (first["quantile"] if first else ())),
        Column("kurtosis", lambda layer: layer["kurtosis"]),
        Column("largest", lambda layer: layer["max"], False),
        *(Column(f">{bound}", lambda layer, bound=bound: layer["count_above"].get(bound))
          for bound in (first["count_above"] if first else ())),
        Column("strict", lambda layer: layer["strict"]),
        Column("relaxed", lambda layer: layer["relaxed"], False),
    ]


def _layer_table(layers: list[LayerStats], *, glance: bool) -> tuple[list[str], list[list[str]]]:
    shown = [column for column in columns(layers) if column.glance or not glance]
    rows = [[str(layer["layer"]), *(words.number(c.value(layer)) for c in shown)]
            for layer in layers]
    return ["layer", *(column.head for column in shown)], rows


def _outlier_rows(features: list[OutlierFeature]) -> list[list[str]]:
    return [
        [str(f["dim"]), words.layer_span(f["first_layer"], f["last_layer"]),
         words.number(f["magnitude"]), words.percent(f["share_of_tokens"]),
         words.percent(f["share_of_sequences"])]
        for f in features
    ]


def show(result: ProbeResult, console: Console) -> None:
    """Prints model, data, verdict, the massive activations and one row for every layer."""
    sheet = Sheet(console)
    sheet.opening(result, _data_line(result), findings(result))
    sheet.massive(result["massive"])
    if found := result["super_weights"]:
        sheet.title("Super weights (the one weight through which a dimension is written)")
        rows = [row[:-1] for row in _super_weight_rows(found)]  # the tensor's name is long
        sheet.table(_SUPER_WEIGHTS[:-1], rows, most=MAX_ROWS)
    if features := result["outlier_features"]:
        sheet.title("Outlier features (large at most tokens)")
        head = ("dim", "layers", "magnitude", "tokens", "seqs")
        sheet.table(head, _outlier_rows(features), most=MAX_ROWS)
        if words.in_both(features, result["massive"]):
            sheet.line(words.IN_BOTH, "dim")
    medium_report.show(sheet, result.get("medium"))
    sheet.title("Layers (means over sequences; residual stream after each block)")
    sheet.table(*_layer_table(result["layers"], glance=True))
    if images := result.get("images"):
        images_report.show(sheet, result, images)
    sheet.close(words.definition(result["definition"]))


def _data_line(result: ProbeResult) -> str:
    images = result.get("images")
    if images is None:
        return words.data_line(result["data"])
    return images_report.data_line(result, images)


def page(
    result: ProbeResult, activation_map: ActivationMap, pictured: Sequence[PicturedImage] = ()
) -> str:
    """The page, as HTML."""
    title = f"Massive activations in {result['model']['name']}"
    return render_report(title, result, sections(result, activation_map, pictured))


def sections(
    result: ProbeResult, activation_map: ActivationMap, pictured: Sequence[PicturedImage] = ()
) -> list[Section]:
    """The sections of the page, in reading order."""
    facts = [("Read from", result["model"]["source"]), ("Data", _data_line(result))]
    surface, magnitudes, writers, *_ = charts(result, activation_map)
    images = result.get("images")
    of_images = [] if images is None else images_report.sections(result, images, pictured)
    found = [
        found_section(findings(result), facts, result),
        *of_images,
        Section("massive", "Massive activations",
                massive_tables(result["massive"])),
        Section("surface", "Activation map",
                [surface, Lines([_map_note(result, activation_map)], "soft")]),
        Section("magnitudes", "Largest magnitudes", [magnitudes]),
    ]
    if result["massive"]:
        found.append(Section("writers", "Who writes what", [writers, _writers_note(result)]))
    if weights := result["super_weights"]:
        table = Table(_SUPER_WEIGHTS, _super_weight_rows(weights), text=_SUPER_WEIGHTS[-1:])
        about = Lines([_SUPER_WEIGHTS_NOTE], "soft")
        found.append(Section("super-weights", "Super weights", [table, about]))
    head, rows = _layer_table(result["layers"], glance=False)
    note = (
        "Magnitudes; means over sequences, except the largest of all. q0.9 is the quantile that "
        "90% of the activations stay below; counts are activations of one sequence."
    )
    prompt = [] if images else [Section("prompt", "First sequence", _prompt(result))]
    return [
        *found,
        *prompt,
        Section("outliers", "Outlier features", _outliers(result)),
        *medium_report.sections(result.get("medium")),
        Section("layers", "Every layer", [Table(head, rows), Lines([note], "soft")]),
    ]


def _map_note(result: ProbeResult, activation_map: ActivationMap) -> str:
    _, tokens, bins = activation_map.magnitude.shape
    all_dims = bins == result["model"]["width"]
    return (
        f"|h| of the first sequence, {words.count(tokens, 'token')}. "
        + ("" if all_dims else f"Each of the {bins} columns shows the largest of its dimensions. ")
        + "Drag to turn it, scroll to come nearer; colours are on a logarithmic scale."
    )


def _writers_note(result: ProbeResult) -> Lines:
    note = (
        "The mean signed value of each dimension where it is found. Triangle: the sublayer that "
        "writes it. Cross: the sublayer that takes it away."
    )
    total, most = len(result["massive"]), MAX_TRAJECTORIES
    return Lines([note + (f" The {most} largest of {total} are drawn." if total > most else "")],
                 "soft")


def _prompt(result: ProbeResult) -> list[Lines | Tokens]:
    records = {r["dim"]: r for r in result["massive"]}
    at: dict[int, list[MassiveRecord]] = {}
    for position, dim in result["prompt"]["massive"]:
        at.setdefault(position, []).append(records[dim])

    def token(position: int, text: str) -> Token:
        here = at.get(position, [])
        tips = [f"position {position}"] + [
            f"dim {r['dim']}{'' if r['strict'] else ' (relaxed)'}: "
            f"{words.number(r['value_mean'])} at layer {r['peak_layer']}, mean over sequences"
            for r in here
        ]
        return Token(text, "\n".join(tips), words.strength(here) if here else "")

    tokens = result["prompt"]["tokens"]
    length, shown = result["data"]["sequence_length"], len(tokens)
    which = f"The first {shown} of {length} tokens" if shown < length else "All tokens"
    note = f"{which}; those with a massive activation are marked: point at one for its dimension."
    return [Lines([note], "soft"), Tokens([token(*item) for item in enumerate(tokens)])]


def _outliers(result: ProbeResult) -> list[Lines | Table]:
    features = result["outlier_features"]
    about = Lines([
        "Dimensions that are large at most tokens (Dettmers et al. 2022), while massive "
        "activations sit at a few.",
        *([words.IN_BOTH] if words.in_both(features, result["massive"]) else ()),
    ], "soft")
    if not features:
        return [Lines(["No outlier features found."]), about]
    head = ("dim", "layers", "magnitude", "share of tokens", "share of sequences")
    return [Table(head, _outlier_rows(features)), about]
