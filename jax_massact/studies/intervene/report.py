"""The report of `massact intervene`: verdict, perplexities, and what became of the activation."""

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from jax_massact.report import words
from jax_massact.report.chart import Chart
from jax_massact.report.page import Lines, Part, Section, Table
from jax_massact.report.sections import found_section, massive_tables, render_report
from jax_massact.report.terminal import MAX_ROWS, Sheet
from jax_massact.report.words import Findings
from jax_massact.studies.changes import change_of
from jax_massact.studies.intervene import images_report
from jax_massact.studies.intervene.figures import FIGURES as _FIGURES
from jax_massact.studies.intervene.figures import charts as text_charts
from jax_massact.studies.intervene.figures import perplexity_chart, trajectory_chart
from jax_massact.studies.interventions_result import InterveneResult, Target

__all__ = ["FIGURES", "charts", "page", "show"]
AFTER_ROWS = 5  # of what is over the thresholds once the targets are zero
PLACES = 4  # that the verdict names


FIGURES = (*_FIGURES, "similarity")


def findings(result: InterveneResult) -> Findings:
    """The findings in sentences, the most important first."""
    if result["warnings"]:
        return words.withheld(result["warnings"])
    return Findings(_verdict(result), words.strength(result["massive"]))


def change(value: float, original: float) -> str:
    """`x 9,400` or `+0.4%`: a factor from 2 on, below it a percentage; `-` without a ratio."""
    ratio = _ratio(value, original)
    if math.isnan(ratio):
        return "-"
    return f"x {words.number(ratio)}" if ratio >= 2 else f"{100 * (ratio - 1):+.2f}%"


def effect(value: float, original: float) -> str:
    """The same as the end of a sentence: `multiplies perplexity by 9,400`."""
    ratio = _ratio(value, original)
    if math.isnan(ratio):
        return f"gives a perplexity of {words.number(value)}"
    if math.isinf(ratio):
        return "makes perplexity infinite"
    if ratio >= 2:
        return f"multiplies perplexity by {words.number(ratio)}"
    if abs(ratio - 1) < 1e-4:
        return "changes perplexity by less than 0.01%"
    return f"changes perplexity by {change(value, original)}"


def _ratio(value: float, original: float) -> float:
    return value / original if math.isfinite(original) and original > 0 else math.nan


def _verdict(result: InterveneResult) -> list[str]:
    """In sentences."""
    targets, after = result["targets"], result["after_zero"]
    perplexity, original = result["perplexity"], result["perplexity"]["original"]
    if not targets or after is None:
        return [
            f"{words.nothing_found(result['definition'], result['data']['window'])} There is "
            f"nothing to change. Perplexity is {words.number(original)}."
        ]
    places = ", ".join(f"dim {t['dim']} after block {t['layer']}" for t in targets[:PLACES])
    places += "" if len(targets) <= PLACES else f" and {len(targets) - PLACES} more"
    changed = sum(t["activations"] for t in targets)
    controls = sum(t["control_activations"] for t in targets)
    found = (
        f"Massive activations (strict): {places}."
        if targets[0]["strict"]
        else f"No massive activations by the strict definition; relaxed only: {places}."
    )
    if changed == 0:
        return [
            found,
            "None of them is met in the held-out text: nothing was changed, and whether they are "
            f"needed cannot be said. Perplexity is {words.number(original)}.",
        ]
    sequences = words.count(result["data"]["sequences"], "held-out sequence")
    them, means = ("it", "its mean") if changed == 1 else ("them", "their mean")
    effects = [
        f"Setting {words.count(changed, 'activation')} of {sequences} to zero "
        f"{effect(perplexity['zero'], original)}, from {words.number(original)} to "
        f"{words.number(perplexity['zero'])}.",
        f"Setting {them} to {means} {effect(perplexity['mean'], original)}.",
        f"Control: setting {words.count(controls, 'ordinary activation')} to zero "
        f"{effect(perplexity['control_zero'], original)}.",
    ]
    return [found, " ".join(effects), *_needed(result)]


def _needed(result: InterveneResult) -> list[str]:
    """Which case holds, and what comes back over the relaxed threshold alone."""
    after = result["after_zero"]
    assert after is not None
    edited: dict[int, int] = {}  # the last layer at which each dimension is edited
    for t in result["targets"]:
        edited[t["dim"]] = max(t["layer"], edited.get(t["dim"], 0))
    it, verb = ("It", "is") if len(edited) == 1 else ("They", "are")
    dims = sorted(edited)
    call = "massive" if result["targets"][0]["strict"] else "massive (relaxed)"
    again = f"a later block makes {_dims(after['dims'])} {call} again"
    lines = [
        f"{it} {verb} " + {
            "needed": f"needed: no later block makes {_dims(dims)} {call} again.",
            "rebuilt": f"rebuilt: {again}, and the model does not suffer.",
            "needed and rebuilt": f"needed, though {again}.",
            "not needed": f"not needed: no later block makes {_dims(dims)} {call} again, and "
            "the model does without.",
        }[after["verdict"]]
    ]
    for r in after["massive"]:
        dim, strict = r["dim"], r["strict"]
        if dim not in after["dims"] and r["peak_layer"] > edited.get(dim, len(r["trajectory"])):
            by = "Still, dim" if strict else "Still, by the relaxed definition only, dim"
            lines.append(
                f"{by} {dim} is large after the edit: {words.number(r['value_mean'])} after block "
                f"{r['peak_layer']}, written by {words.sublayer(r['written_by'])}."
            )
    return lines


