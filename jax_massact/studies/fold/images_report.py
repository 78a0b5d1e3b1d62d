"""The report of `massact fold` of an encoder of images."""

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.page import Lines, Section, Table
from jax_massact.report.sections import found_section, massive_tables, render_report
from jax_massact.report.terminal import Sheet
from jax_massact.report.words import Findings
from jax_massact.studies.fold.images_result import FoldImagesResult

MODELS = ("", "unedited", "folded")
_NAMES = {"stream": "last stream of CLS and patches", "features": "features"}


def findings(result: FoldImagesResult) -> Findings:
    """The findings in sentences; a warning where the folded model is not the fixed one."""
    if result["warnings"]:
        return words.withheld(result["warnings"])
    number, found = result["registers"], result["difference"]
    what = "register is now a key k' and a value v'" if number == 1 else (
        f"{number} registers are now {number} keys k' and values v'"
    )
    lines = [
        f"The {what} in every head and block. Against the model whose registers are fixed to their "
        f"means at every block's input, the largest difference is {found['stream']:.1e} of the "
        f"largest number in the last stream, {found['features']:.1e} in the features (allowed: "
        f"{result['allowed_difference']:.0e})."
    ]
    cosine, moved = result["folded"]["features"], result["distance"]["features"]
    lines.append(
        f"To the unedited model, cosine of the features: {_cosine(cosine['mean'])} (least "
        f"{_cosine(cosine['min'])}); they move by {words.number(moved['mean'])} of their "
        f"length (most {words.number(moved['max'])})."
    )
    before, after = (words.by_size(result[key], strict=True)
                     for key in ("massive_before", "massive_after"))
    if before and not after:
        dims = words.listed([r["dim"] for r in before])
        lines.append(f"Massive (strict) before: dim {dims}; nothing is left.")
    elif after:
        dims = words.listed([r["dim"] for r in after])
        lines.append(f"What remains (strict): dim {dims}, at CLS or patches.")
    else:
        lines.append("No massive activations (strict), neither before nor after.")
    warning = None if result["unchanged"] else (
        "The folded model is not the fixed one: it differs by more than is allowed."
    )
    return Findings(lines, words.strength(result["massive_after"]), warning)


def _cosine(value: float) -> str:
    """With the digits in which it differs from 1."""
    return f"{value:.6f}"


def data_line(result: FoldImagesResult) -> str:
    """What was read."""
    data = result["data"]
    return (
        f"{words.count(data['sequences'], 'picture')} of {data['source']}; the means are over "
        f"{words.count(result['calibration'], 'other picture')}"
    )


def _numbers(result: FoldImagesResult) -> list[tuple[str, str, str]]:
    """Both models side by side; scores that neither has are left out."""
    original, folded = result["original"], result["folded"]
    rows = [("cosine of the features, mean", "1", _cosine(folded["features"]["mean"])),
            ("cosine of the features, least", "1", _cosine(folded["features"]["min"]))]
    if folded["cls"] is not None:
        rows.append(("cosine of CLS, mean", "1", _cosine(folded["cls"]["mean"])))
    for name, title in (("top1_same", "same top-1"), ("knn", "kNN"), ("linear", "linear")):
        if original[name] is not None:
            rows.append((title, words.number(original[name]), words.number(folded[name])))
    rows += [
        (f"{_NAMES[name]}: relative distance", "0", words.number(x["mean"]))
        for name, x in result["distance"].items()
    ]
    rows.append(("largest |h|", words.number(result["largest_before"]),
                 words.number(result["largest_after"])))
    for strict, call in ((True, "strict"), (False, "relaxed only")):
        before, after = (str(len(words.by_size(result[key], strict=strict)))
                         for key in ("massive_before", "massive_after"))
        rows.append((f"dimensions, {call}", before, after))
    return rows


def show(result: FoldImagesResult, console: Console) -> None:
    """Prints the verdict, both models side by side, and what remains."""
    sheet = Sheet(console)
    sheet.opening(result, data_line(result), findings(result))
    sheet.title("The unedited model, and the one without its registers")
    sheet.table(MODELS, _numbers(result), left=("",))
    sheet.massive(result["massive_after"],
                  ("What remains: massive (strict)", "What remains: relaxed only"))
    sheet.close(["The folded model is read by jax_massact.",
                 *words.definition(result["definition"])])


def page(result: FoldImagesResult) -> str:
    """The page, as HTML."""
    facts = [("Data", data_line(result))]
    if result["saved_to"] is not None:
        facts.append(("Folded model", result["saved_to"]))
    rows = [[_NAMES[name], f"{x:.1e}", f"{result['allowed_difference']:.0e}"]
            for name, x in result["difference"].items()]
    head = ("", "largest difference", "allowed")
    note = (
        "Largest |difference| over the largest magnitude, to the model whose registers are set to "
        "their means at every block's input."
    )
    sections = [
        found_section(findings(result), facts, result),
        Section("numbers", "Unedited, and without registers",
                [Table(MODELS, _numbers(result), text=("",))]),
        Section("difference", "Folded and fixed",
                [Table(head, rows, text=("",)), Lines([note], "soft")]),
        Section("massive-before", "Before", massive_tables(result["massive_before"])),
        Section("massive-after", "What remains", massive_tables(result["massive_after"])),
    ]
    return render_report(f"{result['model']['name']} without its registers", result, sections)
