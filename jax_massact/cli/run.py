"""What each command does with its arguments: settings, then one call."""

import argparse
import functools
from pathlib import Path
from typing import Any

from jax_massact.cli.settings import resolve
from jax_massact.cli.table import COMMANDS, load
from jax_massact.errors import ConfigError
from jax_massact.settings import check_int


def _settings(args: argparse.Namespace, overrides: list[str]) -> Any:
    return resolve(load(COMMANDS[args.command].settings), args.config, overrides)


def study(args: argparse.Namespace, overrides: list[str]) -> int:
    """Every study of a model on a text."""
    from jax_massact.cli.following import following
    from jax_massact.studies.frame import run_study

    return run_study(
        args.command, args.model, _settings(args, overrides), args.workdir, args.step,
        functools.partial(following, args.command),
    )


def probe(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact probe`, or its plan."""
    if args.plan is None:
        if args.mesh is not None:
            raise ConfigError("--mesh is for --plan: the command runs on one device")
        if args.json is not None:
            raise ConfigError("--json is for --plan: the command writes probe.json into --workdir")
        return study(args, overrides)
    from jax_massact.cli.probe_plan import run_probe_plan

    return run_probe_plan(
        args.model, _settings(args, overrides), args.step, device=args.plan, mesh=args.mesh,
        json_file=args.json,
    )


def train(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact train`."""
    from jax_massact.cluster.processes import find_cluster
    from jax_massact.cluster.supervise import find_parent, supervise

    cluster = find_cluster(args.coordinator, args.processes, args.process)
    check_int("--timeout", args.timeout, 1, 86_400)
    check_int("--heartbeat", args.heartbeat, 2, 86_400)
    parent = None if cluster is None else find_parent()
    if cluster is not None and parent is None:
        # The child reads the settings; what that imports, the parent need not.
        return supervise(args.argv, cluster, args.timeout, args.heartbeat)
    from jax_massact.train.command import train_command

    return train_command(
        _settings(args, overrides),
        Path(args.workdir).expanduser(),
        cluster=cluster,
        parent=parent,
        timeout=args.timeout,
        heartbeat=args.heartbeat,
    )


def compare(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact compare`."""
    from jax_massact.cli.compare import run_compare

    return run_compare(
        args.runs, args.config, overrides, args.workdir, variants=args.variants, seeds=args.seeds,
        interventions=args.interventions,
    )


def plan(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact plan`."""
    from jax_massact.plan.command import run_plan

    return run_plan(
        _settings(args, overrides), devices=args.devices, device=args.device,
        keep_mesh=any(o.lstrip("-").startswith("config.mesh") for o in overrides),
        json_file=args.json,
    )


def bench_train(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact bench train`."""
    from jax_massact.cli.bench import run_bench_train

    return run_bench_train(
        _settings(args, overrides), args.variants.split(","), steps=args.steps,
        windows=args.windows, meshes=args.meshes, profile=args.profile, reference=args.reference,
        python=args.python, json_file=args.json,
    )


def bench_attention(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact bench attention`."""
    from jax_massact.cli.bench import run_bench_attention

    return run_bench_attention(_settings(args, overrides), json_file=args.json)


def bench_probe(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact bench probe`."""
    from jax_massact.cli.bench import run_bench_probe

    return run_bench_probe(
        args.model, _settings(args, overrides), reference=args.reference, repeat=args.repeat,
        mesh=args.mesh, json_file=args.json,
    )


def bench_stream(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact bench stream`."""
    from jax_massact.cli.bench import run_bench_stream

    return run_bench_stream(
        args.model, _settings(args, overrides), folder=args.folder, filled=args.filled,
        kept=args.kept, loaded=args.loaded, reference=args.reference,
        reference_dtype=args.reference_dtype, json_file=args.json,
    )


def listing(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact list`."""
    from jax_massact.cli.listing import show

    del overrides
    show(args.what)
    return 0


def completion(args: argparse.Namespace, overrides: list[str]) -> int:
    """`massact completion`: a script that completes every option and setting."""
    import shtab

    from jax_massact.cli import make_parser
    from jax_massact.report.console import make_console

    del overrides
    make_console().print(shtab.complete(make_parser(None), args.shell), soft_wrap=True)
    return 0
