"""The report of `massact fold`: whether the folded model is the same, and what remains massive."""

from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.text import Text

from jax_massact.probe.explain_result import FoldResult
from jax_massact.report import words
from jax_massact.report.encode import to_json, write_text
from jax_massact.report.html import Section, paragraphs, render, table
from jax_massact.report.page import massive_table, settings_body
from jax_massact.report.terminal import headed, massive_rows, plain_table, section_title, spelled


def verdict(result: FoldResult) -> list[str]:
    """The findings in sentences."""
    token = words.token_label(result["first_token"])
    same = "unchanged" if result["unchanged"] else "CHANGED"
    lines = [
        f"The first token {token} (id {result['first_token_id']}) is now k', v' in every head and "
        f"layer. The other tokens' logits are {same}: the largest difference is "
        f"{result['logit_difference']:.1e} of the largest logit (allowed: "
        f"{result['allowed_difference']:.0e})."
    ]
    before, after = (
        [r for r in result[key] if r["strict"]] for key in ("massive_before", "massive_after")
    )
    dims = lambda records: ", ".join(str(r["dim"]) for r in records)
    if before and not after:
        lines.append(f"Massive (strict) before: dim {dims(before)}; nothing is massive any more.")
    elif after:
        places = "; ".join(f"dim {r['dim']} at {words.kinds(r)}" for r in after)
        lines.append(
            f"What remains (strict): {places}. These are not at the first token, and folding does "
            "not touch them."
        )
    else:
        lines.append("No massive activations (strict), neither before nor after.")
    if relaxed := [r for r in result["massive_after"] if not r["strict"]]:
        n = words.count(len(relaxed), "dimension")
        lines.append(f"Relaxed only, at other tokens: {n} (dim {dims(relaxed)}).")
    return lines


def _numbers(result: FoldResult) -> list[tuple[str, str, str]]:
    def number(key: str, strict: bool) -> str:
        return str(sum(r["strict"] == strict for r in result[key]))

    return [
        ("perplexity", words.number(result["perplexity_original"]),
         words.number(result["perplexity_folded"])),
        ("largest |h|", words.number(result["largest_before"]),
         words.number(result["largest_after"])),
        ("dimensions, strict", number("massive_before", True), number("massive_after", True)),
        ("dimensions, relaxed only", number("massive_before", False),
         number("massive_after", False)),
    ]


def print_fold(result: FoldResult, console: Console) -> None:
    """Prints the verdict, both models side by side, and what remains."""
    ascii_only = console.options.ascii_only
    spell = spelled if ascii_only else str
    token_label = words.ascii_label if ascii_only else words.token_label
    rows = plain_table("", "original", "folded", left=("",))
    for row in _numbers(result):
        rows.add_row(*row)
    style = "bold" if result["unchanged"] else "bold red"
    parts: list[RenderableType] = [
        headed("Model", spell(words.model_line(result["model"]))),
        headed("Data", spell(words.data_line(result["data"], token_label))),
        headed("Verdict", spell("\n".join(verdict(result))), style),
        section_title("The model with its first token, and without"),
        rows,
    ]
    if result["massive_after"]:
        parts.append(section_title("What remains over the thresholds"))
        parts.append(massive_rows(result["massive_after"][:10], result["data"]["sequences"],
                                  ascii_only))
    parts.append(Text("\n".join(words.definition(result["definition"])), style="dim"))
    console.print(Group(*parts))


def write_fold_report(result: FoldResult, folder: Path) -> list[Path]:
    """Writes `fold.json` and `fold.html` into `folder`.

    Raises:
      OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    kind = "strict" if result["unchanged"] else "relaxed"
    sections = [
        Section(
            "verdict", "What was found",
            f'<div class="verdict {kind}">{paragraphs(verdict(result))}</div>'
            + paragraphs([words.data_line(result["data"])])
            + paragraphs(words.definition(result["definition"]), "soft"),
        ),
        Section("numbers", "With the first token, and without",
                table(("", "original", "folded"), _numbers(result), text=("",))),
    ]
    for key, title in (("massive_before", "Before"), ("massive_after", "What remains")):
        body = ""
        for strict, call in ((True, "Massive (strict)"), (False, "Relaxed only")):
            if records := words.by_size(result[key], strict=strict):
                body += massive_table(records, result["data"]["sequences"], call)
        body = body or paragraphs(["Nothing over the thresholds, strict or relaxed."])
        sections.append(Section(key.replace("_", "-"), title, body))
    sections.append(Section("settings", "Settings and versions", settings_body(result)))
    page = render(
        f"{result['model']['name']} without its first token",
        words.model_line(result["model"]),
        sections,
        ", ".join(f"{k.replace('_', ' ')} {words.number(s)} s"
                  for k, s in result["seconds"].items()),
    )
    return [
        write_text(folder / "fold.json", to_json(result, indent=2) + "\n"),
        write_text(folder / "fold.html", page),
    ]
