"""The `massact` command: turns flags into settings and calls one function for each command."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from jax_massact.errors import UserError

DESCRIPTION = "Massive activations, attention sinks and outlier features in transformers."
_MODEL_HELP = (
    "a named resource (smollm2-135m), a .gguf file, a folder with config.json and safetensors, or "
    "a Hugging Face id"
)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code: 0, or 2 for an error a person can fix."""
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    try:
        return args.run(args, rest)
    except UserError as error:
        print(f"massact: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("massact: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("massact", description=DESCRIPTION)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_probe(commands)
    _add_bench(commands)
    return parser


def _add_probe(commands: Any) -> None:
    from jax_massact.cli.settings import describe
    from jax_massact.config import ProbeConfig

    probe = commands.add_parser(
        "probe",
        help="does a model have massive activations: where, since which layer, how large, who "
        "writes them",
        epilog=describe(ProbeConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    probe.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    probe.add_argument(
        "--workdir",
        metavar="DIR",
        help="where probe.json, report.html and figures go (default: massact_out/MODEL)",
    )
    _add_config(probe)
    probe.set_defaults(run=_probe)


def _add_bench(commands: Any) -> None:
    from jax_massact.cli.settings import describe
    from jax_massact.config import ProbeConfig

    bench = commands.add_parser("bench", help="measure speed and memory on this machine")
    kinds = bench.add_subparsers(title="what", required=True, metavar="WHAT")
    probe = kinds.add_parser(
        "probe",
        help="the whole probe command, against logits only and against the authors' way",
        epilog=describe(ProbeConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    probe.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    probe.add_argument(
        "--reference",
        metavar="PYTHON",
        help="a Python with torch, transformers, accelerate and gguf: also time the authors' way "
        "(GGUF files only) and compare its numbers",
    )
    probe.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each (3)")
    probe.add_argument("--json", metavar="FILE", help="write the figures here, too")
    _add_config(probe)
    probe.set_defaults(run=_bench_probe)


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--config",
        metavar="FILE[:ARG]",
        help="a Python file whose get_config([ARG]) returns an ml_collections.ConfigDict",
    )


def _probe(args: argparse.Namespace, rest: list[str]) -> int:
    from jax_massact.cli.probe import run_probe
    from jax_massact.cli.settings import resolve
    from jax_massact.config import ProbeConfig

    run_probe(args.model, resolve(ProbeConfig, args.config, rest), args.workdir)
    return 0


def _bench_probe(args: argparse.Namespace, rest: list[str]) -> int:
    from jax_massact.cli.bench import run_bench_probe
    from jax_massact.cli.settings import resolve
    from jax_massact.config import ProbeConfig

    config = resolve(ProbeConfig, args.config, rest)
    run_bench_probe(
        args.model, config, reference=args.reference, repeat=args.repeat, json_file=args.json
    )
    return 0
