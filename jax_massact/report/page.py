"""The page of a probe: `report.html`, one file that opens without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_massact.probe.result import ActivationMap, Massive, ProbeResult
from jax_massact.report import charts, words
from jax_massact.report.encode import write_text
from jax_massact.report.html import (
    Section,
    chart,
    escape,
    pairs,
    paragraphs,
    render,
    surface,
    table,
)
from jax_massact.report.picture import map_layer

# How whitespace and its like are shown in a prompt: a pale sign, then the character itself.
VISIBLE = {"\n": "↵\n", "\t": "→\t", " ": "·", "\r": "␍"}
LISTED = 4  # positions and tokens of a record that the table spells out


def write_probe_page(result: ProbeResult, activation_map: ActivationMap, path: Path) -> Path:
    """Writes the report of a probe as one HTML file.

    Args:
      result: what the probe found.
      activation_map: |resid_post| of the first sequence, [L, tokens, bins].
      path: the file to write; replaced whole when it exists.
    """
    title = f"Massive activations in {result['model']['name']}"
    seconds = ", ".join(
        f"{phase.replace('_', ' ')} {words.number(s)} s" for phase, s in result["seconds"].items()
    )
    sections = probe_sections(result, activation_map)
    return write_text(path, render(title, words.model_line(result["model"]), sections, seconds))


def probe_sections(result: ProbeResult, activation_map: ActivationMap) -> list[Section]:
    """The sections of a probe, in reading order; later reports put theirs after or between."""
    sections = [
        Section("verdict", "What was found", _verdict(result)),
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
        Section("settings", "Settings and versions", settings_body(result)),
    ]
    return sections


def _verdict(result: ProbeResult) -> str:
    kind = "none"
    if result["massive"]:
        kind = "strict" if words.by_size(result["massive"], strict=True) else "relaxed"
    warning = words.nonfinite_warning(result)
    model, data = result["model"], result["data"]
    return (
        (f'<div class="warning">{escape(warning)}</div>' if warning else "")
        + f'<div class="verdict {kind}">{paragraphs(words.verdict(result))}</div>'
        + pairs([("Read from", model["source"]), ("Data", words.data_line(data))])
        + paragraphs(words.definition(result["definition"]), "soft")
    )


def _massive(result: ProbeResult) -> str:
    parts = []
    for strict, caption in ((True, "Massive (strict)"),
                            (False, "Relaxed only: not massive by the strict definition")):
        if records := words.by_size(result["massive"], strict=strict):
            parts.append(massive_table(records, result["data"]["sequences"], caption))
    return "\n".join(parts) or paragraphs(["No massive activations found, strict or relaxed."])


def massive_table(records: list[Massive], sequences: int, caption: str) -> str:
    """One row for each record, of a run over so many sequences."""
    def row(r: Massive) -> list[str]:
        tokens = [_token(t["token"]) + f" ({t['sequences']})" for t in r["tokens"][:LISTED]]
        positions = [f"{p['position']} ({p['sequences']})" for p in r["positions"][:LISTED]]
        more = " …" if len(r["positions"]) > LISTED else ""
        return [
            str(r["dim"]),
            words.layer_span(r["first_layer"], r["last_layer"]),
            str(r["peak_layer"]),
            words.mean_and_std(r["value_mean"], r["value_std"], sequences, "±"),
            words.number(r["ratio"]),
            words.percent(r["share_of_sequences"]),
            _unbroken(positions) + more,
            _unbroken(tokens),
            words.sublayer(r["written_by"]),
            words.sublayer(r["removed_by"]),
        ]

    head = ("dim", "layers", "peak", "value at peak", "ratio", "sequences",
            "positions (sequences)", "tokens (sequences)", "written by", "removed by")
    return table(head, map(row, records), caption=caption,
                 text=head[6:])


def _unbroken(parts: list[str]) -> str:
    """Lines break between the parts only."""
    return ", ".join(f'<span style="white-space:nowrap">{part}</span>' for part in parts)


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
    at: dict[int, list[Massive]] = {}
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


def _prompt_token(position: int, token: str, records: list[Massive]) -> str:
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


def _token(token: str) -> str:
    return f"<code>{escape(words.token_label(token))}</code>"


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


def settings_body(result: Mapping[str, Any]) -> str:
    """The settings of a run, and the versions of what it ran on."""
    setting = ("setting", "value")
    package = ("package", "version")
    return table(setting, _code_rows(_flat(result["config"])), text=setting) + table(
        package, _code_rows(list(result["versions"].items())), text=package
    )


def _code_rows(items: list[tuple[str, Any]]) -> list[list[str]]:
    return [[f"<code>{escape(cell)}</code>" for cell in item] for item in items]


def _flat(config: dict, prefix: str = "") -> list[tuple[str, Any]]:
    """Nested settings as the dotted names that the command line takes."""
    items: list[tuple[str, Any]] = []
    for key, value in config.items():
        if isinstance(value, dict) and value:
            items += _flat(value, f"{prefix}{key}.")
        else:
            items.append((f"{prefix}{key}", value))
    return items
