"""`massact bench`: measurements anyone can repeat."""

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import rich.table

from jax_massact.bench.attention import AttentionShape, bench_attention
from jax_massact.bench.device_probe import PREFIX, bench_device_probe
from jax_massact.bench.probe import bench_probe
from jax_massact.bench.stream import bench_host_blocks, bench_stream, random_folder
from jax_massact.bench.train import bench_train
from jax_massact.errors import ConfigError
from jax_massact.nn.shapes import SHAPES
from jax_massact.report.console import failure, make_console
from jax_massact.report.encode import write_text
from jax_massact.report.ending import check_place, show_ending
from jax_massact.settings import check_in, check_int
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.train.config import MeshConfig, TrainConfig


def run_bench_train(
    config: TrainConfig,
    variants: Sequence[str],
    *,
    steps: int,
    windows: int,
    meshes: str | None,
    profile: int,
    reference: str | None,
    python: str,
    json_file: str | None,
) -> int:
    """`bench.train.bench_train`, its table, and its figures as JSON where asked to."""
    check_int("--steps", steps, 1)
    check_int("--windows", windows, 1)
    check_int("--profile", profile, 0)
    check_place(json_file)
    progress = make_console(stderr=True)
    found = [MeshConfig.from_text(text) for text in meshes.split(";")] if meshes else []
    if found and reference:
        raise ConfigError("--reference runs on one device; give it without --meshes")
    result = bench_train(
        config, variants, steps=steps, windows=windows, meshes=found, profile=profile,
        reference=Path(reference).expanduser() if reference else None, python=python,
        on_row=lambda name: progress.print(f"{name} ..."),
    )
    each = " on each device" if found else ""
    table = rich.table.Table(
        title=f"{config.batch_size} x {config.sequence_length} tokens{each}, "
        f"{config.model.dtype}, medians of {windows} x {steps} steps",
    )
    columns = _train_columns(variants[0], bool(found))
    for heading in columns:
        table.add_column(heading)
    for name, row in result["rows"].items():
        cells = row | result["ratios"].get(name, {}) | {"name": name}
        table.add_row(*(cell(cells) for cell in columns.values()))
    return _finish(table, result, json_file)


def _train_columns(
    first: str, several: bool
) -> dict[str, Callable[[dict[str, Any]], str]]:
    """Heading -> the text of a row; `several`: meshes."""
    ratio = lambda key: lambda row: f"{row[key]:.3f}" if key in row else ""
    ms = lambda key: lambda row: f"{1e3 * row[key]:.2f}" if key in row else ""
    name = {"": lambda row: row["name"], "ms": ms("step")}
    speed = {
        "tokens/s": lambda row: f"{row['tokens_per_second']:,.0f}",
        "peak MiB": lambda row: f"{row['peak'] / 2**20:,.0f}" if row["peak"] else "",
        f"/ {first}": ratio("against_first"),
    }
    if several:
        # The rest is in the JSON file: a terminal is not wider.
        return name | speed | {
            "efficiency": ratio("efficiency"),
            "collectives, ms": ms("collectives"),
            "exposed, ms": ms("exposed"),
        }
    window = lambda f: lambda row: f"{1e3 * f(row['windows']):.2f}"
    return name | {
        "min - max": lambda row: f"{window(min)(row)} - {window(max)(row)}",
        "compilation, s": lambda row: f"{row['compile']:.1f}",
    } | speed | {
        "/ reference": ratio("against_reference"),
        "watching": ratio("watching"),
    }


def run_bench_attention(shape: AttentionShape, *, json_file: str | None) -> int:
    """`bench.attention.bench_attention`, its table, and its figures as JSON where asked to."""
    check_place(json_file)
    result = bench_attention(shape)
    table = rich.table.Table(
        "variant", "implementation", "forward, ms", "and backward, ms", "/ standard",
        "error of the result", "largest of the gradients",
        title=f"{shape.batch} x {shape.length} tokens, {shape.num_heads} heads of "
        f"{shape.head_dim}, {shape.dtype}, {result['device']}; errors against float64",
    )
    standard = {
        r["implementation"]: r["both"] for r in result["rows"] if r["variant"] == "standard"
    }
    for row in result["rows"]:
        errors = dict(row["error"])
        out, worst = errors.pop("out"), max(errors, key=errors.__getitem__)
        table.add_row(
            row["variant"], row["implementation"], f"{1e3 * row['forward']:.3f}",
            f"{1e3 * row['both']:.3f}", f"{row['both'] / standard[row['implementation']]:.3f}",
            f"{out:.1e}", f"{errors[worst]:.1e} ({worst})",
        )
    unfit = [f"{name}: {why}" for name, why in result["unfit"].items()]
    return _finish(table, result, json_file, unfit)


