"""The `massact` command: turns flags into settings and calls one function for each command."""

import argparse
import dataclasses
import difflib
import json
import os
import re
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from jax_massact import __version__
from jax_massact.cli.table import COMMANDS, FAMILIES, Command, Group, Option, load
from jax_massact.errors import UserError

DESCRIPTION = "Massive activations, attention sinks and outlier features in transformers."
EPILOG = (
    "massact COMMAND --help has an example, all options and all settings. To begin: massact probe "
    "smollm2-135m"
)
PRINT_CONFIG = "--print-config"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code.

    0; 2 for an error that the user can fix, and where a result could not be written; 3 where a
    result is not finite; 130 after Ctrl-C; 75 (EX_TEMPFAIL) where `train` was stopped by SIGTERM
    or by the loss of another process, and resumes when it is started again.
    """
    argv = sys.argv[1:] if argv is None else argv
    # Figures are drawn into files; matplotlib refuses to start where a notebook's backend is not.
    os.environ.pop("MPLBACKEND", None)
    try:
        args, overrides = make_parser(argv).parse_known_args(argv)
        args.argv = list(argv)
        return _run(args, overrides)
    except UserError as error:
        print(f"massact: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("massact: stopped", file=sys.stderr)
        return 130


def _run(args: argparse.Namespace, overrides: list[str]) -> int:
    if not args.row.settings and overrides:
        raise UserError(f"unexpected argument {overrides[0]!r}")
    if args.row.settings and args.print_config:
        return _print_config(args, overrides)
    from jax_massact.jax_switches import check_switches, missing_device

    check_switches()
    try:
        return load(args.row.run)(args, overrides)
    except (AssertionError, RuntimeError) as error:
        if (missing := missing_device(error)) is None:
            raise
        raise missing from None


def _print_config(args: argparse.Namespace, overrides: list[str]) -> int:
    """Prints the settings as JSON, which `--config=FILE.json` takes."""
    from jax_massact.cli.settings import resolve
    from jax_massact.report.console import make_console

    settings = resolve(load(args.row.settings), args.config, overrides)
    make_console().print(json.dumps(dataclasses.asdict(settings), indent=2), soft_wrap=True)
    return 0


class _Parser(argparse.ArgumentParser):
    """A parser that names what may have been meant.

    Attributes:
      row: the command whose arguments it parses; None: it parses the names of commands.
    """

    row: Command | None = None

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """What the options say, and the settings, which are not parsed here.

        Raises:
          UserError: an option that the command does not have.
        """
        args = sys.argv[1:] if args is None else list(args)
        if self.row is None and not args:
            self.print_help(sys.stderr)
            self.exit(2)
        if self.row is None:
            if args[0].startswith("-") and not any(
                name.startswith(args[0]) for name in self._option_string_actions
            ):
                raise UserError(f"{args[0]} has no command before it; expected: {self.prog} "
                                f"{'COMMAND' if self.prog == 'massact' else 'WHAT'} ...")
            return super().parse_known_args(args, namespace)
        for argument in args:
            self._check(argument, self.row)
        if not (name := self.row.settings):
            return super().parse_known_args(args, namespace)
        from jax_massact.cli.overrides import settings_in

        # Else a value, or a setting with a space in it, would be an argument by position.
        settings, args = settings_in(lambda: load(name), args)
        found, rest = super().parse_known_args(args, namespace)
        return found, [*rest, *settings]

    def _check(self, argument: str, row: Command) -> None:
        name = argument.partition("=")[0]
        known = self._option_string_actions
        setting = row.settings and name.startswith("--config.")
        if not name.startswith("--") or name == "--" or name in known or setting:
            return
        from jax_massact.cli.overrides import meant

        hint = meant(argument, load(row.settings) if row.settings else None, [*known])
        raise UserError(f"there is no option {name}.{hint} {self.prog} --help lists all")

    def error(self, message: str) -> NoReturn:
        """As in the base; with the nearest of the names that there are, for a name that is none."""
        if wrong := re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message):
            names = re.findall(r"[\w-]+", wrong[2])
            if near := difflib.get_close_matches(wrong[1], names, n=1):
                message += f". Did you mean {near[0]}?"
        super().error(message)


def make_parser(argv: Sequence[str] | None) -> argparse.ArgumentParser:
    """The parser of a command line; only the command that it names gets its options.

    Args:
      argv: the arguments; None: every command gets its options, and each setting is one of them.
    """
    parser = _Parser("massact", description=DESCRIPTION, epilog=EPILOG)
    parser.add_argument("--version", action="version", version=f"massact {__version__}")
    children = {"": _children(parser, "commands", "COMMAND")}
    for name, row in COMMANDS.items():
        family, _, own = name.rpartition(" ")
        if family not in children:
            about = FAMILIES[family]
            group = children[""].add_parser(family, help=about, description=about)
            children[family] = _children(group, "what", "WHAT")
        about = row.description or textwrap.fill(row.about, 79)
        command = children[family].add_parser(
            own,
            help=row.about,
            description=f"{about}\n\nexample:\n  {row.example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.row = row
        command.set_defaults(row=row, command=name)
        words = name.split()
        if argv is None or list(argv[: len(words)]) == words:
            _fill(command, row, argv)
    return parser


def _children(parser: argparse.ArgumentParser, title: str, metavar: str) -> Any:
    return parser.add_subparsers(title=title, required=True, metavar=metavar)


def _fill(
    command: argparse.ArgumentParser, row: Command, argv: Sequence[str] | None
) -> None:
    # Settings are printed without what a run needs.
    needed = argv is None or PRINT_CONFIG not in argv

    def add(parent: Any, option: Option) -> None:
        details = dict(option.details)
        if not needed:
            details |= {"required": False} if option.name.startswith("-") else {"nargs": "?"}
        parent.add_argument(option.name, **details)

    for item in row.options():
        if isinstance(item, Group):
            group = command.add_argument_group(item.title, item.about)
            for option in item.options:
                add(group, option)
        else:
            add(command, item)
    if not row.settings:
        return
    command.add_argument(
        "--config",
        required=needed and row.needs_config,
        metavar="FILE[:ARG]",
        help="a Python file whose get_config([ARG]) returns an ml_collections.ConfigDict; or the "
        "JSON file of a run or a result, whose settings are repeated",
    )
    command.add_argument(
        PRINT_CONFIG, action="store_true", help="print the settings as JSON, and do nothing else"
    )
    # Importing the settings takes longer than anything else here.
    if argv is None or not {"-h", "--help"}.isdisjoint(argv):
        from jax_massact.cli.settings import describe, names

        settings = load(row.settings)
        command.epilog = describe(settings)
        for name in names(settings) if argv is None else ():
            command.add_argument(f"--config.{name}", help="setting")
