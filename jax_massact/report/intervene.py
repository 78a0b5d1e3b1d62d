"""The report of `massact intervene`: verdict, perplexities, and what became of the activation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from jax_massact.probe.intervene_result import InterveneResult, Target
from jax_massact.report import words
from jax_massact.report.encode import to_json, write_text
from jax_massact.report.figures import figure_title, layer_ticks, save_figures
from jax_massact.report.html import Section, chart, escape, paragraphs, render, table
from jax_massact.report.page import massive_table, settings_body
from jax_massact.report.picture import BLUE, GREEN, GREY, LAYER_AXIS, ORANGE
from jax_massact.report.terminal import headed, massive_rows, plain_table, section_title, spelled

_NAMES = {
    "original": "original",
    "zero": "set to zero",
    "mean": "set to the mean",
    "control_zero": "control: ordinary activations set to zero",
}
_COLORS = {"original": GREY, "zero": ORANGE, "mean": BLUE, "control_zero": GREEN}


def intervention(name: str) -> str:
    """`set to zero`, `set to 0.5 of the mean`."""
    if name.startswith("fraction_"):
        return f"set to {name.removeprefix('fraction_')} of the mean"
    return _NAMES.get(name, name)


def change(value: float, original: float) -> str:
    """`x 9,400` or `+0.4%`: a factor from 2 on, below it a percentage."""
    ratio = value / original if original else float("inf")
    return f"x {words.number(ratio)}" if ratio >= 2 else f"{100 * (ratio - 1):+.2f}%"


def verdict(result: InterveneResult) -> list[str]:
    """The findings in sentences, the most important first."""
    perplexity, original = result["perplexity"], result["perplexity"]["original"]
    after = result["after_zero"]
    if after is None:
        return [
            "No massive activations found, strict or relaxed: there is nothing to change. "
            f"Perplexity {words.number(original)}."
        ]
    targets = result["targets"]
    relaxed = "" if targets[0]["strict"] else " (by the relaxed definition only)"
    places = ", ".join(f"dim {t['dim']} after block {t['layer']}" for t in targets[:4])
    places += "" if len(targets) <= 4 else f" and {len(targets) - 4} more"
    lines = [
        f"Massive activations{relaxed}: {places}; "
        f"{words.count(sum(t['activations'] for t in targets), 'activation')} changed.",
        f"Perplexity {words.number(original)}; set to zero {words.number(perplexity['zero'])} "
        f"({change(perplexity['zero'], original)}), set to the mean "
        f"{words.number(perplexity['mean'])} ({change(perplexity['mean'], original)}), control "
        f"{words.number(perplexity['control_zero'])} "
        f"({change(perplexity['control_zero'], original)}).",
    ]
    again = ", ".join(str(d) for d in after["dims"])
    lines.append(
        {
            "needed": "Needed: the perplexity rises, and no later block writes it again.",
            "rebuilt": f"Rebuilt: a later block writes dim {again} again, and the model does not "
            "suffer.",
            "needed and rebuilt": f"Needed, though a later block writes dim {again} again.",
            "not needed": "Not needed: no later block writes it again, and the model does without.",
        }[after["verdict"]]
    )
    return lines


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


def print_intervene(result: InterveneResult, console: Console) -> None:
    """Prints the verdict, the perplexities and the targets."""
    ascii_only = console.options.ascii_only
    spell = spelled if ascii_only else str
    parts: list[RenderableType] = [
        headed("Model", spell(words.model_line(result["model"]))),
        headed("Data", spell(data_line(result))),
        headed("Verdict", "\n".join(verdict(result)), "bold" if result["targets"] else "green"),
        section_title("Perplexity of the held-out text"),
        _perplexities(result),
    ]
    if result["targets"]:
        parts += [section_title("What was changed"), _targets(result["targets"])]
        after = result["after_zero"]
        if after and after["massive"]:
            parts.append(section_title("Over the thresholds once the targets are zero"))
            parts.append(massive_rows(after["massive"][:5], result["data"]["sequences"],
                                      ascii_only))
    parts.append(Text("\n".join(words.definition(result["definition"])), style="dim"))
    console.print(Group(*parts))


def _perplexities(result: InterveneResult) -> Table:
    head = ("intervention", "perplexity", "change", "loss", "std")
    rows = plain_table(*head, left=head[:1])
    original = result["perplexity"]["original"]
    for name, value in result["perplexity"].items():
        loss = result["loss"][name]
        rows.add_row(
            intervention(name), words.number(value),
            "" if name == "original" else change(value, original),
            f"{loss['mean']:.4f}", f"{loss['std']:.4f}",
        )
    return rows


def _targets(targets: Sequence[Target]) -> Table:
    rows = plain_table("layer", "dim", "kind", "mean", "std", "calibrated on", "changed",
                       left=("kind",))
    for t in targets[:20]:
        for m in t["means"]:
            rows.add_row(
                str(t["layer"]), str(t["dim"]), m["kind"], words.number(m["mean"]),
                words.number(m["std"]), str(m["count"]), str(t["activations"]),
            )
    return rows


def write_intervene_report(result: InterveneResult, folder: Path) -> list[Path]:
    """Writes `intervene.json`, `intervene.html` and the figures into `folder`.

    Raises:
      OSError: the folder cannot be made or written to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    page = render(
        f"Interventions in {result['model']['name']}",
        words.model_line(result["model"]),
        intervene_sections(result),
        ", ".join(f"{k.replace('_', ' ')} {words.number(s)} s"
                  for k, s in result["seconds"].items()),
    )
    drawings = {"perplexity": lambda: draw_perplexity(result)}
    if result["after_zero"] is not None:
        drawings["after_zero"] = lambda: draw_after_zero(result)
    return [
        write_text(folder / "intervene.json", to_json(result, indent=2) + "\n"),
        write_text(folder / "intervene.html", page),
        *save_figures(drawings, folder / "figures"),
    ]


