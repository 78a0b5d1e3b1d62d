"""What the pages of studies have in common: massive activations, settings, the page around them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax_massact.report import words
from jax_massact.report.page import Cell, Facts, Lines, Part, Piece, Section, Table, render
from jax_massact.report.words import Findings
from jax_massact.results import MassiveRecord

LISTED = 4  # positions and tokens of a record that the table spells out


def render_report(title: str, result: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The page of a result: its model under the title, its settings and times at the end."""
    model, seconds = words.model_line(result["model"]), words.seconds_line(result["seconds"])
    return render(title, model, [*sections, _settings(result)], seconds)


def found_section(
    findings: Findings, facts: Iterable[tuple[str, object]], result: Mapping[str, Any]
) -> Section:
    """The first section: the findings, what was read, and what counts as massive."""
    notices = Lines([f"Note: {notice}" for notice in result["notices"]])
    rules = Lines(words.definition(result["definition"]), "soft")
    return Section("verdict", "What was found", [findings, notices, Facts(facts), rules])


def massive_tables(
    records: Sequence[MassiveRecord], about: str = "", *, explain: bool = True
) -> list[Part]:
    """Strict and relaxed-only records, each under their name.

    Args:
      about: stands before the name.
      explain: whether a line below says what the columns mean.
    """
    parts: list[Part] = []
    for strict, call in ((True, "Massive (strict)"),
                         (False, "Relaxed only: not massive by the strict definition")):
        if some := words.by_size(records, strict=strict):
            caption = f"{about}: {call[0].lower()}{call[1:]}" if about else call
            head = ("dim", "layers", "peak", "value at peak", "n", "ratio", "found in",
                    "positions (sequences)", "tokens (sequences)", "written by", "removed by")
            rows = [_record(r) for r in some]
            parts.append(Table(head, rows, text=head[7:], caption=caption))
    if not parts:
        return [Lines([f"{about}: none found." if about else "None found."])]
    note = Lines([f"{words.COLUMNS[0].upper()}{words.COLUMNS[1:]}."], "soft")
    return [*parts, note] if explain else parts


def _record(r: MassiveRecord) -> list[Cell]:
    positions = [Piece("", f"{p['position']} ({p['sequences']})") for p in r["positions"][:LISTED]]
    more = [Piece("", "…")] * (len(r["positions"]) > LISTED)
    tokens = [Piece(words.token_label(t["token"]), f" ({t['sequences']})")
              for t in r["tokens"][:LISTED]]
    return [
        str(r["dim"]),
        words.layer_span(r["first_layer"], r["last_layer"]),
        str(r["peak_layer"]),
        words.mean_and_std(r["value_mean"], r["value_std"], r["value_sequences"], "±"),
        str(r["value_sequences"]),
        words.number(r["ratio"]),
        words.percent(r["share_of_sequences"]),
        positions + more,
        tokens,
        words.sublayer(r["written_by"]),
        words.sublayer(r["removed_by"]),
    ]


def _settings(result: Mapping[str, Any]) -> Section:
    """The settings of a run, and the versions of what it ran on."""
    tables = (("setting", "value", _flat(result["config"])),
              ("package", "version", list(result["versions"].items())))
    return Section("settings", "Settings and versions", [
        Table((name, value), [[[Piece(str(cell))] for cell in item] for item in items],
              text=(name, value))
        for name, value, items in tables
    ])


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as the dotted names that the command line takes."""
    items: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            items += _flat(value, f"{prefix}{key}.")
        else:
            items.append((f"{prefix}{key}", value))
    return items
