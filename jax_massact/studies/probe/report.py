"""The files that `massact probe` writes."""

from pathlib import Path

from jax_massact.results import ActivationMap
from jax_massact.studies.probe.result import ProbeResult


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
    from jax_massact.studies.probe.page import write_probe_page

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return [
        write_text(folder / "probe.json", to_json(result, indent=2) + "\n"),
        write_probe_page(result, activation_map, folder / "report.html"),
        *save_probe_figures(result, activation_map, folder / "figures"),
    ]
