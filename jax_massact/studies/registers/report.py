"""The report of `massact registers`: norm maps, scores and controls, before and after."""

from collections.abc import Sequence

import numpy as np
from rich.console import Console

from jax_massact.report import words
from jax_massact.report.chart import Chart
from jax_massact.report.images import map_uri, marked_uri
from jax_massact.report.page import Lines, Part, Picture, Pictures, Section, Table
from jax_massact.report.sections import render_report
from jax_massact.report.terminal import MAX_ROWS, Sheet
from jax_massact.report.words import Findings
from jax_massact.studies.registers.figures import FIGURES, norm_chart
from jax_massact.studies.registers.names import ARMS
from jax_massact.studies.registers.result import Arm, RegistersResult
from jax_massact.studies.registers.run import NormMaps

__all__ = ["FIGURES", "charts", "page", "show"]


def findings(result: RegistersResult) -> Findings:
    """The findings in sentences."""
    if result["warnings"]:
        return words.withheld(result["warnings"])
    arms, number = result["arms"], len(result["neurons"])
    row = lambda name: arms[name]["norms"][result["layer"]]
    at = lambda name: words.number(arms[name]["score"]["features"]["mean"])
    where = f"after block {result['layer']}"
    token = words.number(row("register")["register"])
    if result["kind"] == "outliers":
        opening = (
            f"{words.percent(row('original')['outliers'])} of the patches are outliers {where}; "
            f"half of them have begun after block {result['begins']}. With {number} neurons of "
            f"blocks 0 to {result['last_block']} moved to an appended token it is "
            f"{words.percent(row('register')['outliers'])}, and the token's norm there is {token}."
        )
    else:
        opening = (
            f"No outlier patches {where}. With {number} neurons of blocks 0 to "
            f"{result['last_block']} moved to an appended token, the largest patch goes from "
            f"{words.number(row('original')['max'])} to {words.number(row('register')['max'])}, "
            f"the median from {words.number(row('original')['median'])} to "
            f"{words.number(row('register')['median'])}; the token's norm is {token}."
        )
    lines = [
        opening,
        f"Cosine of the features to the unedited ones: moved {at('register')}; set to zero, with "
        f"the token's mean as k', v' {at('kv_bias')}. Controls: set to zero without them "
        f"{at('zeroed')}, an empty token {at('appended')}, as many other neurons of the same "
        f"blocks moved {at('random')} or set to zero {at('random_zeroed')}.",
    ]
    return Findings(lines, "none")


def data_line(result: RegistersResult) -> str:
    """What was read."""
    data = result["data"]
    return (
        f"{words.count(data['sequences'], 'picture')} of {data['source']}; outliers and neurons "
        f"were found on {words.count(result['calibration'], 'other picture')}"
    )


def rule(result: RegistersResult) -> str:
    """What an outlier patch is."""
    mads, medians = result["rule"]["mads"], result["rule"]["medians"]
    return (
        f"Outlier patch: L2 norm before the final norm > median + {words.number(mads)} x MAD and > "
        f"{words.number(medians)} x median of the picture's patches (MAD x 1.4826)."
    )


_NOTE = (
    "Cosine: of what the model pools to the unedited output; of the patches after the final norm. "
    "Norms and the share of outliers are those after the block of the outliers; attention is what "
    "patches give to the token or to k' there. A neuron is moved as in Jiang et al. (2025): its "
    "largest activation over all tokens goes to the token, and it is 0 elsewhere."
)
_TITLES = {"cls": "CLS", "top1_same": "same top-1", "knn": "kNN", "linear": "linear"}


def _arm_table(result: RegistersResult) -> tuple[list[str], list[list[str]]]:
    """One row for each change; columns that no change has are left out."""
    arms, layer = result["arms"], result["layer"]
    first = arms["original"]["score"]
    names = [name for name in _TITLES if first[name] is not None]
    head = ["change", "cosine", "patches", *(_TITLES[name] for name in names), "outliers",
            "largest", "median", "token", "attention"]

    def row(name: str, arm: Arm) -> list[str]:
        score, norm = arm["score"], arm["norms"][layer]
        value = lambda x: words.number(x["mean"] if isinstance(x, dict) else x)
        share = norm["attention"]
        return [
            ARMS[name], value(score["features"]), value(arm["patches"]),
            *(value(score[n]) for n in names), words.percent(norm["outliers"]),
            words.number(norm["max"]), words.number(norm["median"]),
            words.number(norm["register"]), "-" if share is None else words.percent(share),
        ]

    return head, [row(name, arm) for name, arm in arms.items()]


