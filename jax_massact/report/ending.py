"""The last lines of every command that writes: what it wrote, and the command that follows."""

import shlex
from collections.abc import Sequence
from pathlib import Path

import rich.console

from jax_massact.errors import UserError


def show_ending(
    console: rich.console.Console,
    place: Path,
    names: Sequence[str] = (),
    *,
    figures: int = 0,
    page: Path | None = None,
    then: Sequence[str] = (),
) -> None:
    """Prints `wrote runs/a: config.json, model`, `page: ...` and `next: massact probe runs/a`.

    Args:
      place: the folder that was written to, or, without names, the file.
      names: what was written into it, without the page.
      figures: how many files of figures.
      page: the file to open in a browser.
      then: words of the command that goes on from there, after `massact`.
    """
    parts = [*names, *([f"{figures} figures"] if figures else ())]
    console.print(f"wrote {place}" + (f": {', '.join(parts)}" if parts else ""))
    if page is not None:
        console.print(f"page: {page}")
    if then:
        console.print(f"next: massact {shlex.join(then)}")


def check_place(file: str | None) -> None:
    """Refuses a file that cannot be written, before minutes of work and not after them.

    Raises:
      UserError: its folder does not exist.
    """
    if file and not Path(file).expanduser().absolute().parent.is_dir():
        raise UserError(f"cannot write {file}: there is no such folder")