def intervene_sections(result: InterveneResult) -> list[Section]:
    """The sections of the page, in reading order."""
    original = result["perplexity"]["original"]
    rows = [
        [
            escape(intervention(name)), words.number(value),
            "" if name == "original" else change(value, original),
            f"{result['loss'][name]['mean']:.4f} ± {result['loss'][name]['std']:.4f}",
        ]
        for name, value in result["perplexity"].items()
    ]
    head = ("intervention", "perplexity", "change", "loss in nats, std over sequences")
    bars = chart(
        "perplexity", _bars(result), height=320, label="Perplexity of each intervention"
    )
    kind = "none" if not result["targets"] else (
        "strict" if result["targets"][0]["strict"] else "relaxed"
    )
    sections = [
        Section(
            "verdict", "What was found",
            f'<div class="verdict {kind}">{paragraphs(verdict(result))}</div>'
            + paragraphs([data_line(result)])
            + paragraphs(words.definition(result["definition"]), "soft"),
        ),
        Section("perplexity-section", "Perplexity", bars + table(head, rows, text=head[:1])),
    ]
    after = result["after_zero"]
    if after is not None:
        targets = [
            [
                str(t["layer"]), str(t["dim"]), escape(m["kind"]),
                f"{words.number(m['mean'])} ± {words.number(m['std'])}", str(m["count"]),
                str(t["activations"]), str(t["control_dim"]),
            ]
            for t in result["targets"] for m in t["means"]
        ]
        head = ("layer", "dim", "kind of token", "mean", "calibration activations", "changed",
                "control dim")
        body = chart(
            "after-zero", _trajectories(result), height=360,
            label="The value at the changed places, layer by layer, with and without the edit",
        )
        if after["massive"]:
            body += massive_table(
                after["massive"], result["data"]["sequences"],
                "Over the thresholds once the targets are zero",
            )
        sections += [
            Section("targets", "What was changed", table(head, targets, text=head[2:3])),
            Section("after", "Needed, or rebuilt?", body),
        ]
    return [*sections, Section("settings", "Settings and versions", settings_body(result))]


