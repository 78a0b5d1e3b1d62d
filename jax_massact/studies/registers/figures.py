"""The chart of `massact registers`."""

from jax_massact.report.chart import (
    BLUE,
    GREEN,
    ORANGE,
    Axis,
    Chart,
    Panel,
    Series,
    layers,
    titled,
)
from jax_massact.studies.registers.result import RegistersResult

FIGURES = ("patch_norms",)


def norm_chart(result: RegistersResult) -> Chart:
    """Norms of patches and of the appended token, layer by layer."""
    arms, lines = result["arms"], []
    x = [row["layer"] for row in arms["original"]["norms"]]
    for name, short, color in (("original", "unedited", ORANGE), ("register", "moved", BLUE)):
        rows = arms[name]["norms"]
        lines.append(Series(f"largest, {short}", x, [row["max"] for row in rows], color, "--"))
        lines.append(Series(f"median, {short}", x, [row["median"] for row in rows], color))
    token = [row["register"] for row in arms["register"]["norms"]]
    lines.append(Series("the token", x, token, GREEN, "-", "D"))
    axis = Axis("L2 norm of resid_post (mean over pictures)", scale="log")
    return Chart(
        FIGURES[0], titled(result["model"]["name"], "norms before and after"),
        "Norms of patches and of the appended token, layer by layer",
        [Panel(lines, x=layers(len(x)), y=axis, height=420)], legend="right",
    )
