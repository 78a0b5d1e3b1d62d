"""What was measured of a run, kept in its folder for the next comparison."""

import contextlib
import hashlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from jax_massact import __version__
from jax_massact.errors import UserError
from jax_massact.loading import RUN_MODEL
from jax_massact.report.encode import to_json, write_text
from jax_massact.studies.compare.interventions import intervene_run
from jax_massact.studies.compare.rounding import FLOAT, KINDS, round_run
from jax_massact.studies.interventions_result import InterveneResult
from jax_massact.train.config import TrainConfig
from jax_massact.train.loop import CONFIG, SUMMARY
from jax_massact.weights.digests import file_digest

FILE = "measured.json"
_SCHEMA = 1


class Measured(TypedDict):
    """`measured.json` in the folder of a run.

    Attributes:
      schema, package: of this file, and the package's version.
      run: SHA-256 of the run's settings and of its summary, which a run that goes on changes.
      model: SHA-256 of the files with the weights, by name.
      interventions: of `studies.compare.interventions`.
      rounded: of `studies.compare.rounding`, the loss of the same rows.
    """

    schema: int
    package: str
    run: str
    model: dict[str, str]
    interventions: InterveneResult
    rounded: dict[str, float]


def measured(
    folder: Path, config: TrainConfig, report: Callable[[str], None]
) -> Measured | None:
    """Intervenes on a run and rounds it, unless this version of the package has done so before.

    What was measured of a run stays valid after its model, which may be large, was removed.

    Args:
      folder: of `train`, which keeps what was measured if it can be written to.
      config: of that run.
      report: called with a line of text that says which it is.

    Returns:
      None where the model is gone and nothing was kept.

    Raises:
      UserError: the model or the data of the run cannot be read any more.
    """
    key: dict[str, Any] = {"schema": _SCHEMA, "package": __version__, "run": _digest(folder)}
    if weights := _weights(folder / RUN_MODEL):
        key["model"] = weights
    kept = _read(folder / FILE)
    if key.items() <= kept.items():
        report(f"what was measured of {folder} is read from its {FILE}")
        return Measured(**kept)
    if not weights:
        return None
    report(f"intervening on {folder}")
    found = Measured(
        **key, interventions=intervene_run(folder, config), rounded=round_run(folder, config)
    )
    finite = all(map(math.isfinite, found["rounded"].values()))
    if finite and not found["interventions"]["warnings"]:  # JSON has no NaN
        with contextlib.suppress(OSError):
            write_text(folder / FILE, to_json(found))
    return found


def _digest(folder: Path) -> str:
    texts = (folder / CONFIG).read_bytes(), (folder / SUMMARY).read_bytes()
    return hashlib.sha256(b"\0".join(texts)).hexdigest()


def _weights(folder: Path) -> dict[str, str]:
    """Empty where the model is gone; a link to what is not there is gone, too."""
    files = sorted(file for file in folder.glob("*.safetensors") if file.exists())
    try:
        return {file.name: file_digest(file) for file in files}
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror}") from None


def _read(path: Path) -> dict[str, Any]:
    """Empty where there is none, or none that can be read."""
    try:
        kept = json.loads(path.read_text())
        numbers = [kept["rounded"][name] for name in (FLOAT, *KINDS)]
        whole = "massive" in kept["interventions"] and all(map(math.isfinite, numbers))
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return {}
    return kept if whole else {}