def _dims(dims: Sequence[int]) -> str:
    return f"dim {words.listed(dims)}"


def show(result: Any, console: Console) -> None:
    """Prints the verdict, the perplexities, the targets, and what is large once they are zero.

    Of an encoder of images, `images_report` has them all.
    """
    if "scores" in result:
        return images_report.show(result, console)
    sheet = Sheet(console)
    after, sequences = result["after_zero"], result["data"]["sequences"]
    sheet.opening(result, words.held_out_line(result["data"]), findings(result))
    sheet.title("Perplexity of the held-out text")
    head = ("intervention", "perplexity", "change", "loss", *(() if sequences == 1 else ("std",)))
    rows = _perplexities(result)
    sheet.table(head, [row[: len(head)] for row in rows], left=head[:1])
    if result["targets"]:
        sheet.title("What was changed")
        head = ("layer", "dim", "kind", "mean", "std", "calibrated on", "changed")
        rows = [
            [str(t["layer"]), str(t["dim"]), m["kind"], words.number(m["mean"]),
             words.number(m["std"]), str(m["count"]), str(t["activations"])]
            for t in result["targets"] for m in t["means"]
        ]
        sheet.table(head, rows, left=("kind",), most=MAX_ROWS)
    if after is not None:
        titles = ("Massive (strict) once the targets are zero",
                  "Relaxed only, once the targets are zero")
        sheet.massive(after["massive"], titles, AFTER_ROWS)
    sheet.close(words.definition(result["definition"]))


def _perplexities(result: InterveneResult) -> list[list[str]]:
    """Name, perplexity, change, loss and its deviation of every intervention."""
    original = result["perplexity"]["original"]
    return [
        [
            change_of(name).words, words.number(value),
            "" if name == "original" else change(value, original),
            f"{result['loss'][name]['mean']:.4f}", f"{result['loss'][name]['std']:.4f}",
        ]
        for name, value in result["perplexity"].items()
    ]


def charts(result: Any) -> list[Chart]:
    """The charts of a result, of text or of images."""
    return [images_report.chart(result)] if "scores" in result else text_charts(result)


def page(result: Any) -> str:
    """The page, as HTML."""
    if "scores" in result:
        return images_report.page(result)
    title = f"Interventions in {result['model']['name']}"
    return render_report(title, result, sections(result))


def sections(result: InterveneResult) -> list[Section]:
    """The sections of the page, in reading order."""
    sequences, after = result["data"]["sequences"], result["after_zero"]
    spread = "" if sequences == 1 else ", std over sequences"
    head = ("intervention", "perplexity", "change", f"loss in nats{spread}")
    rows = [[*row[:3], row[3] if sequences == 1 else f"{row[3]} ± {row[4]}"]
            for row in _perplexities(result)]
    note = Lines(["Perplexity is exp of the mean loss over all scored tokens."], "soft")
    found = [
        found_section(findings(result), [("Data", words.held_out_line(result["data"]))], result),
        Section("perplexity", "Perplexity",
                [perplexity_chart(result), Table(head, rows, text=head[:1]), note]),
    ]
    if after is not None:
        tables = massive_tables(after["massive"], "Once the targets are zero")
        found += [
            Section("targets", "What was changed", _target_table(result["targets"])),
            Section("after", "Needed, or rebuilt?", [trajectory_chart(result), *tables]),
        ]
    return found


def _target_table(targets: Sequence[Target]) -> list[Part]:
    head = ("layer", "dim", "kind of token", "mean", "calibration activations", "changed",
            "control dim", "control changed")
    rows = [
        [
            str(t["layer"]), str(t["dim"]), m["kind"],
            words.mean_and_std(m["mean"], m["std"], m["count"], "±"), str(m["count"]),
            str(t["activations"]), str(t["control_dim"]), str(t["control_activations"]),
        ]
        for t in targets for m in t["means"]
    ]
    note = (
        "Changed: activations of the held-out text, over all kinds of token. The control changes "
        "ordinary activations of one other dimension in the same layer."
    )
    return [Table(head, rows, text=head[2:3]), Lines([note], "soft")]
