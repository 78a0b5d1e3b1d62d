"""What the pages have in common: verdict, massive activations, settings, the page around them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax_massact.report import words
from jax_massact.report.html import (
    Section,
    escape,
    pairs,
    paragraphs,
    render,
    table,
)
from jax_massact.results import DefinitionInfo, MassiveRecord

LISTED = 4  # positions and tokens of a record that the table spells out


def render_report(title: str, result: Mapping[str, Any], sections: Sequence[Section]) -> str:
    """The page of a result: its model under the title, its times at the foot."""
    model, seconds = words.model_line(result["model"]), words.seconds_line(result["seconds"])
    return render(title, model, sections, seconds)


def verdict_section(
    kind: str,
    lines: Iterable[str],
    facts: Iterable[tuple[str, object]],
    definition: DefinitionInfo,
    *,
    warning: str | None = None,
) -> Section:
    """The first section: the findings, what was read, and what counts as massive.

    Args:
      kind: `strict`, `relaxed` or `none`, which gives the colour.
      lines: the findings in sentences.
      facts: terms and what they are, such as the data.
      definition: the thresholds of this run.
      warning: what stands before all else.
    """
    body = (
        (f'<div class="warning">{escape(warning)}</div>' if warning else "")
        + f'<div class="verdict {kind}">{paragraphs(lines)}</div>'
        + pairs(facts)
        + paragraphs(words.definition(definition), "soft")
    )
    return Section("verdict", "What was found", body)


def massive_tables(records: Sequence[MassiveRecord], sequences: int, about: str = "") -> str:
    """Strict and relaxed-only records, each under their name; `about` stands before the name."""
    parts = []
    for strict, call in ((True, "Massive (strict)"),
                         (False, "Relaxed only: not massive by the strict definition")):
        if some := words.by_size(records, strict=strict):
            caption = f"{about}: {call[0].lower()}{call[1:]}" if about else call
            parts.append(_massive_table(some, sequences, caption))
    start = f"{about}: no" if about else "No"
    return "\n".join(parts) or paragraphs(
        [f"{start} massive activations found, strict or relaxed."]
    )


def _massive_table(records: list[MassiveRecord], sequences: int, caption: str) -> str:
    """One row for each record, of a run over so many sequences."""
    def row(r: MassiveRecord) -> list[str]:
        tokens = [_token(t["token"]) + f" ({t['sequences']})" for t in r["tokens"][:LISTED]]
        positions = [f"{p['position']} ({p['sequences']})" for p in r["positions"][:LISTED]]
        more = " …" if len(r["positions"]) > LISTED else ""
        return [
            str(r["dim"]),
            words.layer_span(r["first_layer"], r["last_layer"]),
            str(r["peak_layer"]),
            words.mean_and_std(r["value_mean"], r["value_std"], sequences, "±"),
            words.number(r["ratio"]),
            words.percent(r["share_of_sequences"]),
            _unbroken(positions) + more,
            _unbroken(tokens),
            words.sublayer(r["written_by"]),
            words.sublayer(r["removed_by"]),
        ]

    head = ("dim", "layers", "peak", "value at peak", "ratio", "sequences",
            "positions (sequences)", "tokens (sequences)", "written by", "removed by")
    return table(head, map(row, records), caption=caption,
                 text=head[6:])


def _unbroken(parts: list[str]) -> str:
    """Lines break between the parts only."""
    return ", ".join(f'<span style="white-space:nowrap">{part}</span>' for part in parts)


def _token(token: str) -> str:
    return f"<code>{escape(words.token_label(token))}</code>"


def settings_section(result: Mapping[str, Any]) -> Section:
    """The settings of a run, and the versions of what it ran on."""
    setting = ("setting", "value")
    package = ("package", "version")
    body = table(setting, _code_rows(_flat(result["config"])), text=setting) + table(
        package, _code_rows(list(result["versions"].items())), text=package
    )
    return Section("settings", "Settings and versions", body)


def _code_rows(items: list[tuple[str, Any]]) -> list[list[str]]:
    return [[f"<code>{escape(cell)}</code>" for cell in item] for item in items]


def _flat(config: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as the dotted names that the command line takes."""
    items: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            items += _flat(value, f"{prefix}{key}.")
        else:
            items.append((f"{prefix}{key}", value))
    return items
