"""The report of `massact intervene` of an encoder of images."""

import math

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.chart import BLUE, GREEN, ORANGE, Axis, Bars, Chart, Panel, titled
from jax_massact.report.page import Lines, Section, Table
from jax_massact.report.sections import found_section, massive_tables, render_report
from jax_massact.report.terminal import MAX_ROWS, Sheet
from jax_massact.report.words import Findings
from jax_massact.studies.intervene.images_result import ImageInterveneResult, ImageTarget
from jax_massact.studies.intervene.names import CHANGES

_COLORS = {
    "zero": ORANGE, "mean": BLUE, "shuffle": BLUE, "registers_zero": ORANGE,
    "registers_mean": BLUE, "registers_shuffle": BLUE,
}
LEAST = 1e-7  # a cosine in float32 is not exact below


def findings(result: ImageInterveneResult) -> Findings:
    """The findings in sentences."""
    if result["warnings"]:
        return words.withheld(result["warnings"])
    scores = result["scores"]
    places = ", ".join(f"dim {t['dim']} after block {t['layer']}" for t in result["targets"][:4])
    more = len(result["targets"]) - 4
    places += f" and {more} more" if more > 0 else ""
    at = lambda name: words.number(scores[name]["features"]["mean"])
    kind = result["targets"][0]["kind"]
    found = {
        "strict": f"Massive activations (strict): {places}.",
        "relaxed": f"No massive activations by the strict definition; relaxed only: {places}.",
        "largest": f"Nothing is massive, strict or relaxed; the largest activation: {places}.",
    }[kind]
    lines = [
        found,
        "Cosine of the features to the unedited ones, mean over pictures: set to zero "
        f"{at('zero')}, to the mean of the other pictures {at('mean')}, to another picture's value "
        f"{at('shuffle')}. Controls of equal size: a random vector of the same length added "
        f"{at('control_random')} (mean of {result['draws']} draws), the next largest dimension set "
        f"to zero {at('control_next')}.",
    ]
    if scores["zero"]["features"]["mean"] > scores["control_random"]["features"]["mean"]:
        lines.append(
            "A random vector of the same length does more: that the model needs what was set to "
            "zero does not show here."
        )
    if "registers_mean" in scores:
        lines.append(
            "Registers fixed at every block's input: to zero "
            f"{at('registers_zero')}, to their mean over the other pictures "
            f"{at('registers_mean')}, to another picture's {at('registers_shuffle')}."
        )
    return Findings(lines, "none" if kind == "largest" else kind)


def _scores(result: ImageInterveneResult) -> tuple[list[str], list[list[str]]]:
    """The table of scores; columns that no change has are left out."""
    scores = result["scores"]
    head, columns = ["intervention", "cosine", "least"], []
    columns += [lambda s: s["features"]["mean"], lambda s: s["features"]["min"]]
    first = scores["original"]
    if first["cls"] is not None:
        head.append("of CLS")
        columns.append(lambda s: s["cls"]["mean"])
    for name, title in (("top1_same", "same top-1"), ("knn", "kNN"), ("linear", "linear"),
                        ("zero_shot", "zero-shot")):
        if first.get(name) is not None:
            head.append(title)
            columns.append(lambda s, name=name: s[name])
    rows = [
        [CHANGES.get(name, name), *(words.number(column(score)) for column in columns)]
        for name, score in scores.items()
    ]
    return head, rows


def _targets(targets: list[ImageTarget]) -> tuple[list[str], list[list[str]]]:
    head = ["layer", "dim", "value", "std", "changed", "next dim", "where"]
    rows = [
        [str(t["layer"]), str(t["dim"]), words.number(t["value_mean"]),
         words.number(t["value_std"]), str(t["activations"]), str(t["next_dim"]),
         ", ".join(f"{name} ({n})" for name, n in list(t["tokens"].items())[:3])]
        for t in targets
    ]
    return head, rows


def data_line(result: ImageInterveneResult) -> str:
    """What was read."""
    data, classes = result["data"], result["classes"]
    labels = f", {words.count(classes, 'class')[:-1]}es" if classes else ", without labels"
    return (
        f"{words.count(data['sequences'], 'picture')} of {data['source']}, "
        f"{words.count(data['sequence_length'], 'token')} each{labels}"
    )


_NOTE = (
    "Cosine of what the model pools, to the unedited output; least over the pictures. kNN: "
    "accuracy of 20 neighbours among the other pictures (T 0.07). Linear: of a ridge regression on "
    "every second picture's unedited features, on the rest. Zero-shot: pictures to which the text "
    "of their class is the nearest."
)


def show(result: ImageInterveneResult, console: Console) -> None:
    """Prints the verdict, the scores and the targets."""
    sheet = Sheet(console)
    sheet.opening(result, data_line(result), findings(result))
    sheet.title("Output after each intervention")
    head, rows = _scores(result)
    sheet.table(head, rows, left=head[:1])
    sheet.title("What was changed")
    head, rows = _targets(result["targets"])
    sheet.table(head, rows, left=head[-1:], most=MAX_ROWS)
    sheet.close([_NOTE, *words.definition(result["definition"])])


def chart(result: ImageInterveneResult) -> Chart:
    """How far each change moves the output."""
    scores = {k: s["features"]["mean"] for k, s in result["scores"].items() if k != "original"}
    away = [max(1 - cosine, LEAST) if math.isfinite(cosine) else 1.0 for cosine in scores.values()]
    bars = Bars(
        [CHANGES[name] for name in scores], away, [(x, x) for x in away],
        [words.number(cosine) for cosine in scores.values()],
        [_COLORS.get(name, GREEN) for name in scores],
    )
    axis = Axis("1 - cosine to the unedited features", scale="log", range=(LEAST, 10.0))
    panel = Panel([bars], x=axis, height=110 + 42 * len(away))
    return Chart(
        "similarity", titled(result["model"]["name"], "interventions"),
        "Distance of the features after each intervention", [panel],
        size=(6.4, 1.0 + 0.4 * len(away)),
    )


def page(result: ImageInterveneResult) -> str:
    """The page, as HTML."""
    head, rows = _scores(result)
    target_head, target_rows = _targets(result["targets"])
    sections = [
        found_section(findings(result), [("Data", data_line(result))], result),
        Section("scores", "Output after each intervention", [
            chart(result), Table(head, rows, text=head[:1]), Lines([_NOTE], "soft"),
        ]),
        Section("targets", "What was changed",
                [Table(target_head, target_rows, text=target_head[-1:])]),
        Section("massive", "Massive activations", massive_tables(result["massive"])),
    ]
    return render_report(f"Interventions in {result['model']['name']}", result, sections)
