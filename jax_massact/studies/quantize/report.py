"""The report of `massact quantize`: verdict, perplexities, one block at a time, ranges."""

import math
from collections.abc import Sequence

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.page import Lines, Part, Section, Table
from jax_massact.report.sections import found_section, massive_tables, render_report
from jax_massact.report.terminal import Sheet
from jax_massact.report.words import Findings
from jax_massact.studies.quantize.figures import (
    FIGURES,
    PICTURED,
    VARIANTS,
    charts,
    label,
    range_chart,
    ratio_chart,
    rounded,
    sensitivity_chart,
    variants,
)
from jax_massact.studies.quantize.result import (
    QuantizeResult,
    QuantizeVerdict,
    RangeRecord,
    RowRecord,
    SensitivityRecord,
)

__all__ = ["FIGURES", "charts", "page", "show"]
SAID = 6  # blocks of the sensitivity in the terminal
SITES = {
    "linear": "the inputs of linear layers", "residual": "the residual stream",
    "outputs": "the results of attention and MLP", "softmax": "the softmax",
    "cache": "keys and values", "all": "all sites",
}
GRANULARITY = {"tensor": "one range for a sequence", "token": "a range for each token",
               "static": "ranges of the calibration text"}


def findings(result: QuantizeResult) -> Findings:
    """The findings in sentences."""
    if result["warnings"]:
        return words.withheld(result["warnings"])
    verdict, strict = result["verdict"], words.by_size(result["massive"], strict=True)
    lines = [_massive(result)]
    lines += filter(None, (_costs(result, sites) for sites in _sites(result)))
    if verdict is not None and result["sensitivity"]:
        lines.append(_alone(result, verdict))
    if verdict is not None and verdict["bits_saved"]:
        saved = " and ".join(f"{words.count(bits, 'bit')} in {SITES[sites]}"
                             for sites, bits in verdict["bits_saved"].items())
        needed = ", ".join(
            f"{r['sites']} {'more than 16' if r['bits'] is None else r['bits']}"
            f" ({r['variant']})" for r in result["bits"])
        lines.append(f"Folding the first token saves {saved}: the fewest bits with at most 10% "
                     f"more perplexity are {needed}.")
    return Findings(lines, "strict" if strict else words.strength(result["massive"]))


def _massive(result: QuantizeResult) -> str:
    records = words.strongest(result["massive"])
    if not records:
        return words.nothing_found(result["definition"], result["data"]["window"])
    return words.sentence(records[0])


def _sites(result: QuantizeResult) -> list[str]:
    return list(dict.fromkeys(row["sites"] for row in rounded(result)))


def _costs(result: QuantizeResult, sites: str) -> str:
    """What the rows of these sites cost, variant by variant."""
    rows = [row for row in rounded(result) if row["sites"] == sites]
    parts = []
    for name in dict.fromkeys(map(label, rows)):
        own = {row["variant"]: times(row["ratio"]) for row in rows if label(row) == name}
        folded = f" (folded {own['folded']})" if "folded" in own else ""
        parts.append(f"{name.removeprefix(sites).strip()} {own.get('original', '-')}{folded}")
    said = " and ".join(SITES.get(name, name) for name in sites.split("+"))
    return f"Perplexity with {said} rounded: {', '.join(parts)}."


def _alone(result: QuantizeResult, verdict: QuantizeVerdict) -> str:
    """Which blocks lose most when they alone are rounded, and what they do."""
    changes = {r["layer"]: r["loss_change"] for r in result["sensitivity"]
               if r["site"] == "mlp_hidden"}
    if not changes:
        return f"Alone in each block: {', '.join(_sensitive_sites(result))}."
    if not verdict["sensitive"]:
        return "No block's MLP units lose anything when they alone are rounded to int8."
    roles = {place["layer"]: role for role, place in (("the remover", verdict["remover"]),
                                                      ("the writer", verdict["writer"]))
             if place is not None and place["sublayer"] == "mlp"}
    named = ", ".join(
        f"{layer} ({roles[layer] + ', ' if layer in roles else ''}"
        f"{100 * math.expm1(changes[layer]):+.1f}%)" for layer in verdict["sensitive"][:SAID])
    text = f"MLP units of one block alone in int8, one range for a sequence: block {named}."
    if verdict["others"] and roles:
        several = len(verdict["others"]) > 1
        text += (f" Block{'s' * several} {words.listed(verdict['others'])} neither "
                 f"{'write nor remove' if several else 'writes nor removes'} it: other tokens are "
                 "large there.")
    return text


