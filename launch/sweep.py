#!/usr/bin/env python3
"""One configuration, many runs: the grid of a sweep as command lines, local runs or Slurm jobs.

  python launch/sweep.py --config=configs/gpt2_tiny.py:kv_bias --workdir=runs/lr \\
    --sweep config.optimizer.lr=1e-2,3e-3 --sweep config.seed=0,1,2 --config.steps=300

Axes come from `--sweep`, or, where there is none, from the function `get_sweep()` of the
configuration file, which returns a dictionary of axes, {"config.seed": [0, 1, 2]}, or a list of
points, [{"config.seed": 0, "config.steps": 100}, ...]. Every point is one `massact train` in a
folder of its own under --workdir, named after what differs. Every point's settings are checked
before anything is printed or started. Run again, it resumes what is there: a finished run costs
seconds, one that was stopped goes on.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax_massact
from jax_massact.cli.settings import load_file, resolve
from jax_massact.errors import ConfigError, UserError
from jax_massact.train.config import TrainConfig

LAUNCH = Path(__file__).resolve().parent
LAUNCHERS = ("print", "local", "slurm")
EXIT_FAILED, EXIT_USER_ERROR, EXIT_AGAIN = 1, 2, 75


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One setting and what it takes, as `massact train` reads it: `config.NAME`, texts."""

    key: str
    values: tuple[str, ...]


Point = dict[str, str]
"""What one run sets: `config.NAME` to its value."""


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One run: its folder, the settings that the sweep gives it, and the command that starts it."""

    workdir: Path
    point: Point
    command: tuple[str, ...]


def parse_axis(text: str) -> Axis:
    """`config.optimizer.lr=1e-3,3e-4`.

    Raises:
      ConfigError: it is something else, or a value stands there twice.
    """
    key, equals, values = text.partition("=")
    parts = tuple(part.strip() for part in values.split(","))
    if not key.startswith("config.") or not equals or not all(parts):
        raise ConfigError(f"--sweep is {text!r}; expected: config.NAME=VALUE,VALUE,...")
    if len(set(parts)) < len(parts):
        raise ConfigError(f"--sweep is {text!r}; expected: different values")
    return Axis(key, parts)


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination; the last axis changes fastest.

    Raises:
      ConfigError: two axes are of one setting.
    """
    keys = [axis.key for axis in axes]
    if twice := [key for key in keys if keys.count(key) > 1]:
        raise ConfigError(f"two axes are of {twice[0]}; expected: one, with all of its values")
    values = itertools.product(*(axis.values for axis in axes))
    return [dict(zip(keys, combination, strict=True)) for combination in values]


def sweep_of_file(spec: str) -> list[Point]:
    """The points that `get_sweep()` of a configuration file speaks of.

    Args:
      spec: `FILE[:ARG]`, as `--config` takes it.

    Raises:
      ConfigError: there is no such file or function, or it returns something else.
    """
    load_file(spec)  # says what is wrong with the file
    path = _find(spec.partition(":")[0])
    get_sweep = runpy.run_path(str(path)).get("get_sweep")
    if not callable(get_sweep):
        raise ConfigError(f"{path} has no function get_sweep; give --sweep config.NAME=VALUE,...")
    sweep = get_sweep()
    if isinstance(sweep, Mapping):
        axes = [Axis(str(key), _texts(path, key, values)) for key, values in sweep.items()]
        return grid(axes)
    if isinstance(sweep, Sequence) and all(isinstance(point, Mapping) for point in sweep):
        return [{str(key): _text(value) for key, value in point.items()} for point in sweep]
    raise ConfigError(
        f"{path}: get_sweep returned {type(sweep).__name__}; expected: a dictionary of axes, or a "
        "list of points"
    )


def _find(name: str) -> Path:
    package = Path(jax_massact.__file__).parent
    places = (Path(), package.parent, package)  # as `load_file` looks for it
    return next(place / name for place in places if (place / name).is_file())