def _neuron_rows(result: RegistersResult) -> list[list[str]]:
    return [
        [str(n["block"]), str(n["unit"]), words.number(n["score"]), words.number(n["elsewhere"])]
        for n in result["neurons"]
    ]


def _trial_rows(result: RegistersResult) -> list[list[str]]:
    return [[str(t["neurons"]), words.percent(t["outliers"]), words.number(t["ratio"])]
            for t in result["trials"]]


_LISTED = 32
_NEURONS = ("block", "unit", "at outliers", "elsewhere")
_TRIALS = ("neurons", "outliers", "largest / median")


def show(result: RegistersResult, console: Console) -> None:
    """Prints the verdict, the scores, the trials and the neurons."""
    sheet = Sheet(console)
    sheet.headed("Model", words.model_line(result["model"]))
    sheet.headed("Data", data_line(result))
    found = findings(result)
    if found.warning:
        sheet.headed("Warning", found.warning, "bold red")
    if found.lines:
        sheet.headed("Verdict", "\n".join(found.lines))
    for notice in result["notices"]:
        sheet.headed("Note", notice)
    head, rows = _arm_table(result)
    # What is left out here stands on the page.
    kept = [i for i, name in enumerate(head) if name not in ("median", "attention", "CLS")]
    sheet.title(f"Output, and norms after block {result['layer']}")
    sheet.table([head[i] for i in kept], [[row[i] for i in kept] for row in rows], left=head[:1])
    sheet.title("Neurons moved, on the calibration pictures")
    sheet.table(_TRIALS, _trial_rows(result))
    sheet.title("Mean |activation| of the neurons")
    sheet.table(_NEURONS, _neuron_rows(result), most=MAX_ROWS)
    sheet.close([rule(result)])


def charts(result: RegistersResult, maps: Sequence[NormMaps] = ()) -> list[Chart]:
    """Norms of patches and of the token, layer by layer."""
    del maps
    return [norm_chart(result)]


def _picture_parts(result: RegistersResult, maps: Sequence[NormMaps]) -> list[Part]:
    parts: list[Part] = []
    for m in maps:
        number = int(m.outlier.sum())
        items = [Picture(marked_uri(m.pixels, m.outlier), m.name,
                         f"{m.name} with {number} patches marked")]
        low = min(float(np.nanmin(x)) for x in m.maps.values())
        high = max(float(np.nanmax(x)) for x in m.maps.values())
        for name, values in m.maps.items():
            caption = (f"{ARMS[name]}: {words.number(float(np.nanmin(values)))} to "
                       f"{words.number(float(np.nanmax(values)))}")
            items.append(Picture(map_uri(values, low, high), caption, f"norms, {caption}"))
        parts.append(Pictures(items, 200))
    note = (
        f"Outlier patches are framed. Norms of patches after block {result['layer']}, on one scale "
        "for each picture, dark to light."
    )
    return [*parts, Lines([note], "soft")]


def page(result: RegistersResult, maps: Sequence[NormMaps] = ()) -> str:
    """The page, as HTML."""
    head, rows = _arm_table(result)
    split = head.index("outliers")
    norms = [[row[0], *row[split:]] for row in rows]
    facts = Lines([data_line(result), *(f"Note: {n}" for n in result["notices"])])
    sections = [
        Section("verdict", "What was found", [findings(result), facts,
                                              Lines([rule(result)], "soft")]),
        *([Section("maps", "Norm maps, before and after", _picture_parts(result, maps))]
          if maps else []),
        Section("scores", "Output and norms", [
            Table(head[:split], [row[:split] for row in rows], text=head[:1],
                  caption="Cosine to the unedited output, and scores"),
            Table([head[0], *head[split:]], norms, text=head[:1],
                  caption=f"After block {result['layer']}"),
            Lines([_NOTE], "soft"),
        ]),
        Section("norms", "Norms by layer", charts(result)),
        Section("trials", "How many neurons", [Table(_TRIALS, _trial_rows(result))]),
        Section("neurons", "The neurons", [
            Table(_NEURONS, _neuron_rows(result)[:_LISTED],
                  caption="Mean |activation| at outlier patches and at all others"),
            Lines([f"The {_LISTED} largest of {len(result['neurons'])}; registers.json has all."]
                  if len(result["neurons"]) > _LISTED else [], "soft"),
        ]),
    ]
    return render_report(f"Registers at test time in {result['model']['name']}", result, sections)