def _sensitive_sites(result: QuantizeResult) -> list[str]:
    return [f"{r['site']} {r['layer']} {100 * math.expm1(r['loss_change']):+.1f}%"
            for r in _ranked(result)[:SAID]]


def _ranked(result: QuantizeResult) -> list[SensitivityRecord]:
    return sorted(result["sensitivity"], key=lambda r: -r["loss_change"])


def times(ratio: float) -> str:
    """`x1.95`, `x25,813`."""
    if not math.isfinite(ratio) or ratio >= 100:
        return f"x{words.number(ratio)}"
    return f"x{ratio:.3f}" if ratio < 1.1 else f"x{ratio:.3g}"


def show(result: QuantizeResult, console: Console) -> None:
    """Prints the verdict, the ratios of all variants, the worst blocks, and their ranges."""
    sheet = Sheet(console)
    sheet.opening(result, words.held_out_line(result["data"]), findings(result))
    sheet.title("Perplexity, and its ratio to that of the same variant in float")
    head = ("rounded", *variants(result))
    sheet.table(head, _table(result), left=head[:1])
    if result["sensitivity"]:
        sheet.title("One site of one block in int8, one range for a sequence: the worst")
        head = ("site", "block", "added loss", "stderr")
        sheet.table(head, [_sensitivity_row(r) for r in _ranked(result)[:SAID]], left=head[:1])
    if rows := _glance(result):
        sheet.title("Ranges (8 bits, one for a sequence)")
        head = ("site", "block", "top", "others", "bits lost", "SQNR", "without", "zeros")
        sheet.table(head, rows, left=head[:1])
    sheet.close(_notes(result))


def _table(result: QuantizeResult) -> list[list[str]]:
    """Perplexity in float, then the ratio of each row."""
    cells = {(label(row), row["variant"]): row for row in result["rows"]}
    plain = {row["variant"]: row for row in result["rows"] if row not in rounded(result)}
    names = variants(result)
    rows = [["float", *(words.number(plain[v]["perplexity"]) for v in names)]]
    for name in dict.fromkeys(map(label, rounded(result))):
        rows.append([name, *(_ratio(cells.get((name, v))) for v in names)])
    return rows


def _ratio(row: RowRecord | None) -> str:
    return "-" if row is None else times(row["ratio"])


def _sensitivity_row(r: SensitivityRecord) -> list[str]:
    return [r["site"], str(r["layer"]), f"{r['loss_change']:+.4f}", words.number(r["stderr"])]


def _glance(result: QuantizeResult) -> list[list[str]]:
    """The ranges where massive activations are written and removed, and of the worst blocks."""
    verdict = result["verdict"]
    if verdict is None:
        return []
    places = [place["layer"] for place in (verdict["writer"], verdict["remover"]) if place]
    blocks = dict.fromkeys([*places, *verdict["sensitive"][:SAID]])
    return [_range_row(r) for site in PICTURED for block in blocks for r in result["ranges"]
            if (r["site"], r["layer"]) == (site, block)]


def _range_row(r: RangeRecord) -> list[str]:
    return [
        r["site"], str(r["layer"]), words.number(r["top"]), words.number(r["top_without"]),
        *("-" if x is None else f"{x:.1f}"
          for x in (r["bits_lost"], r["sqnr"], r["sqnr_without"])),
        words.percent(r["zero_share"]),
    ]


