"""`massact bench`: measurements anyone can repeat."""

import json
from pathlib import Path
from typing import Any

import rich.console
import rich.table

from jax_massact.bench.probe import bench_probe
from jax_massact.config import ProbeConfig, check_int
from jax_massact.errors import UserError


def run_bench_probe(
    model: str, config: ProbeConfig, *, reference: str | None, repeat: int, json_file: str | None
) -> dict[str, Any]:
    """Measures, prints a table, and writes the figures as JSON where asked to."""
    check_int("--repeat", repeat, 1, 100)
    result = bench_probe(model, config, reference=reference, repeat=repeat)
    console = rich.console.Console()
    table = rich.table.Table(
        "run", "seconds", "min - max", "peak MiB", title=f"{model}, whole processes, medians"
    )
    for name, run in result["runs"].items():
        spread = f"{min(run['walls']):.2f} - {max(run['walls']):.2f}"
        table.add_row(name, f"{run['wall']:.2f}", spread, f"{run['peak'] / 2**20:,.0f}")
    console.print(table)
    shape = f"{result['sequences']} x {result['sequence_length']} tokens"
    console.print(f"{shape}, {result['repeat']} runs of each, {result['cpus']} CPUs")
    for name, ratio in result["ratios"].items():
        console.print(f"{name}: {ratio:.3f} x", highlight=False)
    for name, difference in result["differences"].items():
        console.print(f"largest relative difference in {name}: {difference:.1e}", highlight=False)
    if json_file:
        try:
            Path(json_file).write_text(json.dumps(result, indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write {json_file}: {error.strerror}") from None
    return result
