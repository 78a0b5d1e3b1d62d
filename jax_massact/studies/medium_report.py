"""What reports say of medium-scale activations: sentences, a table in the terminal, a section."""

from collections.abc import Sequence

from jax_massact.report import words
from jax_massact.report.page import Lines, Section, Table
from jax_massact.report.terminal import MAX_ROWS, Sheet
from jax_massact.results import MediumDim, MediumResult

CHANGES = {
    "original": "as they are", "zero": "set to zero", "mean": "set to their mean",
    "clip": "clipped to the lower bound", "control": "control: as many ordinary ones set to zero",
}
KINDS = {"feature": "at most tokens", "mixed": "at some tokens", "token": "at few tokens"}


def sentences(result: MediumResult | None) -> list[str]:
    """What they are, and what the model makes of them; nothing without the section."""
    if result is None:
        return []
    bounds = f"{words.number(result['low'])} and {words.number(result['high'])}"
    if not result["activations"]:
        return [f"No activation lies between {bounds}, the medium scale."]
    kinds = ", ".join(f"{words.percent(result['kinds'][kind])} in dimensions that are large {text}"
                      for kind, text in KINDS.items())
    lines = [f"Medium scale: {result['activations']:,} activations lie between {bounds}, {kinds}."]
    constants = [d for d in result["dims"] if d["kind"] == "feature" and d["constancy"]]
    if constants:
        top = max(result["layers"], key=lambda layer: layer["constant"])
        near = ", ".join(f"{d['dim']} ({_span(d['constancy'])})"
                         for d in constants[: words.SAID_IN_FULL])
        lines.append(
            f"How constant those at most tokens are, (E h)^2 / E h^2: dim {near}. Their means "
            f"alone hold {words.percent(top['constant'])} of the stream's energy after block "
            f"{top['layer']}."
        )
    p = result["perplexity"]
    times = lambda name: f"x{words.number(p[name] / p['original'])}"
    lines.append(
        f"Perplexity with all of them set to zero: {times('zero')}; to their mean by block and "
        f"dimension: {times('mean')}; clipped to {words.number(result['low'])}: {times('clip')}; "
        f"control, as many ordinary ones to zero: {times('control')}."
    )
    return lines


def _span(constancy: tuple[float, float] | None) -> str:
    if constancy is None:
        return "-"
    low, high = (f"{value:.2f}" for value in constancy)
    return low if low == high else f"{low} to {high}"


def show(sheet: Sheet, result: MediumResult | None) -> None:
    """The dimensions with most activations of medium scale."""
    if result is None or not result["dims"]:
        return
    sheet.title(f"Medium scale: |h| between {words.number(result['low'])} and "
                f"{words.number(result['high'])}")
    head = ("dim", "kind", "layers", "number", "mean", "constancy", "written", "tokens")
    rows = [_row(d)[:8] for d in result["dims"]]
    sheet.table(head, rows, left=("written", "tokens"), most=MAX_ROWS)


def _row(d: MediumDim) -> list[str]:
    unit = "-" if d["unit"] is None else f"{d['unit']} ({words.percent(d['unit_share'])})"
    return [
        str(d["dim"]), d["kind"], words.layer_span(d["first_layer"], d["last_layer"]),
        f"{d['activations']:,}", words.number(d["mean"]), _span(d["constancy"]),
        ", ".join(words.sublayer(w) for w in d["written_by"][:2]),
        " ".join(words.token_label(t["token"], 12) for t in d["tokens"][:2]),
        words.number(d["spread"]), unit, words.percent(d["share"]), str(d["peak_layer"]),
    ]


def sections(result: MediumResult | None) -> Sequence[Section]:
    """The section of the page."""
    if result is None:
        return ()
    p = result["perplexity"]
    changes = [[CHANGES[name], words.number(value), f"x{words.number(value / p['original'])}"]
               for name, value in p.items()]
    head = ("dim", "kind", "layers", "activations", "mean", "constancy", "written by", "tokens",
            "std over mean", "top unit (share)", "share of tokens", "peak")
    layers = [
        [str(r["layer"]), f"{r['activations']:,}", words.percent(r["energy"]),
         words.percent(r["constant"]), f"x{words.number(r['divided'])}"]
        for r in result["layers"]
    ]
    return [Section("medium", "Medium scale", [
        Table(("these activations", "perplexity", "ratio"), changes, text=("these activations",),
              caption=f"{words.count(result['held_out'], 'held-out sequence')}"),
        Table(head, map(_row, result["dims"]), text=("kind", "written by", "tokens")),
        Table(("layer", "activations", "energy in outlier features", "in their means",
               "a norm divides by"), layers),
        Lines([
            "feature: over the lower bound at more than half of the tokens; token: at fewer than "
            "2%; mixed: between. constancy: (E h)^2 / E h^2, 1 for a constant. energy: of the mean "
            "square of the stream. All blocks but the last, which feeds the final norm alone."
        ], "soft"),
    ])]
