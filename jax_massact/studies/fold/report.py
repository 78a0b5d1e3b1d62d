"""The report of `massact fold`: whether the folded model is the same, and what remains massive."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.page import Part, Section, Table
from jax_massact.report.sections import found_section, massive_tables, render_report
from jax_massact.report.terminal import Sheet
from jax_massact.report.words import Findings
from jax_massact.results import MassiveRecord
from jax_massact.studies import medium_report
from jax_massact.studies.fold import images_report
from jax_massact.studies.fold.result import FoldResult, Followed, OutlierStudy

MODELS = ("", "original", "folded")


def findings(result: FoldResult) -> Findings:
    """The findings in sentences; a warning where the folded model is not the same."""
    if result["warnings"]:
        return words.withheld(result["warnings"])
    token = words.token_label(result["first_token"])
    same = "unchanged" if result["unchanged"] else "CHANGED"
    lines = [
        f"The first token {token} (id {result['first_token_id']}) is now k', v' in every head and "
        f"layer. The other tokens' logits are {same}: the largest difference is "
        f"{result['logit_difference']:.1e} of the largest logit (allowed: "
        f"{result['allowed_difference']:.0e})."
    ]
    before, after = (words.by_size(result[key], strict=True)
                     for key in ("massive_before", "massive_after"))
    if before and not after:
        lines.append(f"Massive (strict) before: {_dims(before)}; no dimension is any more, by the "
                     "share of sequences that the definition asks for.")
    elif after:
        places = "; ".join(f"dim {r['dim']}, {words.layer_span(r['first_layer'], r['last_layer'])}"
                           for r in after[:words.SAID_IN_FULL])
        more = len(after) - words.SAID_IN_FULL
        places += f" and {more} more" if more > 0 else ""
        lines.append(
            f"What remains (strict), by dimension and layer: {places}. It sits at tokens that stay "
            "in the sequence; folding does not touch them."
        )
    else:
        lines.append("No massive activations (strict), neither before nor after.")
    if number := result.get("massive_sequences_after"):
        first = result["massive_first_after"]
        where = f", in {first} of them the first that is left" if first else ""
        lines.append(
            f"In {number} of {words.count(result['data']['sequences'], 'sequence')} a token is "
            f"massive (strict) although k', v' exist{where}: that depends on the text."
        )
    relaxed = [words.by_size(result[key], strict=False)
               for key in ("massive_before", "massive_after")]
    if any(relaxed):
        lines.append(f"Relaxed only: {_dims(relaxed[0])} before, {_dims(relaxed[1])} after.")
    lines += medium_report.sentences(result.get("medium")) + _outliers(result.get("outliers"))
    warning = None if result["unchanged"] else (
        "The folded model is not the same: its logits differ by more than is allowed."
    )
    return Findings(lines, words.strength(result["massive_after"]), warning)


def _outliers(study: OutlierStudy | None) -> list[str]:
    """What massive activations and outlier features have to do with each other."""
    if study is None:
        return []
    before, after = ({f["dim"] for f in study[when]} for when in ("before", "after"))
    dims = lambda some: words.listed(sorted(some)) or "none"
    changed = "the same" if before == after else f"now {dims(after)}"
    lines = [
        f"Outlier features: dim {dims(before)} before, {changed} after; the other tokens' streams "
        f"differ by {study['stream_difference']:.1e} of the largest |h|, by construction."
    ]
    for key, zeroed in (("outliers_without_massive", "massive activations"),
                        ("massive_without_outliers", "outlier features")):
        moved = [f"dim {f['dim']} {words.number(old)} to {words.number(new)}"
                 for f in study[key] for old, new in [_peak(f)]]
        if moved:
            some = ", ".join(moved[: words.SAID_IN_FULL])
            lines.append(f"With the {zeroed} set to zero: {some}.")
    if parts := sorted(study["direct"], key=lambda p: -abs(p["direct"]))[: words.SAID_IN_FULL]:
        said = ", ".join(
            f"{words.number(p['direct'])} of dim {p['dim']}'s {words.number(p['mean'])} after "
            f"block {p['layer']}" for p in parts)
        lines.append(f"k', v' write directly: {said}.")
    return lines


def _peak(followed: Followed) -> tuple[float, float]:
    """The value where it is largest, and what it is there with the other set to zero."""
    at = max(range(len(followed["original"])), key=lambda l: abs(followed["original"][l]))
    return followed["original"][at], followed["zeroed"][at]


def _dims(records: Sequence[MassiveRecord]) -> str:
    """`dim 7`, `3 dimensions (dim 507, 260, 247)`, `none`."""
    if not records:
        return "none"
    dims = words.listed([r["dim"] for r in records], 5)
    if len(records) == 1:
        return f"dim {dims}"
    return f"{words.count(len(records), 'dimension')} (dim {dims})"


def _numbers(result: FoldResult) -> list[tuple[str, str, str]]:
    def dimensions(key: str, strict: bool) -> str:
        return str(len(words.by_size(result[key], strict=strict)))

    return [
        ("perplexity", words.number(result["perplexity_original"]),
         words.number(result["perplexity_folded"])),
        ("largest |h|", words.number(result["largest_before"]),
         words.number(result["largest_after"])),
        *(
            (f"dimensions, {call}", dimensions("massive_before", strict),
             dimensions("massive_after", strict))
            for strict, call in ((True, "strict"), (False, "relaxed only"))
        ),
    ]


def show(result: Any, console: Console) -> None:
    """Prints the verdict, both models side by side, and what remains.

    Of an encoder of images, `images_report` has them all.
    """
    if "registers" in result:
        return images_report.show(result, console)
    sheet = Sheet(console)
    sheet.opening(result, words.data_line(result["data"]), findings(result))
    sheet.title("The model with its first token, and without")
    sheet.table(MODELS, _numbers(result), left=("",))
    titles = ("What remains: massive (strict)", "What remains: relaxed only")
    sheet.massive(result["massive_after"], titles)
    medium_report.show(sheet, result.get("medium"))
    sheet.close([f"The folded model is read by {_programs(result)}.",
                 *words.definition(result["definition"])])


def _programs(result: FoldResult) -> str:
    found = result.get("loads_in", {"programs": ["jax_massact"], "lost": []})  # of older files
    programs = ", ".join(found["programs"]) or "none"
    if not found["lost"]:
        return programs
    return f"{programs} alone; elsewhere would be lost: {'; '.join(found['lost'])}"


def page(result: Any) -> str:
    """The page, as HTML."""
    if "registers" in result:
        return images_report.page(result)
    title = f"{result['model']['name']} without its first token"
    return render_report(title, result, sections(result))


def sections(result: FoldResult) -> list[Section]:
    """The sections of the page, in reading order."""
    facts = [("Data", words.data_line(result["data"]))]
    if result["saved_to"] is not None:
        facts.append(("Folded model", result["saved_to"]))
    facts.append(("Read by", _programs(result)))
    return [
        found_section(findings(result), facts, result),
        Section("numbers", "With the first token, and without",
                [Table(MODELS, _numbers(result), text=("",))]),
        Section("massive-before", "Before", massive_tables(result["massive_before"])),
        Section("massive-after", "What remains",
                massive_tables(result["massive_after"])),
        *medium_report.sections(result.get("medium")),
        *_outlier_sections(result.get("outliers")),
    ]


def _outlier_sections(study: OutlierStudy | None) -> list[Section]:
    if study is None:
        return []
    direct = [[str(p["dim"]), str(p["layer"]), words.number(p["mean"]), words.number(p["direct"])]
              for p in study["direct"]]
    parts: list[Part] = [
        Table(("dim", "block", "mean over tokens", "written by k', v' directly"), direct,
              caption="Outlier features, and what attention to k' adds to them without detours"),
    ]
    for key, caption in (("outliers_without_massive", "Outlier features, mean over other tokens"),
                         ("massive_without_outliers", "Massive activations")):
        if followed := study[key]:
            layers = range(len(followed[0]["original"]))
            head = ("block", *(f"dim {f['dim']}{what}" for f in followed for what in ("", ", set")))
            rows = [[str(layer), *(words.number(f[k][layer]) for f in followed
                                   for k in ("original", "zeroed"))] for layer in layers]
            parts.append(Table(head, rows, caption=f"{caption}; set: with the others set to zero"))
    return [Section("outliers", "Massive activations and outlier features", parts)]