def _texts(path: Path, key: Any, values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Sequence) or not values:
        raise ConfigError(f"{path}: get_sweep gives {key} {values!r}; expected: a list of values")
    return tuple(map(_text, values))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def names(points: Sequence[Point]) -> list[str]:
    """A folder name for each point: the settings that differ, shortened, with their values.

    `config.optimizer.lr` becomes `lr` unless another setting of the sweep ends like that.

    Raises:
      ConfigError: two points would share a folder.
    """
    keys = list(dict.fromkeys(key for point in points for key in point))
    short = {key: _shorten(key, keys) for key in keys}
    out: dict[str, Point] = {}
    for point in points:
        parts = (f"{short[key]}-{_plain(value)}" for key, value in point.items())
        name = "_".join(parts)
        if name in out:
            raise ConfigError(
                f"two points have the folder {name}: {_words(out[name])}; and {_words(point)}"
            )
        out[name] = point
    return list(out)


def _shorten(key: str, keys: Sequence[str]) -> str:
    parts = key.split(".")[1:]
    for start in range(len(parts) - 1, 0, -1):
        end = parts[start:]
        if sum(other.split(".")[1:][-len(end):] == end for other in keys) == 1:
            return ".".join(end)
    return ".".join(parts)


def _plain(value: str) -> str:
    return re.sub(r"[^A-Za-z0-9.+-]+", "-", value).strip("-") or "none"


def _words(point: Point) -> str:
    return ", ".join(f"{key}={value}" for key, value in point.items())


def check_points(config: str, overrides: Sequence[str], points: Sequence[Point]) -> None:
    """Builds the settings of every point, as `massact train` would.

    Raises:
      ConfigError: a point's settings are refused, or two points are the same run.
    """
    seen: list[tuple[TrainConfig, Point]] = []
    for point in points:
        try:
            settings = resolve(TrainConfig, config, [*overrides, *_flags(point)])
        except ConfigError as error:
            raise ConfigError(f"point {_words(point)}: {error}") from None
        for other, before in seen:
            if settings == other:
                raise ConfigError(f"{_words(before)} and {_words(point)} are the same run")
        seen.append((settings, point))


def _flags(point: Point) -> list[str]:
    return [f"--{key}={value}" for key, value in point.items()]


def command(args: argparse.Namespace, workdir: Path, settings: Sequence[str]) -> tuple[str, ...]:
    """The words that start one run by the chosen launcher."""
    where = (f"--config={args.config}", f"--workdir={workdir}")
    if args.launcher == "print":
        return ("massact", "train", *where, *args.option, *settings)
    processes = f"--processes={args.processes}"
    if args.launcher == "local":
        return (str(LAUNCH / "local.sh"), *where, processes, *args.option, *settings)
    script = str(LAUNCH / "slurm.sbatch")
    job = f"--job-name={workdir.name}"
    return ("sbatch", job, *args.option, script, *where, processes,
            f"--launch-dir={LAUNCH}", *settings)


def plan(args: argparse.Namespace, overrides: Sequence[str]) -> list[Job]:
    """Every run of the sweep, checked, in order.

    Raises:
      UserError: an axis, a point or the file cannot be used.
    """
    for override in overrides:
        if not re.match(r"--config\.[^=]+=", override):
            raise ConfigError(f"unexpected argument {override!r}; expected: --config.NAME=VALUE")
    axes = [parse_axis(text) for text in args.sweep]
    points = grid(axes) if axes else sweep_of_file(args.config)
    if not points or not all(points):
        raise ConfigError("the sweep has no points; give --sweep config.NAME=VALUE,...")
    folders = [Path(args.workdir).expanduser() / name for name in names(points)]
    check_points(args.config, overrides, points)
    return [
        Job(folder, point, command(args, folder, [*overrides, *_flags(point)]))
        for folder, point in zip(folders, points, strict=True)
    ]


