"""A probe at a glance in the terminal: fits 80 columns, and reads as plain text in a log."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jax_massact.report import words
from jax_massact.results import LayerStats, MassiveRecord, OutlierFeature
from jax_massact.studies.probe.result import ProbeResult

MAX_ROWS = 10  # records of one kind; a glance takes in no more, and probe.json has them all


def print_probe(result: ProbeResult, console: Console) -> None:
    """Prints `probe_table(result)`, in ASCII where the console's encoding is not UTF."""
    console.print(probe_table(result, ascii_only=console.options.ascii_only))


def probe_table(result: ProbeResult, *, ascii_only: bool = False) -> RenderableType:
    """Model, data, verdict, the massive activations and one row per layer.

    Args:
      result: what the probe found.
      ascii_only: spell out every character that is not ASCII.
    """
    spell = spelled if ascii_only else str
    token_label = words.ascii_label if ascii_only else words.token_label
    parts: list[RenderableType] = [
        headed("Model", spell(words.model_line(result["model"]))),
        headed("Data", spell(words.data_line(result["data"], token_label))),
    ]
    if warning := words.nonfinite_warning(result):
        parts.append(headed("Warning", warning, "bold red"))
    style = verdict_style(result["massive"])
    parts.append(headed("Verdict", "\n".join(words.verdict(result)), style))
    parts += massive_parts(result["massive"], result["data"]["sequences"], ascii_only)
    if features := result["outlier_features"]:
        title = "Outlier features (large at most tokens: not massive activations)"
        parts += [section_title(title), _outliers(features[:MAX_ROWS]), *left_out(len(features))]
    parts += [section_title("Layers (means over sequences; residual stream after each block)")]
    parts.append(_layers(result["layers"]))
    parts.append(Text("\n".join(words.definition(result["definition"])), style="dim"))
    return Group(*parts)


def spelled(text: str) -> str:
    """In ASCII."""
    return text.encode("ascii", errors="backslashreplace").decode()


def headed(head: str, body: str, style: str = "") -> RenderableType:
    """A paragraph with its heading on the left."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=8, style="bold")
    grid.add_column(overflow="fold")
    grid.add_row(head, Text(body, style=style))
    return grid


def section_title(text: str) -> RenderableType:
    """The title of a table, with a blank line before it."""
    return Padding(Text(text, style="bold"), (1, 0, 0, 0))


def left_out(rows: int, shown: int = MAX_ROWS) -> list[RenderableType]:
    """Says how many rows are not shown."""
    if rows <= shown:
        return []
    return [Text(f"and {rows - shown} more, in the JSON file", style="dim")]


def verdict_style(records: Sequence[MassiveRecord]) -> str:
    """The style of a verdict about these records."""
    return {"strict": "bold", "relaxed": "yellow", "none": "green"}[words.strength(records)]


def massive_parts(
    records: Sequence[MassiveRecord],
    sequences: int,
    ascii_only: bool,
    titles: tuple[str, str] = ("Massive activations (strict)",
                               "Relaxed only (not massive by the strict definition)"),
    rows: int = MAX_ROWS,
) -> list[RenderableType]:
    """The largest strict, then the largest relaxed-only records, each under its title."""
    parts: list[RenderableType] = []
    for strict, title in zip((True, False), titles, strict=True):
        if some := words.by_size(records, strict=strict):
            parts += [section_title(title), _massive_rows(some[:rows], sequences, ascii_only)]
            parts += left_out(len(some), rows)
    return parts


def plain_table(*columns: str, left: tuple[str, ...] = ()) -> Table:
    """Rules above and below the head and no others: copies cleanly, and survives a log."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", show_edge=False)
    for column in columns:
        is_left = column in left
        table.add_column(
            column, justify="left" if is_left else "right", no_wrap=not is_left, overflow="fold"
        )
    return table


def _massive_rows(records: list[MassiveRecord], sequences: int, ascii_only: bool) -> Table:
    """One row for each record, of a run over so many sequences."""
    table = plain_table("dim", "layers", "value", "ratio", "seqs", "where", "written", "removed",
                        left=("where", "written", "removed"))
    for r in records:
        table.add_row(
            str(r["dim"]),
            words.layer_span(r["first_layer"], r["last_layer"]),
            words.mean_and_std(
                r["value_mean"], r["value_std"], sequences, "+-" if ascii_only else "±"
            ),
            words.number(r["ratio"]),
            words.percent(r["share_of_sequences"]),
            Text(_where(r, ascii_only)),
            words.sublayer(r["written_by"]),
            words.sublayer(r["removed_by"]),
        )
    return table


def _where(record: MassiveRecord, ascii_only: bool, limit: int = 2) -> str:
    """`pos 0, 5 '<s>' '.'`: the most frequent positions and tokens."""
    token_label = words.ascii_label if ascii_only else words.token_label
    positions = [str(p["position"]) for p in record["positions"]]
    tokens = [token_label(t["token"], 16) for t in record["tokens"]]
    if not ascii_only:  # lines break at a space, so it is shown as a sign
        tokens = [token.replace(" ", "␣") for token in tokens]
    more = "" if len(positions) <= limit else ", ..."
    return f"pos {', '.join(positions[:limit])}{more} {' '.join(tokens[:limit])}".strip()


def _outliers(features: list[OutlierFeature]) -> Table:
    table = plain_table("dim", "layers", "magnitude", "tokens", "seqs")
    for f in features:
        table.add_row(
            str(f["dim"]),
            words.layer_span(f["first_layer"], f["last_layer"]),
            words.number(f["magnitude"]),
            words.percent(f["share_of_tokens"]),
            words.percent(f["share_of_sequences"]),
        )
    return table


def _layers(layers: list[LayerStats]) -> Table:
    bounds = list(layers[0]["count_above"]) if layers else []
    ranks = max((len(layer["top"]) for layer in layers), default=0)
    tops = [f"top-{k + 1}" for k in range(min(ranks, 3))]
    above = [f">{bound}" for bound in bounds]
    table = plain_table("layer", *tops, "median", "kurtosis", *above, "strict")
    for layer in layers:
        magnitudes: list[float | None] = [entry["magnitude"] for entry in layer["top"][:3]]
        magnitudes += [None] * (len(tops) - len(magnitudes))
        table.add_row(
            str(layer["layer"]),
            *(words.number(m) for m in magnitudes),
            words.number(layer["median"]),
            words.number(layer["kurtosis"]),
            *(words.number(layer["count_above"].get(bound)) for bound in bounds),
            words.number(layer["strict"]),
        )
    return table
