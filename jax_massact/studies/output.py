"""The folder of results, and the end of every run: files first, each by itself, then the words."""

import contextlib
import importlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import rich.console

from jax_massact.errors import UserError
from jax_massact.report.chart import Chart, Surface
from jax_massact.report.console import failure, make_console
from jax_massact.report.encode import to_json, write_bytes, write_text
from jax_massact.report.ending import show_ending

OWNER = ".model"  # names the model whose results a folder holds
INCOMPLETE, NOT_FINITE = 2, 3  # exit codes


class Outcome(NamedTuple):
    """What a study found.

    Attributes:
      result: what its JSON file holds.
      pictures: arrays for the page and the figures.
      save: writes further files into the folder, and may complete `result`.
    """

    result: Any
    pictures: tuple[Any, ...] = ()
    save: Callable[[Path], None] | None = None


class Written(NamedTuple):
    """Files that were written, and a line about each that could not be."""

    paths: list[Path]
    failures: list[str]


@contextlib.contextmanager
def folder_for(
    workdir: str | None, source: str, console: rich.console.Console
) -> Iterator[Path]:
    """The folder for the results of a model, made now: a run should not fail after its work.

    A folder holds the results of one model. The default, massact_out/NAME, is numbered where
    another model of that name has it. As `made`, where the work inside fails.

    Raises:
      UserError: the folder cannot be written to, or `workdir` holds another model's results.
    """
    path = Path(source).expanduser()
    model = str(path.resolve()) if path.exists() else source
    if workdir:
        folder = Path(workdir).expanduser()
        if other := _other_owner(folder, model):
            raise UserError(
                f"{folder} holds results of {other}; expected: a folder for each model. Give "
                "another --workdir"
            )
    else:
        name = re.sub(r"[^\w.-]+", "_", path.name or "model")
        first = folder = Path("massact_out") / name
        number = 1
        while _other_owner(folder, model):
            number += 1
            folder = first.with_name(f"{name}-{number}")
        if number > 1:
            console.print(f"{first} holds results of another model; writing to {folder}")
    owner = folder / OWNER
    with made(folder):
        is_new = not owner.exists()
        try:
            write_text(owner, model)
        except OSError as error:
            raise _unwritable(folder, error) from None
        try:
            yield folder
        except BaseException:
            if is_new:
                owner.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def made(folder: Path) -> Iterator[None]:
    """Makes a folder; removes it, and the parents made for it, if the work inside fails first.

    What was written by then stays.

    Raises:
      UserError: it cannot be made.
    """
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from None
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty
            for path in missing:
                path.rmdir()
        raise


def _unwritable(folder: Path, error: OSError) -> UserError:
    return UserError(f"cannot write to {folder}: {error.strerror or error}")


def _other_owner(folder: Path, model: str) -> str | None:
    """The other model that a folder holds results of."""
    try:
        owner = (folder / OWNER).read_text(encoding="utf-8", errors="backslashreplace")
    except OSError:
        return None
    return owner if owner != model and any(folder.glob("*.json")) else None


def finish(
    name: str, outcome: Outcome, folder: Path, console: rich.console.Console,
    then: Sequence[str] = (),
) -> int:
    """Writes what was found, then prints it; the exit code.

    Args:
      name: of the study, whose `report` module shows the result.
      console: for messages beside the result.
      then: words of the command that follows where nothing went wrong, after `massact`.
    """
    kept = keep_former(folder / f"{name}.json", outcome.result)
    if kept is not None:
        console.print(f"the former {name}.json, of other settings, is kept as {kept.name}")
    written, failures = write_files(name, outcome, folder)
    for key, word in (("warnings", "warning"), ("notices", "note")):
        for line in outcome.result[key]:
            console.print(f"{word}: {line}")
    out = make_console()
    try:
        _report(name).show(outcome.result, out)
    except Exception as error:
        failures.append(f"the result could not be printed: {_cause(error)}")
    if said := failure(out):
        failures.append(f"the result could not be printed: {said}")
    trouble = bool(failures or outcome.result["warnings"])
    if written:
        kinds = (".png", ".pdf", ".html")
        names = [path.name for path in written if path.suffix not in kinds]
        if model := outcome.result.get("saved_to"):
            names.append(model)
        show_ending(
            console, folder, names,
            figures=sum(path.suffix in kinds[:2] for path in written),
            page=next((path for path in written if path.suffix == ".html"), None),
            then=() if trouble else then,
        )
    for line in failures:
        console.print(f"massact: {line}")
    if failures:
        return INCOMPLETE
    return NOT_FINITE if outcome.result["warnings"] else 0


def write_files(name: str, outcome: Outcome, folder: Path) -> Written:
    """Writes NAME.json, what else the study saves, the page and the figures.

    Each file is written whole or not at all, and whatever becomes of the others.
    """
    result, pictures, save = outcome
    json_file = folder / f"{name}.json"
    written = Written([], [])

    def attempt(what: Path, write: Callable[[], list[Path]]) -> None:
        try:
            what.parent.mkdir(parents=True, exist_ok=True)
            written.paths.extend(path for path in write() if path not in written.paths)
        except Exception as error:
            written.failures.append(f"cannot write {what}: {_cause(error)}")

    def write_json() -> list[Path]:
        return [write_text(json_file, to_json(result, indent=2) + "\n")]

    attempt(json_file, write_json)
    if save is not None:
        attempt(folder, lambda: (save(folder), write_json())[1])
    report = _report(name)
    page, figures = folder / getattr(report, "PAGE", f"{name}.html"), folder / "figures"
    # A page or figure beside the new numbers is of these, or does not exist.
    for figure in getattr(report, "FIGURES", ()):
        for kind in ("png", "pdf"):
            (figures / f"{figure}.{kind}").unlink(missing_ok=True)
    if hasattr(report, "page"):
        page.unlink(missing_ok=True)
        attempt(page, lambda: [write_text(page, report.page(result, *pictures))])
    charts: list[Chart | Surface] = []
    if hasattr(report, "charts"):
        attempt(figures, lambda: charts.extend(report.charts(result, *pictures)) or [])
    for chart in charts:
        attempt(figures / chart.name, lambda c=chart: _draw(c, figures))
    return written


def _draw(chart: Chart | Surface, folder: Path) -> list[Path]:
    from jax_massact.report.matplotlib_painter import draw

    return [
        write_bytes(folder / f"{chart.name}.{kind}", content)
        for kind, content in draw(chart).items()
    ]


def keep_former(path: Path, result: Mapping[str, Any]) -> Path | None:
    """Renames the file of an earlier run, if that had other settings, data or another model."""
    try:
        former = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if _subject(former) == _subject(json.loads(to_json(result))):
        return None
    number = 1
    while (kept := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
        number += 1
    try:
        os.replace(path, kept)
    except OSError:
        return None  # writing the new one will say why
    return kept


def _subject(result: Any) -> Any:
    """What a result is of."""
    keys = ("model", "data", "config")
    runs = [[run.get("folder"), run.get("steps")] for group in result.get("groups", [])
            for run in group.get("runs", [])]
    return {key: result.get(key) for key in keys}, runs


def _report(name: str) -> Any:
    return importlib.import_module(f"jax_massact.studies.{name}.report")


def _cause(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
