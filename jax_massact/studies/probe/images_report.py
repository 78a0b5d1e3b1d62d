"""What the report of a probe says of images: their patches, norms by kind of token, attention."""

from collections.abc import Sequence

import numpy as np

from jax_massact.report import words
from jax_massact.report.chart import BLUE, GREEN, ORANGE, Axis, Chart, Panel, Rule, Series, layers
from jax_massact.report.chart import titled as chart_titled
from jax_massact.report.images import map_uri, marked_uri
from jax_massact.report.page import Lines, Part, Picture, Pictures, Section, Table
from jax_massact.report.terminal import MAX_ROWS, Sheet
from jax_massact.studies.probe.images import NORMS, PicturedImage
from jax_massact.studies.probe.result import ImageFindings, ProbeResult

KINDS = {"cls": ("CLS", BLUE, "s"), "register": ("registers", GREEN, "D"),
         "patch": ("patches", ORANGE, "o")}
_TO = KINDS | {"outlier": ("outlier patches", "", ""), "extra": ("k'", "", "")}


def data_line(result: ProbeResult, images: ImageFindings) -> str:
    """What was read: pictures, their size, their tokens."""
    data, (rows, columns) = result["data"], images["grid"]
    tokens = [f"{rows} x {columns} patches"]
    if images["registers"]:
        tokens.insert(0, words.count(images["registers"], "register"))
    if images["cls"]:
        tokens.insert(0, "CLS")
    size = " x ".join(map(str, images["image_size"]))
    return (
        f"{words.count(data['sequences'], 'picture')} of {data['source']}, {size} pixels: "
        f"{', '.join(tokens)}"
    )


def sentences(images: ImageFindings) -> list[str]:
    """Whether there are outlier patches, and whether they are like their neighbours."""
    layer, share = images["outlier_layer"], images["outlier_share"]
    norm = images["layers"][layer]["norm"]["patch"]
    about = (
        f"after block {layer}: the median norm of patches is {words.number(norm['median'])}, the "
        f"largest {words.number(norm['max'])} (means over pictures)"
    )
    if not share:
        return [f"No outlier patches at any layer; nearest to it {about}."]
    cosine, other = images["outlier_cosine"], images["other_cosine"]
    return [
        f"{words.percent(share)} of the patches are outliers {about}. Cosine to their neighbours "
        f"as they are embedded: {words.number(cosine)}, of other patches {words.number(other)}."
    ]


def rule(images: ImageFindings) -> str:
    """What an outlier patch is."""
    mads, medians = images["rule"]["mads"], images["rule"]["medians"]
    return (
        f"L2 norm before the final norm > median + {words.number(mads)} x MAD and > "
        f"{words.number(medians)} x median of the picture's patches at that layer (MAD x 1.4826)"
    )


def norm_chart(result: ProbeResult, images: ImageFindings) -> Chart:
    """Median and largest norm of each kind of token, layer by layer."""
    rows = images["layers"]
    x, lines = [row["layer"] for row in rows], []
    for kind, (name, color, marker) in KINDS.items():
        if kind not in rows[0]["norm"]:
            continue
        of = lambda which, kind=kind: [row["norm"][kind][which] for row in rows]
        several = kind != "cls"
        if several:
            lines.append(Series(f"{name}, largest", x, of("max"), color, "--", marker))
        lines.append(Series(f"{name}, median" if several else name, x, of("median"), color,
                            "-", marker))
    top = max(row["norm"]["patch"]["max"] for row in rows)
    lines += [Rule(bound, text=f"{bound:g}") for bound in NORMS if bound < 3 * top]
    axis = Axis("L2 norm of resid_post (mean over pictures)", scale="log")
    panel = Panel(lines, x=layers(len(rows)), y=axis, height=400)
    return Chart(
        "token_norms", chart_titled(result["model"]["name"], "norms of tokens by layer"),
        "Norm of CLS, registers and patches, layer by layer", [panel], legend="right",
    )


def _norm_table(images: ImageFindings) -> tuple[list[str], list[list[str]]]:
    first = images["layers"][0]
    head = ["layer"]
    for kind in first["norm"]:
        name = KINDS[kind][0]
        head += [name] if kind == "cls" else [f"{name}, median", "largest"]
    head += [f"> {b}" if b[0].isdigit() else b for b in first["patches_above"]]
    rows = []
    for row in images["layers"]:
        cells = [str(row["layer"])]
        for kind, norm in row["norm"].items():
            values = (norm["median"],) if kind == "cls" else (norm["median"], norm["max"])
            cells += [words.number(v) for v in values]
        rows.append(cells + [words.number(v) for v in row["patches_above"].values()])
    return head, rows


def _attention_table(images: ImageFindings) -> tuple[list[str], list[list[str]]]:
    """Shares of attention in percent: from each kind of token to each."""
    kinds = list(images["layers"][0]["attention"])
    pairs = [(a, b) for a in kinds for b in images["layers"][0]["attention"][a] if b != "extra"
             or any(row["attention"][a][b] > 0 for row in images["layers"])]
    name = lambda kind: _TO[kind][0]
    head = ["layer", *(f"{name(a)} to {name(b)}" for a, b in pairs)]
    rows = [
        [str(row["layer"]), *(f"{100 * row['attention'][a][b]:.1f}" for a, b in pairs)]
        for row in images["layers"]
    ]
    return head, rows


def _top_table(result: ProbeResult, most: int) -> tuple[list[str], list[list[str]]]:
    """The largest activations of every layer, each with its most frequent place."""
    ranks = min(most, max(len(layer["top"]) for layer in result["layers"]))
    cell = lambda top: (
        f"{words.number(top['magnitude'])} {top['token']} dim {top['dim']} "
        f"({words.percent(top['share'])})"
    )
    rows = []
    for layer in result["layers"]:
        cells = [str(layer["layer"]), *map(cell, layer["top"][:ranks])]
        rows.append(cells + [""] * (ranks + 1 - len(cells)))
    return ["layer", *(f"top-{rank + 1}" for rank in range(ranks))], rows


