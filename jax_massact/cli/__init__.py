"""The `massact` command: turns flags into settings and calls one function for each command."""

import argparse
import os
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from jax_massact.cli.table import COMMANDS, FAMILIES, Command, Group, load
from jax_massact.errors import UserError

DESCRIPTION = "Massive activations, attention sinks and outlier features in transformers."


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code.

    0; 2 for an error that the user can fix, and where a result could not be written; 3 where a
    result is not finite; 130 after Ctrl-C; 75 (EX_TEMPFAIL) where `train` was stopped by SIGTERM
    or by the loss of another process, and resumes when it is started again.
    """
    argv = sys.argv[1:] if argv is None else argv
    # Figures are drawn into files; matplotlib refuses to start where a notebook's backend is not.
    os.environ.pop("MPLBACKEND", None)
    args, overrides = make_parser(argv).parse_known_args(argv)
    args.argv = list(argv)
    try:
        return _run(args, overrides)
    except UserError as error:
        print(f"massact: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("massact: stopped", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    from jax_massact.jax_switches import check_switches, missing_device

    check_switches()
    try:
        return load(args.row.run)(args, overrides)
    except (AssertionError, RuntimeError) as error:
        if (missing := missing_device(error)) is None:
            raise
        raise missing from None


def make_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of a command line; only the commands that are named in it get their options."""
    parser = argparse.ArgumentParser("massact", description=DESCRIPTION)
    children = {"": _children(parser, "commands", "COMMAND")}
    for name, row in COMMANDS.items():
        family, _, own = name.rpartition(" ")
        words = name.split()
        if family not in children:
            about = FAMILIES[family]
            group = children[""].add_parser(family, help=about, description=about)
            children[family] = _children(group, "what", "WHAT")
        command = children[family].add_parser(
            own,
            help=row.about,
            description=row.description or textwrap.fill(row.about, 79),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.set_defaults(row=row, command=name)
        if list(argv[: len(words)]) == words:
            _fill(command, row)
    return parser


def _children(parser: argparse.ArgumentParser, title: str, metavar: str) -> Any:
    return parser.add_subparsers(title=title, required=True, metavar=metavar)


def _fill(command: argparse.ArgumentParser, row: Command) -> None:
    from jax_massact.cli.settings import describe

    for item in row.options():
        if isinstance(item, Group):
            group = command.add_argument_group(item.title, item.about)
            for option in item.options:
                group.add_argument(option.name, **option.details)
        else:
            command.add_argument(item.name, **item.details)
    command.add_argument(
        "--config",
        required=row.needs_config,
        metavar="FILE[:ARG]",
        help="a Python file whose get_config([ARG]) returns an ml_collections.ConfigDict",
    )
    command.epilog = describe(load(row.settings))
