"""Terminal tables, figures and pages, made from plain results: nothing here knows a model."""

from pathlib import Path

from jax_massact.probe.result import ActivationMap, ProbeResult
from jax_massact.report.explain import print_explain, write_explain_report
from jax_massact.report.fold import print_fold, write_fold_report
from jax_massact.report.intervene import print_intervene, write_intervene_report
from jax_massact.report.terminal import print_probe, probe_table

__all__ = [
    "print_explain",
    "print_fold",
    "print_intervene",
    "print_probe",
    "probe_table",
    "write_explain_report",
    "write_fold_report",
    "write_intervene_report",
    "write_probe_report",
]


def write_probe_report(
    result: ProbeResult, activation_map: ActivationMap, folder: Path
) -> list[Path]:
    """Writes `probe.json`, `report.html` and `figures/` (PNG and PDF) into `folder`.

    Each file is written whole or not at all; files of the same names are replaced.

    Args:
      result: what the probe found.
      activation_map: |resid_post| of the first sequence, [L, tokens, bins].
      folder: made when missing.

    Returns:
      Every file written, `probe.json` first.

    Raises:
      OSError: the folder cannot be made or written to.
    """
    from jax_massact.report.encode import to_json, write_text
    from jax_massact.report.figures import save_probe_figures
    from jax_massact.report.page import write_probe_page

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_text(folder / "probe.json", to_json(result, indent=2) + "\n"),
        write_probe_page(result, activation_map, folder / "report.html"),
        *save_probe_figures(result, activation_map, folder / "figures"),
    ]