class Stopper:
    """Passes SIGTERM and Ctrl-C on to the run that is under way, as SIGTERM, and notes them.

    Attributes:
      asked: whether one has come: nothing more is started.
    """

    def __init__(self) -> None:
        self.asked = False
        self._child: subprocess.Popen[bytes] | None = None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """While inside, signals come here."""
        before = {n: signal.signal(n, self._stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def run(self, words: Sequence[str]) -> int:
        """The exit code of a command."""
        # A session of its own: Ctrl-C comes through us alone, once.
        self._child = subprocess.Popen(words, start_new_session=True)
        if self.asked:  # in between
            self._child.terminate()
        return self._child.wait()

    def _stop(self, number: int, frame: Any) -> None:
        del number, frame
        self.asked = True
        if self._child is not None:
            self._child.terminate()


def run_all(jobs: Sequence[Job]) -> list[int | None]:
    """Starts one command after the other; the code of each, None for what was not started."""
    codes: list[int | None] = [None] * len(jobs)
    stopper = Stopper()
    with stopper():
        for index, job in enumerate(jobs):
            if stopper.asked:
                break
            print(f"== {index + 1} of {len(jobs)}: {job.workdir}", flush=True)
            codes[index] = stopper.run(job.command)
    return codes


def table(jobs: Sequence[Job], codes: Sequence[int | None], done: str) -> str:
    """One line for each run: its code, what that means, its folder."""
    meanings = {0: done, EXIT_USER_ERROR: "a person must act", EXIT_AGAIN: "stopped; run again"}
    lines = []
    for job, code in zip(jobs, codes, strict=True):
        shown = "-" if code is None else str(code)
        meaning = "not started" if code is None else meanings.get(code, "failed")
        lines.append(f"{shown:>4}  {meaning:<18}  {job.workdir}")
    return "\n".join(lines)


def overall(codes: Sequence[int | None]) -> int:
    """0: all is well; 75: stopped, run it again; 2: a person must act; 1: some run failed."""
    for code in (EXIT_USER_ERROR, EXIT_AGAIN):
        if code in codes:
            return code
    if None in codes:
        return EXIT_AGAIN
    return EXIT_FAILED if any(codes) else 0


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
    """The options, each of which the environment may give, and the settings of every run."""
    parser = argparse.ArgumentParser(
        "sweep.py", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    get = os.environ.get
    add("--config", metavar="FILE[:ARG]", default=get("MASSACT_CONFIG"),
        help="as for `massact train` ($MASSACT_CONFIG)")
    add("--workdir", metavar="DIR", default=get("MASSACT_WORKDIR"),
        help="the folder of the runs' folders ($MASSACT_WORKDIR)")
    add("--sweep", metavar="config.NAME=VALUE,...", action="append", default=[],
        help="one axis; several make a grid")
    add("--launcher", choices=LAUNCHERS, default="print",
        help="print the command lines (default), run them here one after another with local.sh, "
        "or submit them with sbatch and slurm.sbatch")
    add("--processes", metavar="N", default=get("MASSACT_PROCESSES", "1"),
        help="of every run, for local and slurm ($MASSACT_PROCESSES; 1)")
    add("--option", metavar="=--NAME=VALUE", action="append", default=[],
        help="more for the launcher, such as --option=--retries=3 for local.sh, "
        "--option=--nodes=2 for sbatch")
    add("--dry-run", action="store_true", help="print the commands, run nothing")
    args, overrides = parser.parse_known_args(argv)
    for name in ("config", "workdir"):
        if not getattr(args, name):
            variable = f"MASSACT_{name.upper()}"
            raise ConfigError(f"{variable} is not set; set it, or give --{name}=...")
    if not re.fullmatch(r"[1-9]\d*", args.processes):
        raise ConfigError(
            f"--processes is {args.processes!r}; expected: a whole number of at least 1"
        )
    return args, overrides


def main(argv: Sequence[str] | None = None) -> int:
    """Prints or runs the sweep; returns the exit code."""
    try:
        args, overrides = parse(argv)
        jobs = plan(args, overrides)
    except UserError as error:
        print(f"sweep.py: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    if args.dry_run or args.launcher == "print":
        for job in jobs:
            print(shlex.join(job.command))
        return 0
    try:
        codes = run_all(jobs)
    except OSError as error:
        print(f"sweep.py: {error.filename}: {error.strerror}", file=sys.stderr)
        return EXIT_USER_ERROR
    print(table(jobs, codes, "finished" if args.launcher == "local" else "submitted"))
    return overall(codes)


if __name__ == "__main__":
    sys.exit(main())