def _notes(result: QuantizeResult) -> list[str]:
    used = dict.fromkeys(row["granularity"] for row in rounded(result))
    spans = "; ".join(f"{name}: {GRANULARITY[name]}" for name in used)
    kept, weighed = result["kept_tokens"], any(r["weights"] for r in result["rows"])
    notes = [
        f"{spans}. linear: the inputs of every block's linear layers; residual: the embedding and "
        "both sums of every block. Head and embeddings stay in float, and so do weights"
        + (", but for rows with w and their bits." if weighed else "."),
        "SQNR: signal over quantization noise of the tokens that are not massive, dB; without: in "
        "a range without massive tokens; zeros: share of their activations that become 0.",
    ]
    if result["first_token"] is not None:
        token = words.token_label(result["first_token"])
        notes.append(f"first: {token} in front of every sequence; folded: its keys and values as "
                     "k', v'.")
    if kept is not None:
        notes.append(f"kept: {words.number(kept)} of a sequence's tokens in float "
                     f"(keep={result['config'].get('keep', 'first')}).")
    if any(row["variant"] == "halved" for row in result["rows"]):
        notes.append("halved: the dimensions of massive activations clipped to half their mean.")
    return [*notes, *words.definition(result["definition"])]


def page(result: QuantizeResult) -> str:
    """The page, as HTML."""
    title = f"What rounding costs {result['model']['name']}"
    return render_report(title, result, sections(result))


def sections(result: QuantizeResult) -> list[Section]:
    """The sections of the page, in reading order."""
    found = [
        found_section(findings(result), [("Data", words.held_out_line(result["data"]))], result),
        Section("rows", "Perplexity", [*[ratio_chart(result)] * bool(rounded(result)),
                                       *_row_tables(result), Lines(_notes(result)[:-3], "soft")]),
    ]
    if result["sensitivity"]:
        head = ("site", "block", "added loss, nats", "standard error")
        rows = [_sensitivity_row(r) for r in result["sensitivity"]]
        found.append(Section("sensitivity", "One block at a time",
                             [sensitivity_chart(result), Table(head, rows, text=head[:1])]))
    head = ("site", "block", "largest", "token", "position", "largest of others", "bits lost",
            "SQNR, dB", "without", "zeros", "token ratio", "LLM.int8 columns", "without")
    rows = [[*_range_row(r)[:3], words.token_label(r["top_token"]), str(r["top_position"]),
             *_range_row(r)[3:], words.number(r["token_ratio"]), words.number(r["columns"]),
             words.number(r["columns_without"])] for r in result["ranges"]]
    return [
        *found,
        Section("ranges", "Ranges", [range_chart(result),
                                     Table(head, rows, text=("site", "token"))]),
        Section("massive", "Massive activations", massive_tables(result["massive"])),
    ]


def _row_tables(result: QuantizeResult) -> Sequence[Part]:
    sequences = result["data"]["sequences"]
    spread = ", std over sequences" if sequences > 1 else ""
    head = ("variant", "rounded", "perplexity", "ratio", f"loss in nats{spread}",
            "standard error of ln ratio")
    rows = [
        [VARIANTS[row["variant"]], "float" if row not in rounded(result) else label(row),
         words.number(row["perplexity"]), times(row["ratio"]),
         f"{row['loss']['mean']:.4f}" + (f" ± {row['loss']['std']:.4f}" if sequences > 1 else ""),
         words.number(row["stderr"])]
        for row in result["rows"]
    ]
    bits = [[r["variant"], r["sites"], "more than 16" if r["bits"] is None else str(r["bits"]),
             "-" if r["ratio"] is None else times(r["ratio"])] for r in result["bits"]]
    tables: list[Part] = [Table(head, rows, text=head[:2])]
    if bits:
        tables.append(Table(("variant", "sites", "bits", "ratio"), bits, text=("variant", "sites"),
                            caption="The fewest bits with at most 10% more perplexity"))
    return tables
