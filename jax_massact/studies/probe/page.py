"""The page of a probe: `report.html`, one file that opens without a network."""


from jax_massact.report import charts, words
from jax_massact.report.html import (
    Section,
    chart,
    escape,
    paragraphs,
    surface,
    table,
)
from jax_massact.report.picture import map_layer
from jax_massact.report.sections import (
    massive_tables,
    render_report,
    settings_section,
    verdict_section,
)
from jax_massact.results import ActivationMap, MassiveRecord
from jax_massact.studies.probe.result import ProbeResult

# How whitespace and its like are shown in a prompt: a pale sign, then the character itself.
VISIBLE = {"\n": "↵\n", "\t": "→\t", " ": "·", "\r": "␍"}


def probe_page(result: ProbeResult, activation_map: ActivationMap) -> str:
    """The report of a probe as one HTML page.

    Args:
      result: what the probe found.
      activation_map: |resid_post| of the first sequence, [L, tokens, bins].
    """
    title = f"Massive activations in {result['model']['name']}"
    return render_report(title, result, probe_sections(result, activation_map))


def probe_sections(result: ProbeResult, activation_map: ActivationMap) -> list[Section]:
    """The sections of a probe, in reading order; later reports put theirs after or between."""
    sections = [
        _verdict(result),
        Section("massive", "Massive activations", _massive(result)),
        Section("surface", "Activation map", _surface(result, activation_map)),
        Section("magnitudes", "Largest magnitudes", _magnitudes(result)),
    ]
    if result["massive"]:
        sections.append(Section("writers", "Who writes what", _writers(result)))
    sections += [
        Section("prompt", "First sequence", _prompt(result)),
        Section("outliers", "Outlier features", _outliers(result)),
        Section("layers", "Every layer", _layers(result)),
        settings_section(result),
    ]
    return sections


def _verdict(result: ProbeResult) -> Section:
    return verdict_section(
        words.strength(result["massive"]),
        words.verdict(result),
        [("Read from", result["model"]["source"]), ("Data", words.data_line(result["data"]))],
        result["definition"],
        warning=words.nonfinite_warning(result),
    )


def _massive(result: ProbeResult) -> str:
    return massive_tables(result["massive"], result["data"]["sequences"])


def _surface(result: ProbeResult, activation_map: ActivationMap) -> str:
    depth, tokens, bins = activation_map.magnitude.shape
    note = (
        f"|h| of the first sequence, {words.count(tokens, 'token')}. "
        + ("" if bins == result["model"]["width"]
           else f"Each of the {bins} columns shows the largest of its dimensions. ")
        + "Drag to turn it, scroll to come nearer; colours are on a logarithmic scale."
    )
    picture = surface(
        "activation-map", charts.surface(result, activation_map),
        layers=depth, layer=map_layer(result), height=560,
    )
    return picture + paragraphs([note], "soft")


def _magnitudes(result: ProbeResult) -> str:
    label = "The three largest magnitudes and the median, layer by layer"
    return chart("top-magnitudes", charts.top_magnitudes(result), height=400, label=label)


def _writers(result: ProbeResult) -> str:
    note = (
        "The mean signed value of each dimension where it is found. Triangle: the sublayer that "
        "writes it. Cross: the sublayer that takes it away."
    )
    figure = charts.writers(result)
    label = "Value of each massive dimension, layer by layer"
    entries = min(len(result["massive"]), charts.MAX_TRAJECTORIES)
    if entries < len(result["massive"]):
        note += f" The {entries} largest of {len(result['massive'])} are drawn."
    height = 400 + 24 * (entries // 5)  # five names fit in a row of the legend
    return chart("who-writes", figure, height=height, label=label) + paragraphs([note], "soft")


def _prompt(result: ProbeResult) -> str:
    prompt = result["prompt"]
    records = {r["dim"]: r for r in result["massive"]}
    at: dict[int, list[MassiveRecord]] = {}
    for position, dim in prompt["massive"]:
        at.setdefault(position, []).append(records[dim])
    spans = "".join(
        _prompt_token(position, token, at.get(position, []))
        for position, token in enumerate(prompt["tokens"])
    )
    length, shown = result["data"]["sequence_length"], len(prompt["tokens"])
    which = f"The first {shown} of {length} tokens" if shown < length else "All tokens"
    note = f"{which}; those with a massive activation are marked: point at one for its dimension."
    return paragraphs([note], "soft") + f'<div class="prompt">{spans}</div>'


def _prompt_token(position: int, token: str, records: list[MassiveRecord]) -> str:
    text = "".join(_visible(c) for c in token) or "<i>∅</i>"
    # The last line break stands behind the element, whose outline would run on into the next line.
    text, end = (text[:-1], "\n") if text.endswith("\n") else (text, "")
    if not records:
        return f'<span title="position {position}">{text}</span>{end}'
    lines = [f"position {position}"] + [
        f"dim {r['dim']}{'' if r['strict'] else ' (relaxed)'}: "
        f"{words.number(r['value_mean'])} at layer {r['peak_layer']}, mean over sequences"
        for r in records
    ]
    kind = "strict" if any(r["strict"] for r in records) else "relaxed"
    tip = escape("\n".join(lines))
    return (
        f'<mark class="{kind}" tabindex="0" data-tip="{tip}" aria-label="{tip}">{text}</mark>{end}'
    )


def _visible(character: str) -> str:
    if character in VISIBLE:
        sign, rest = VISIBLE[character][0], VISIBLE[character][1:]
        return f"<i>{sign}</i>{rest}"
    if not character.isprintable():
        return f"<i>{escape(character)}</i>"
    return escape(character)


def _outliers(result: ProbeResult) -> str:
    about = (
        "Dimensions that are large at most tokens (Dettmers et al. 2022). They are not massive "
        "activations, which sit at a few tokens."
    )
    if not result["outlier_features"]:
        return paragraphs(["No outlier features found."]) + paragraphs([about], "soft")
    rows = [
        [
            str(f["dim"]),
            words.layer_span(f["first_layer"], f["last_layer"]),
            words.number(f["magnitude"]),
            words.percent(f["share_of_tokens"]),
            words.percent(f["share_of_sequences"]),
        ]
        for f in result["outlier_features"]
    ]
    head = ("dim", "layers", "magnitude", "share of tokens", "share of sequences")
    return table(head, rows) + paragraphs([about], "soft")


def _layers(result: ProbeResult) -> str:
    layers = result["layers"]
    ranks = max((len(layer["top"]) for layer in layers), default=0)
    quantiles = list(layers[0]["quantile"]) if layers else []
    bounds = list(layers[0]["count_above"]) if layers else []
    head = [
        "layer", *(f"top-{k + 1}" for k in range(ranks)), "median",
        *(f"q{q}" for q in quantiles), "kurtosis", "largest",
        *(f"> {b}" for b in bounds), "strict", "relaxed",
    ]
    rows = []
    for layer in layers:
        tops: list[float | None] = [entry["magnitude"] for entry in layer["top"]]
        numbers = [
            *tops, *([None] * (ranks - len(tops))), layer["median"],
            *(layer["quantile"].get(q) for q in quantiles), layer["kurtosis"], layer["max"],
            *(layer["count_above"].get(b) for b in bounds), layer["strict"], layer["relaxed"],
        ]
        rows.append([str(layer["layer"]), *map(words.number, numbers)])
    note = (
        "Magnitudes; means over sequences, except the largest of all. q0.9 is the quantile that "
        "90% of the activations stay below; counts are activations of one sequence."
    )
    return table(head, rows) + paragraphs([note], "soft")