def _bars(result: InterveneResult) -> dict:
    names = list(result["perplexity"])
    return {
        "data": [{
            "type": "bar", "orientation": "h",
            "y": [intervention(n) for n in names],
            "x": [v if np.isfinite(v) else None for v in result["perplexity"].values()],
            "marker": {"color": [_COLORS.get(n, BLUE) for n in names]},
            "hovertemplate": "%{x:.5~g}<extra></extra>",
        }],
        "layout": {
            "xaxis": {"type": "log", "title": {"text": "perplexity"}},
            "yaxis": {"autorange": "reversed", "automargin": True},
            "margin": {"l": 10, "r": 20, "t": 10, "b": 50},
        },
    }


def _trajectories(result: InterveneResult) -> dict:
    after = result["after_zero"]
    assert after is not None
    traces = []
    for t in after["trajectories"]:
        for name, color, dash in (("original", BLUE, "solid"), ("zero", ORANGE, "dot")):
            traces.append({
                "type": "scatter", "mode": "lines+markers", "name": f"dim {t['dim']}, {name}",
                "x": list(range(len(t[name]))), "y": t[name],
                "line": {"color": color, "dash": dash},
            })
    return {
        "data": traces,
        "layout": {
            "xaxis": {"title": {"text": LAYER_AXIS}},
            "yaxis": {"title": {"text": "mean value at the changed places"}},
            "margin": {"l": 70, "r": 20, "t": 10, "b": 50},
        },
    }


def draw_perplexity(result: InterveneResult) -> Figure:
    """Perplexity of every intervention on a logarithmic axis, after the paper's table 3."""
    names = list(result["perplexity"])
    values = np.array([result["perplexity"][n] for n in names])
    figure = Figure(figsize=(6.4, 0.9 + 0.4 * len(names)), layout="constrained")
    axes = figure.add_subplot()
    finite = values[np.isfinite(values)]
    top = finite.max() * 10
    shown = np.where(np.isfinite(values), values, top)
    low = max(finite.min() / 3, 0.3)
    axes.barh(range(len(names)), shown - low, left=low, height=0.62,
              color=[_COLORS.get(n, BLUE) for n in names])
    axes.set_xscale("log")
    axes.set_xlim(low, top * 6)
    for i, value in enumerate(values):
        axes.text(shown[i] * 1.15, i, words.number(value), va="center", fontsize=8)
    axes.set_yticks(range(len(names)), [intervention(n).replace(": ", ":\n") for n in names])
    axes.set_axisbelow(True)
    axes.grid(axis="y", visible=False)
    axes.invert_yaxis()
    axes.set_xlabel(f"perplexity of {result['data']['scored_tokens']:,} held-out tokens")
    axes.set_title(figure_title(result["model"], "interventions"))
    return figure


def draw_after_zero(result: InterveneResult) -> Figure:
    """The value at the changed places, layer by layer: original, and after it was set to zero."""
    after = result["after_zero"]
    assert after is not None
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes = figure.add_subplot()
    for i, t in enumerate(after["trajectories"][:4]):
        layers = np.arange(len(t["original"]))
        style = ("-", "--", "-.", ":")[i]
        axes.plot(layers, t["original"], style, color=BLUE, marker="o",
                  label=f"dim {t['dim']}, original")
        axes.plot(layers, t["zero"], style, color=ORANGE, marker="s",
                  label=f"dim {t['dim']}, set to zero")
    edited = sorted({t["layer"] for t in result["targets"]})
    for layer in edited[:1]:
        axes.axvline(layer, color=GREY, linewidth=0.9, linestyle=(0, (4, 3)), label="edit")
    layer_ticks(axes, range(result["model"]["depth"]))
    axes.set(xlabel=LAYER_AXIS, ylabel="mean value at the changed places")
    axes.yaxis.set_major_formatter(lambda value, _: words.number(value))
    axes.legend(fontsize=8)
    axes.set_title(figure_title(result["model"], f"after zeroing: {after['verdict']}"))
    return figure
