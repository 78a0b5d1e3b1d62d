"""The report of `massact intervene`: verdict, perplexities, and what became of the activation."""

import math
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jax_massact.report import words
from jax_massact.report.charts import FONT, layer_layout, line
from jax_massact.report.html import (
    Section,
    chart,
    escape,
    paragraphs,
    table,
)
from jax_massact.report.picture import (
    GREY,
    PALETTE,
)
from jax_massact.report.sections import (
    massive_tables,
    render_report,
    settings_section,
    verdict_section,
)
from jax_massact.report.terminal import (
    MAX_ROWS,
    headed,
    left_out,
    massive_parts,
    plain_table,
    section_title,
    spelled,
    verdict_style,
)
from jax_massact.studies.changes import change_of
from jax_massact.studies.interventions_result import (
    InterveneResult,
    Spread,
    Target,
    Trajectory,
)

AFTER_ROWS = 5  # of what is over the thresholds once the targets are zero
PLACES = 4  # that the verdict names
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


def verdict(result: InterveneResult) -> list[str]:
    """The findings in sentences, the most important first."""
    targets, after = result["targets"], result["after_zero"]
    perplexity, original = result["perplexity"], result["perplexity"]["original"]
    if not targets or after is None:
        return [
            "No massive activations found, strict or relaxed: there is nothing to change. "
            f"Perplexity is {words.number(original)}."
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


def data_line(result: InterveneResult) -> str:
    """What was read, and how the perplexity is measured."""
    d = result["data"]
    bos = "each beginning with BOS" if d["bos"] else "without BOS"
    return (
        f"{d['source']}, {bos} (bos={d['bos_setting']}): "
        f"{words.count(d['calibration_sequences'], 'sequence')} for calibration, {d['sequences']} "
        f"held out; windows of {d['window']} tokens, stride {d['stride']}, "
        f"{d['scored_tokens']:,} tokens scored"
    )


def show(result: InterveneResult, console: Console) -> None:
    """Prints the verdict, the perplexities, the targets, and what is large once they are zero."""
    ascii_only = console.options.ascii_only
    spell = spelled if ascii_only else str
    after, sequences = result["after_zero"], result["data"]["sequences"]
    parts: list[RenderableType] = [
        headed("Model", spell(words.model_line(result["model"]))),
        headed("Data", spell(data_line(result))),
        headed("Verdict", "\n".join(verdict(result)), verdict_style(result["massive"])),
        section_title("Perplexity of the held-out text"),
        _perplexities(result),
    ]
    if result["targets"]:
        parts += [section_title("What was changed"), _targets(result["targets"])]
        parts += left_out(len(result["targets"]))
    if after is not None:
        titles = ("Massive (strict) once the targets are zero",
                  "Relaxed only, once the targets are zero")
        parts += massive_parts(after["massive"], sequences, ascii_only, titles, AFTER_ROWS)
    parts.append(Text("\n".join(words.definition(result["definition"])), style="dim"))
    console.print(Group(*parts))


def _perplexities(result: InterveneResult) -> Table:
    single = result["data"]["sequences"] == 1  # and so no deviation
    head = ("intervention", "perplexity", "change", "loss", *(() if single else ("std",)))
    rows = plain_table(*head, left=head[:1])
    original = result["perplexity"]["original"]
    for name, value in result["perplexity"].items():
        loss = result["loss"][name]
        rows.add_row(
            change_of(name).words, words.number(value),
            "" if name == "original" else change(value, original),
            f"{loss['mean']:.4f}", *(() if single else (f"{loss['std']:.4f}",)),
        )
    return rows


def _targets(targets: Sequence[Target]) -> Table:
    rows = plain_table("layer", "dim", "kind", "mean", "std", "calibrated on", "changed",
                       left=("kind",))
    for t in targets[:MAX_ROWS]:
        for m in t["means"]:
            rows.add_row(
                str(t["layer"]), str(t["dim"]), m["kind"], words.number(m["mean"]),
                words.number(m["std"]), str(m["count"]), str(t["activations"]),
            )
    return rows


def page(result: InterveneResult) -> str:
    """The page, as HTML."""
    title = f"Interventions in {result['model']['name']}"
    return render_report(title, result, intervene_sections(result))


def figures(result: InterveneResult, *, folder: Path) -> list[Path]:
    """Draws the figures into `folder`."""
    from jax_massact.studies.intervene.figures import save_intervene_figures

    return save_intervene_figures(result, folder)


def intervene_sections(result: InterveneResult) -> list[Section]:
    """The sections of the page, in reading order."""
    sections = [
        verdict_section(
            words.strength(result["massive"]), verdict(result), [("Data", data_line(result))],
            result["definition"],
        ),
        Section("perplexity-section", "Perplexity", _perplexity_body(result)),
    ]
    after = result["after_zero"]
    if after is not None:
        body = chart(
            "after-zero", trajectory_chart(result), height=380,
            label="The value at the changed places, layer by layer, with and without the edit",
        )
        body += massive_tables(
            after["massive"], result["data"]["sequences"], "Once the targets are zero"
        )
        sections += [
            Section("targets", "What was changed", _target_table(result["targets"])),
            Section("after", "Needed, or rebuilt?", body),
        ]
    return [*sections, settings_section(result)]


def _perplexity_body(result: InterveneResult) -> str:
    original, sequences = result["perplexity"]["original"], result["data"]["sequences"]
    rows = [
        [
            escape(change_of(name).words), words.number(value),
            "" if name == "original" else change(value, original),
            _loss(result["loss"][name], sequences),
        ]
        for name, value in result["perplexity"].items()
    ]
    spread = "" if sequences == 1 else ", std over sequences"
    head = ("intervention", "perplexity", "change", f"loss in nats{spread}")
    label = "Perplexity of each intervention"
    height = 110 + 42 * len(rows)
    bars = chart("perplexity", perplexity_chart(result), height=height, label=label)
    note = "Perplexity is exp of the mean loss over all scored tokens."
    return bars + table(head, rows, text=head[:1]) + paragraphs([note], "soft")


def _loss(loss: Spread, sequences: int) -> str:
    return f"{loss['mean']:.4f}" + ("" if sequences == 1 else f" ± {loss['std']:.4f}")


def _target_table(targets: Sequence[Target]) -> str:
    head = ("layer", "dim", "kind of token", "mean", "calibration activations", "changed",
            "control dim", "control changed")
    rows = [
        [
            str(t["layer"]), str(t["dim"]), escape(m["kind"]),
            words.mean_and_std(m["mean"], m["std"], m["count"], "±"), str(m["count"]),
            str(t["activations"]), str(t["control_dim"]), str(t["control_activations"]),
        ]
        for t in targets for m in t["means"]
    ]
    note = (
        "Changed: activations of the held-out text, over all kinds of token. The control changes "
        "ordinary activations of one other dimension in the same layer."
    )
    return table(head, rows, text=head[2:3]) + paragraphs([note], "soft")


def bar_ends(values: Sequence[float]) -> tuple[float, list[float], float]:
    """Where bars on a logarithmic axis begin and end, and the end of the axis.

    What is not finite gets a bar longer than all others: its label says what it is.
    """
    finite = [v for v in values if math.isfinite(v) and v > 0] or [1.0]
    low, top = max(min(finite) / 3, 0.3), 10 * max(finite)
    return low, [v if math.isfinite(v) and v > 0 else top for v in values], 6 * top


def perplexity_chart(result: InterveneResult) -> dict:
    """The perplexity of every intervention on a logarithmic axis."""
    names, values = list(result["perplexity"]), list(result["perplexity"].values())
    low, ends, high = bar_ends(values)
    label = [words.number(v) for v in values]
    return {
        "data": [{
            "type": "bar", "orientation": "h", "y": [change_of(n).words for n in names], "x": ends,
            "marker": {"color": [change_of(n).color for n in names]}, "text": label,
            "textposition": "outside", "cliponaxis": False,
            "hovertemplate": "%{text}<extra></extra>",
        }],
        "layout": {
            "font": FONT, "template": "none", "paper_bgcolor": "white", "plot_bgcolor": "white",
            "xaxis": {
                "type": "log", "dtick": 1, "exponentformat": "power", "gridcolor": "#e5e7eb",
                "range": [math.log10(low), math.log10(high)],
                "title": {"text": "perplexity", "font": {"size": 13}},
            },
            "yaxis": {"autorange": "reversed", "automargin": True, "ticksuffix": "  "},
            "margin": {"l": 10, "r": 16, "t": 30, "b": 56}, "bargap": 0.35,
        },
    }


def largest_trajectories(result: InterveneResult) -> list[Trajectory]:
    """The values at the changed places of each dimension, the largest original value first."""
    after = result["after_zero"]
    assert after is not None

    def size(trajectory: Trajectory) -> float:
        return max((abs(v) for v in trajectory["original"] if math.isfinite(v)), default=-1.0)

    return sorted(after["trajectories"], key=size, reverse=True)


def edited_layers(result: InterveneResult) -> tuple[int, int]:
    """The first and the last layer that was edited."""
    layers = [t["layer"] for t in result["targets"]]
    return min(layers), max(layers)


def trajectory_chart(result: InterveneResult) -> dict:
    """The value at the changed places by layer: as it is, and after it was set to zero."""
    depth = result["model"]["depth"]
    traces = []
    for i, t in enumerate(largest_trajectories(result)):
        hue = PALETTE[i % len(PALETTE)]
        visible = True if i < PLACES else "legendonly"
        for name, values, dash in (
            ("original", t["original"], "solid"), ("set to zero", t["zero"], "dot"),
        ):
            trace = line(f"dim {t['dim']}, {name}", range(depth), values, hue, dash)
            if dash == "dot":
                trace["marker"] = {"size": 6, "symbol": "square"}
            traces.append(trace | {"visible": visible, "hovertemplate": "%{y:,.5~g}"})
    layout = layer_layout("mean value at the changed places", range(depth))
    layout["yaxis"] |= {"zeroline": True, "zerolinecolor": GREY, "tickformat": ",~g"}
    layout["shapes"] = [
        {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": layer, "x1": layer,
         "line": {"color": GREY, "width": 1, "dash": "dash"}}
        for layer in sorted(set(edited_layers(result)))
    ]
    layout["annotations"] = [
        {"yref": "paper", "y": 0, "x": edited_layers(result)[0], "text": "edit", "xanchor": "left",
         "yanchor": "bottom", "showarrow": False, "font": {"size": 11, "color": GREY}},
    ]
    return {"data": traces, "layout": layout}