def show(sheet: Sheet, result: ProbeResult, images: ImageFindings) -> None:
    """One row for every layer: norms by kind, outliers, and where attention goes."""
    sheet.title("The two largest magnitudes, where they are most often, in how many pictures")
    sheet.table(*_top_table(result, 2))
    kinds = images["layers"][0]["norm"]
    sheet.title("Norms of tokens, and attention from patches (means over pictures)")
    head = ["layer", *(["CLS"] if "cls" in kinds else []),
            *(["registers"] if "register" in kinds else []), "patches", "largest", "outliers",
            *(f"to {_TO[k][0]}" for k in kinds)]
    rows = []
    for row in images["layers"]:
        norm = row["norm"]
        cells = [norm[k]["median"] for k in kinds if k != "patch"]
        cells += [norm["patch"]["median"], norm["patch"]["max"], row["patches_above"]["outliers"]]
        shares = [f"{100 * row['attention']['patch'][k]:.1f}%" for k in kinds]
        rows.append([str(row["layer"]), *map(words.number, cells), *shares])
    sheet.table(head, rows)
    if images["outliers"]:
        sheet.title(f"Outlier patches after block {images['outlier_layer']}")
        head = ("picture", "row", "column", "norm", "cosine")
        sheet.table(head, _outlier_rows(images), left=head[:1], most=MAX_ROWS)
    sheet.line(f"outlier patch: {rule(images)}", "dim")


def _outlier_rows(images: ImageFindings) -> list[list[str]]:
    return [
        [p["image"], str(p["row"]), str(p["column"]), words.number(p["norm"]),
         words.number(p["cosine"])]
        for p in images["outliers"]
    ]


def sections(
    result: ProbeResult, images: ImageFindings, pictured: Sequence[PicturedImage]
) -> list[Section]:
    """The sections of the page that text has not, in reading order."""
    layer = images["outlier_layer"]
    marked = [
        Picture(marked_uri(p.pixels, p.outlier[layer]), p.name,
                f"{p.name} with {int(p.outlier[layer].sum())} patches marked")
        for p in pictured
    ]
    some = any(p.outlier[layer].any() for p in pictured)
    framed = "Framed: outlier patches" if some else "No patch is framed: none is an outlier"
    outliers: list[Part] = [
        Pictures(marked, 300),
        Lines([f"{framed} after block {layer}: {rule(images)}."], "soft"),
    ]
    if images["outliers"]:
        head = ("picture", "row", "column", "norm", "cosine to neighbours")
        outliers.append(Table(head, _outlier_rows(images), text=head[:1]))
    found = [Section("pictures", "Pictures", outliers)]
    head, rows = _norm_table(images)
    note = (
        "L2 norms over the dimensions before the final norm. Counts of patches of one picture "
        f"above {', '.join(f'{bound:g}' for bound in NORMS)}, above mean + 3 standard deviations, "
        "and of outlier patches. All are means over pictures."
    )
    found.append(Section("norms", "Norms of tokens", [
        norm_chart(result, images), Table(head, rows), Lines([note], "soft"),
    ]))
    if pictured:
        found.append(Section("norm-maps", "Norm maps", _norm_maps(pictured[0])))
    attention = _attention_table(images)
    note = (
        "Percent of the attention that a kind of token pays, mean over heads, tokens and pictures; "
        f"of {images['attention_queries']} patches in each picture. Outlier patches are among the "
        "patches."
    )
    maps = _attention_maps(images, pictured[0]) if pictured else []
    head, rows = _top_table(result, 3)
    about = (
        "Means over pictures; of each rank the most frequent place and dimension, and the share of "
        "pictures that have it there. A patch is named by its row and column."
    )
    found.insert(1, Section("places", "Largest activations and their places",
                            [Table(head, rows), Lines([about], "soft")]))
    head, rows = attention
    found.append(Section("attention", "Attention by kind of token",
                         [*maps, Table(head, rows), Lines([note], "soft")]))
    return found


def _norm_maps(picture: PicturedImage) -> list[Part]:
    maps = []
    for layer, norm in enumerate(picture.norm):
        low, high = float(np.nanmin(norm)), float(np.nanmax(norm))
        caption = f"block {layer}: {words.number(low)} to {words.number(high)}"
        maps.append(Picture(map_uri(norm, low, high), caption, f"norms after {caption}"))
    note = f"{picture.name}: norms of its patches after each block, dark to light."
    return [Pictures(maps, 110, sharp=True), Lines([note], "soft")]


def _attention_maps(images: ImageFindings, picture: PicturedImage) -> list[Part]:
    """From CLS at every layer, from registers where outliers stand out and at the end."""
    names = ["CLS"] * images["cls"] + [f"register {i}" for i in range(images["registers"])]
    names = names or ["patches"]
    depth, parts = len(picture.attention), []
    for token, name in enumerate(names):
        chosen = range(depth) if token == 0 else sorted({images["outlier_layer"], depth - 1})
        maps = []
        for layer in chosen:
            values = picture.attention[layer, token]
            high = float(values.max())
            caption = f"{name}, block {layer}: to {100 * high:.1f}%"
            maps.append(Picture(map_uri(values, 0.0, high), caption, f"attention of {caption}"))
        parts.append(Pictures(maps, 110, sharp=True))
    note = (
        f"{picture.name}: attention to its patches, mean over heads, from 0 (dark) to the largest "
        "(light) of each map."
    )
    return [*parts, Lines([note], "soft")]
