"""The `massact` command: turns flags into settings and calls one function for each command."""

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from jax_massact.errors import UserError

DESCRIPTION = "Massive activations, attention sinks and outlier features in transformers."
_MODEL_HELP = (
    "a named resource (smollm2-135m), a .gguf file, a folder with config.json and safetensors, or "
    "a Hugging Face id"
)


class _Run(NamedTuple):
    """A row of `_RUNS`: `jax_massact.studies.NAME.command.run_NAME` does it."""

    about: str
    config: str
    written: str


_RUNS = {
    "probe": _Run(
        "does a model have massive activations: where, since which layer, how large, who writes "
        "them",
        "probe.settings.ProbeConfig",
        "probe.json, report.html and figures",
    ),
    "intervene": _Run(
        "what the perplexity is when they are set to zero, to their mean, to a part of it, and "
        "whether the model needs them",
        "settings.InterveneConfig",
        "intervene.json, intervene.html and figures",
    ),
    "explain": _Run(
        "what attention makes of them: sink rate, norms, keys and values, value updates, locations",
        "explain.settings.ExplainConfig",
        "explain.json, explain.html and figures",
    ),
    "fold": _Run(
        "write the keys and values of a fixed first token as explicit k', v', drop the token, and "
        "compare",
        "fold.settings.FoldConfig",
        "fold.json, fold.html and the folded model",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the process's exit code.

    0; 2 for an error that a person can fix; 130 after Ctrl-C; 75 (EX_TEMPFAIL) where `train` was
    stopped by SIGTERM or by the loss of another process, and goes on when it is started again.
    """
    argv = sys.argv[1:] if argv is None else argv
    parser = _parser()
    args, rest = parser.parse_known_args(argv)
    args.argv = list(argv)
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
    for name in _RUNS:
        _add_run(commands, name)
    _add_train(commands)
    _add_compare(commands)
    _add_plan(commands)
    _add_bench(commands)
    return parser


def _add_run(commands: Any, name: str) -> None:
    """A command that runs a model on a text: MODEL, a folder for what is found, and settings."""
    from jax_massact.cli.settings import describe

    about, config_name, written = _RUNS[name]
    run = commands.add_parser(
        name,
        help=about,
        epilog=describe(_settings_of(config_name)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    run.add_argument("model", metavar="MODEL", help=_MODEL_HELP)
    run.add_argument(
        "--workdir", metavar="DIR", help=f"where {written} go (default: massact_out/MODEL)"
    )
    _add_config(run)
    run.set_defaults(run=_run, command=name)


def _settings_of(config: str) -> Any:
    module, _, name = config.rpartition(".")
    return getattr(importlib.import_module(f"jax_massact.studies.{module}"), name)


def _add_train(commands: Any) -> None:
    from jax_massact.cli.settings import describe
    from jax_massact.train.config import TrainConfig

    train = commands.add_parser(
        "train",
        help="train a model with a chosen attention and watch massive activations form",
        description="""Trains a model, or resumes the run that is in the folder. Before the first
update it prints where every parameter lives and how much memory the update takes.

Exit codes: 0; 75: stopped by SIGTERM or because another process died, the same command
resumes the run; 130: stopped by Ctrl-C; 2: an error that you can fix.""",
        epilog=describe(TrainConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    train.add_argument(
        "--workdir", metavar="DIR", required=True,
        help="folder for the run; resumes the run that is already there",
    )
    _add_processes(train)
    _add_config(train, required=True)
    train.set_defaults(run=_train)


def _add_processes(train: argparse.ArgumentParser) -> None:
    from jax_massact.cluster.joining import HEARTBEAT, TIMEOUT

    group = train.add_argument_group(
        "several processes",
        "The same command on every host, --process apart. Where Slurm, Open MPI, Kubernetes or a "
        "TPU pod starts them, --processes alone is enough.",
    )
    group.add_argument(
        "--coordinator", metavar="HOST:PORT",
        help="address on which process 0 listens (or MASSACT_COORDINATOR)",
    )
    group.add_argument(
        "--processes", metavar="N", help="number of processes (or MASSACT_PROCESSES)"
    )
    group.add_argument(
        "--process", metavar="I", help="number of this process, from 0 (or MASSACT_PROCESS)"
    )
    group.add_argument(
        "--timeout", type=int, default=TIMEOUT, metavar="SECONDS",
        help="seconds within which all processes have to join (%(default)s)",
    )
    group.add_argument(
        "--heartbeat", type=int, default=HEARTBEAT, metavar="SECONDS",
        help="seconds without a heartbeat after which a process is considered dead and the run "
        "stops (%(default)s)",
    )


def _add_compare(commands: Any) -> None:
    from jax_massact.cli.settings import describe
    from jax_massact.train.config import TrainConfig

    compare = commands.add_parser(
        "compare",
        help="train the variants of one configuration, or read finished runs, and compare them",
        epilog=describe(TrainConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    compare.add_argument("runs", metavar="RUN", nargs="*", help="the folder of a finished run")
    compare.add_argument(
        "--workdir", metavar="DIR", required=True,
        help="where compare.json, figures and, with --config, the runs go",
    )
    compare.add_argument(
        "--variants", metavar="NAMES", default="standard,sink,kv_bias",
        help="of attention, with --config (%(default)s)",
    )
    compare.add_argument("--seeds", type=int, default=1, metavar="N", help="runs of each (1)")
    compare.add_argument(
        "--interventions", action=argparse.BooleanOptionalAction, default=True,
        help="set each run's massive activations to zero, to their mean, and a control to zero; "
        "needs its model and its data (yes)",
    )
    _add_config(compare)
    compare.set_defaults(run=_compare)


def _add_plan(commands: Any) -> None:
    from jax_massact.accelerators import ACCELERATORS
    from jax_massact.cli.settings import describe
    from jax_massact.train.config import TrainConfig

    plan = commands.add_parser(
        "plan",
        help="memory, traffic and time of a training run on devices that are not here",
        description="""Compiles one update for as many simulated devices, and runs nothing:
memory of each device, what is sent between them, bounds of an update's time and of MFU.

The file's mesh, where it is for another number of devices, takes along data what its other
axes leave. Ends with 0; 1: it does not fit into the memory; 2: an error that you can fix.""",
        epilog=describe(TrainConfig),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    plan.add_argument("--devices", type=int, required=True, metavar="N", help="how many")
    plan.add_argument(
        "--device", required=True, metavar="NAME", help=f"which: {', '.join(ACCELERATORS)}"
    )
    plan.add_argument("--json", metavar="FILE", help="write the plan here, too")
    _add_config(plan, required=True)
    plan.set_defaults(run=_plan)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser("bench", help="measure speed and memory on this machine")
    kinds = bench.add_subparsers(title="what", required=True, metavar="WHAT")
    _add_bench_train(kinds)
    _add_bench_attention(kinds)
    _add_bench_probe(kinds)


def _add_bench_kind(kinds: Any, name: str, about: str, settings: type) -> argparse.ArgumentParser:
    from jax_massact.cli.settings import describe

    parser = kinds.add_parser(
        name,
        help=about,
        description=about,
        epilog=describe(settings),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--json", metavar="FILE", help="write the figures here, too")
    _add_config(parser)
    return parser


def _add_bench_train(kinds: Any) -> None:
    from jax_massact.train.config import TrainConfig

    train = _add_bench_kind(
        kinds, "train",
        "one training step of each variant, random tokens, each in a process of its own; the "
        "default is GPT-2 124M",
        TrainConfig,
    )
    train.add_argument(
        "--variants", metavar="NAMES", default="standard,kv_bias,sink",
        help="of attention; the others are held against the first (%(default)s)",
    )
    train.add_argument(
        "--meshes", metavar="MESH;...",
        help="time every variant on each of these meshes, such as 'data=1;data=8;fsdp=8', with "
        "batch_size sequences on each device: the rest against the first",
    )
    train.add_argument(
        "--reference", metavar="FOLDER",
        help="a checkout of https://github.com/locuslab/massive-activations: also time its GPT-2 "
        "models under torch.compile",
    )
    train.add_argument(
        "--python", metavar="PYTHON", default=sys.executable,
        help="a Python that has torch, for --reference (this one)",
    )
    train.add_argument("--steps", type=int, default=20, metavar="N", help="in a window (20)")
    train.add_argument(
        "--windows", type=int, default=4, metavar="N", help="medians are over these (4)"
    )
    train.add_argument(
        "--profile", type=int, default=0, metavar="N",
        help="list the N kernels that take most of a step, in the JSON file (0)",
    )
    train.set_defaults(run=_bench_train)


def _add_bench_attention(kinds: Any) -> None:
    from jax_massact.bench.attention import AttentionShape

    attention = _add_bench_kind(
        kinds, "attention",
        "each variant of attention in each implementation that runs here: time, and error against "
        "float64",
        AttentionShape,
    )
    attention.set_defaults(run=_bench_attention)


def _add_bench_probe(kinds: Any) -> None:
    from jax_massact.bench.device_probe import SHAPES
    from jax_massact.studies.probe.settings import ProbeConfig

    probe = _add_bench_kind(
        kinds, "probe",
        "the whole probe command, against logits only and against the authors' way; or, of random "
        "weights, the probe on the device",
        ProbeConfig,
    )
    probe.add_argument(
        "model", metavar="MODEL", help=f"{_MODEL_HELP}; or random:SHAPE ({', '.join(SHAPES)})"
    )
    probe.add_argument(
        "--reference",
        metavar="PYTHON",
        help="a Python with torch, transformers, accelerate and gguf: also time the authors' way "
        "(GGUF files only) and compare its numbers",
    )
    probe.add_argument(
        "--mesh", metavar="MESH", default="data=1",
        help="random weights: the devices that share the model, such as model=2 (one device)",
    )
    probe.add_argument("--repeat", type=int, default=3, metavar="N", help="runs of each (3)")
    probe.set_defaults(run=_bench_probe)


def _add_config(parser: argparse.ArgumentParser, required: bool = False) -> None:
    parser.add_argument(
        "--config",
        required=required,
        metavar="FILE[:ARG]",
        help="a Python file whose get_config([ARG]) returns an ml_collections.ConfigDict",
    )


def _run(args: argparse.Namespace, rest: list[str]) -> int:
    from jax_massact.cli.settings import resolve

    settings = resolve(_settings_of(_RUNS[args.command].config), args.config, rest)
    module = importlib.import_module(f"jax_massact.studies.{args.command}.command")
    getattr(module, f"run_{args.command}")(args.model, settings, args.workdir)
    return 0


def _train(args: argparse.Namespace, rest: list[str]) -> int:
    from pathlib import Path

    from jax_massact.cli.settings import resolve
    from jax_massact.cluster.joining import find_cluster
    from jax_massact.settings import check_int
    from jax_massact.train.command import train_command
    from jax_massact.train.config import TrainConfig

    cluster = find_cluster(args.coordinator, args.processes, args.process)
    check_int("--timeout", args.timeout, 1, 86_400)
    check_int("--heartbeat", args.heartbeat, 2, 86_400)
    return train_command(
        resolve(TrainConfig, args.config, rest),
        Path(args.workdir).expanduser(),
        argv=args.argv,
        cluster=cluster,
        timeout=args.timeout,
        heartbeat=args.heartbeat,
    )


def _compare(args: argparse.Namespace, rest: list[str]) -> int:
    from jax_massact.studies.compare.command import run_compare

    run_compare(
        args.runs, args.config, rest, args.workdir, variants=args.variants, seeds=args.seeds,
        interventions=args.interventions,
    )
    return 0


def _plan(args: argparse.Namespace, rest: list[str]) -> int:
    from jax_massact.cli.settings import resolve
    from jax_massact.plan.command import run_plan
    from jax_massact.train.config import TrainConfig

    return run_plan(
        resolve(TrainConfig, args.config, rest), devices=args.devices, device=args.device,
        keep_mesh=any(o.lstrip("-").startswith("config.mesh") for o in rest), json_file=args.json,
    )


def _bench_train(args: argparse.Namespace, rest: list[str]) -> int:
    from jax_massact.cli.bench import run_bench_train
    from jax_massact.cli.settings import resolve
    from jax_massact.train.config import TrainConfig

    run_bench_train(
        resolve(TrainConfig, args.config, rest), args.variants.split(","), steps=args.steps,
        windows=args.windows, meshes=args.meshes, profile=args.profile, reference=args.reference,
        python=args.python, json_file=args.json,
    )
    return 0


def _bench_attention(args: argparse.Namespace, rest: list[str]) -> int:
    from jax_massact.bench.attention import AttentionShape
    from jax_massact.cli.bench import run_bench_attention
    from jax_massact.cli.settings import resolve

    run_bench_attention(resolve(AttentionShape, args.config, rest), json_file=args.json)
    return 0


def _bench_probe(args: argparse.Namespace, rest: list[str]) -> int:
    from jax_massact.cli.bench import run_bench_probe
    from jax_massact.cli.settings import resolve
    from jax_massact.studies.probe.settings import ProbeConfig

    config = resolve(ProbeConfig, args.config, rest)
    run_bench_probe(
        args.model, config, reference=args.reference, repeat=args.repeat, mesh=args.mesh,
        json_file=args.json,
    )
    return 0