def run_bench_probe(
    model: str, config: ProbeConfig, *, reference: str | None, repeat: int, mesh: str,
    json_file: str | None,
) -> int:
    """Measures, prints a table, and writes the figures as JSON where asked to."""
    check_int("--repeat", repeat, 1, 100)
    check_place(json_file)
    if model.startswith(PREFIX):
        shape, devices = model.removeprefix(PREFIX), MeshConfig.from_text(mesh)
        if reference is not None and not shape.startswith("vit"):
            raise ConfigError("--reference reads a checkpoint; of random weights there is none")
        return _run_device_probe(shape, config, repeat, devices, json_file, reference)
    if MeshConfig.from_text(mesh) != MeshConfig():
        raise ConfigError("--mesh is for random weights: the command runs on one device")
    result = bench_probe(model, config, reference=reference, repeat=repeat)
    table = rich.table.Table(
        "run", "seconds", "min - max", "peak MiB", title=f"{model}, whole processes, medians"
    )
    for name, run in result["runs"].items():
        spread = f"{min(run['walls']):.2f} - {max(run['walls']):.2f}"
        table.add_row(name, f"{run['wall']:.2f}", spread, f"{run['peak'] / 2**20:,.0f}")
    shape = f"{result['sequences']} x {result['sequence_length']} tokens"
    return _finish(table, result, json_file, [
        f"{shape}, {result['repeat']} runs of each, {result['cpus']} CPUs",
        *(f"{name}: {ratio:.3f} x" for name, ratio in result["ratios"].items()),
        *(f"largest relative difference in {name}: {difference:.1e}"
          for name, difference in result["differences"].items()),
    ])


def _run_device_probe(
    name: str, config: ProbeConfig, repeat: int, mesh: MeshConfig, json_file: str | None,
    reference: str | None,
) -> int:
    result = bench_device_probe(name, config, repeat=repeat, mesh=mesh, reference=reference)
    table = rich.table.Table(
        "", "ms", "temporary MiB",
        title=f"{name}, random weights, {result['sequences']} x {result['sequence_length']} "
        f"tokens, {result['dtype']}, {result['devices']} x {result['device']}",
    )
    for label, row in result["rows"].items():
        memory = "" if row["temporary"] is None else f"{row['temporary'] / 2**20:,.0f}"
        table.add_row(label, f"{1e3 * row['seconds']:,.2f}", memory)
    lines = [f"{label}: {ratio:.3f} x" for label, ratio in result["ratios"].items()]
    return _finish(table, result, json_file, lines)


def run_bench_stream(
    model: str, config: ProbeConfig, *, folder: str | None, filled: int, kept: int,
    loaded: bool, reference: str | None, reference_dtype: str, json_file: str | None,
) -> int:
    """`bench.stream`, its table, and its figures as JSON where asked to."""
    check_int("--filled", filled, 0)
    check_int("--kept", kept, 0)
    check_place(json_file)
    console = make_console(stderr=True)
    say = lambda line: console.print(line)
    with contextlib.ExitStack() as stack:
        path = Path(model).expanduser()
        if model.startswith(PREFIX):
            shape = model.removeprefix(PREFIX)
            check_in("random", shape, tuple(SHAPES))
            place = Path(folder).expanduser() if folder else None
            path = stack.enter_context(random_folder(SHAPES[shape], shape, place, filled, say))
        if kept:
            return _host_blocks(bench_host_blocks(path, config, kept), json_file)
        result = bench_stream(
            str(path), config, loaded=loaded, reference=reference,
            reference_dtype=reference_dtype, say=say,
        )
    table = rich.table.Table(
        "", "seconds", "of CPU time", "peak MB that no file backs",
        title=f"{result['model']}, {result['bytes'] / 1e9:.2f} GB, {result['sequences']} x "
        f"{result['sequence_length']} tokens, {result['dtype']}, {result['cpus']} CPUs",
    )
    best = result["best"]
    table.add_row("reading the file with cat", f"{best['cat']:.1f}", "", "")
    table.add_row(
        "arithmetic of the matmuls", f"{best['matmuls']:.1f}", f"{best['matmuls_cpu']:.1f}", ""
    )
    for name, run in result["runs"].items():
        table.add_row(
            name, f"{run['wall']:.1f}", f"{run['cpu']:.1f}", f"{run['anonymous'] / 1e6:,.0f}"
        )
    lines = [f"{name}: {ratio:.3f}" for name, ratio in result["ratios"].items()]
    return _finish(table, result, json_file, lines)


def _host_blocks(result: dict[str, Any], json_file: str | None) -> int:
    table = rich.table.Table(
        "", "", title=f"{result['model']}, {result['sequences']} x {result['sequence_length']} "
        f"tokens, {result['dtype']}, {result['device']}; {result['kept_blocks']} blocks on the "
        f"host, used in turn for {result['blocks']}",
    )
    table.add_row("seconds", f"{result['seconds']:.2f}")
    table.add_row("share in which the device waits for the host", f"{result['waits']:.3f}")
    table.add_row("GB of blocks a second", f"{result['bytes'] / 1e9 / result['seconds']:.2f}")
    if result["peak"] is not None:
        table.add_row("peak GB of the device", f"{result['peak'] / 1e9:.2f}")
    return _finish(table, result, json_file)


def _finish(
    table: rich.table.Table, result: dict[str, Any], json_file: str | None,
    lines: Sequence[str] = (),
) -> int:
    """Writes the figures, then prints them; the exit code."""
    failures, written = [], None
    if json_file:
        try:
            written = write_text(Path(json_file).expanduser(), json.dumps(result, indent=2) + "\n")
        except OSError as error:
            failures.append(f"cannot write {json_file}: {error.strerror}")
    console = make_console()
    # A narrow terminal takes room from the figures, not from what they are of.
    names = table.columns[0]
    names.min_width = max(map(len, map(str, names.cells)), default=0)
    console.print(table)
    for line in lines:
        console.print(line)
    if said := failure(console):
        failures.append(f"the figures could not be printed: {said}")
    errors = make_console(stderr=True)
    if written:
        show_ending(errors, written)
    for line in failures:
        errors.print(f"massact: {line}")
    return 2 if failures else 0
