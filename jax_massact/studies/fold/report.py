"""The report of `massact fold`: whether the folded model is the same, and what remains massive."""

from collections.abc import Sequence

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.page import Section, Table
from jax_massact.report.sections import found_section, massive_tables, render_report
from jax_massact.report.terminal import Sheet
from jax_massact.report.words import Findings
from jax_massact.results import MassiveRecord
from jax_massact.studies.fold.result import FoldResult

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
        lines.append(f"Massive (strict) before: {_dims(before)}; nothing is massive (strict) "
                     "any more.")
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
    relaxed = [words.by_size(result[key], strict=False)
               for key in ("massive_before", "massive_after")]
    if any(relaxed):
        lines.append(f"Relaxed only: {_dims(relaxed[0])} before, {_dims(relaxed[1])} after.")
    warning = None if result["unchanged"] else (
        "The folded model is not the same: its logits differ by more than is allowed."
    )
    return Findings(lines, words.strength(result["massive_after"]), warning)


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


def show(result: FoldResult, console: Console) -> None:
    """Prints the verdict, both models side by side, and what remains."""
    sheet = Sheet(console)
    sheet.opening(result, words.data_line(result["data"]), findings(result))
    sheet.title("The model with its first token, and without")
    sheet.table(MODELS, _numbers(result), left=("",))
    titles = ("What remains: massive (strict)", "What remains: relaxed only")
    sheet.massive(result["massive_after"], titles)
    sheet.close(words.definition(result["definition"]))


def page(result: FoldResult) -> str:
    """The page, as HTML."""
    title = f"{result['model']['name']} without its first token"
    return render_report(title, result, sections(result))


def sections(result: FoldResult) -> list[Section]:
    """The sections of the page, in reading order."""
    facts = [("Data", words.data_line(result["data"]))]
    if result["saved_to"] is not None:
        facts.append(("Folded model", result["saved_to"]))
    return [
        found_section(findings(result), facts, result),
        Section("numbers", "With the first token, and without",
                [Table(MODELS, _numbers(result), text=("",))]),
        Section("massive-before", "Before", massive_tables(result["massive_before"])),
        Section("massive-after", "What remains",
                massive_tables(result["massive_after"])),
    ]
