"""Every command line that README, the site and the configurations show is one that is taken."""

import re
import shlex
from pathlib import Path

import pytest

from jax_massact.cli import make_parser
from jax_massact.cli.settings import resolve
from jax_massact.cli.table import load

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), ROOT / "launch" / "README.md",
         *(ROOT / "configs").glob("*.py"), *(ROOT / "docs" / "tutorials").glob("*.py")]
# A line of its own, the header of a configuration, or code within a sentence.
SHOWN = re.compile(r"^(?:    |Command:  | {10})(massact [a-z].*)$|`(massact [^`]+)`", re.MULTILINE)
# Prose in place of arguments, as in a table of commands or the command of a recorded result.
PROSE = re.compile(r"\.\.\.|[;,] |\[|\bfor$|=FILE")


def lines_of(page):
    """The lines that have arguments, without the comments behind them."""
    for block, inline in SHOWN.findall(re.sub(r"\\\n", "", page.read_text("utf-8"))):
        line = " ".join(re.sub(r"\s#.*", "", block or inline).split())
        if "-" in line and not PROSE.search(line):
            yield line


LINES = sorted({(page.name, line) for page in PAGES for line in lines_of(page)})


def test_the_lines_of_every_kind_of_page_are_found():
    assert {"README.md", "gpt2_tiny.py", "training.md", "probe.md"} <= {page for page, _ in LINES}
    assert len(LINES) > 60


@pytest.mark.parametrize(("page", "line"), LINES)
def test_a_command_line_is_taken(page, line):
    _, *argv = shlex.split(line)
    if "--help" in argv:
        return
    args, overrides = make_parser(argv).parse_known_args(argv)
    file = args.config
    if file is not None and not re.fullmatch(r"configs/[a-z0-9_]+\.py(:[a-z0-9_:]+)?", file):
        file = None  # the reader's own
    if args.command == "compare" and file is not None:
        file = f"{file}:standard"
    resolve(load(args.row.settings), file, overrides)
