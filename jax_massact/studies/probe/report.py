"""The report of `massact probe`: the table, the page and the figures."""

from pathlib import Path

from rich.console import Console

from jax_massact.report.terminal import print_probe
from jax_massact.results import ActivationMap
from jax_massact.studies.probe.result import ProbeResult

PAGE = "report.html"


def show(result: ProbeResult, console: Console) -> None:
    """Prints the verdict and the tables."""
    print_probe(result, console)


def page(result: ProbeResult, activation_map: ActivationMap) -> str:
    """The page, as HTML."""
    from jax_massact.studies.probe.page import probe_page

    return probe_page(result, activation_map)


def figures(result: ProbeResult, activation_map: ActivationMap, *, folder: Path) -> list[Path]:
    """Draws the figures into `folder`."""
    from jax_massact.report.figures import save_probe_figures

    return save_probe_figures(result, activation_map, folder)
