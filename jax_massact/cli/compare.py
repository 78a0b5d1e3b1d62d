"""`massact compare`: trains variants one after another, or reads finished runs, and compares."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from jax_massact.cli.settings import find_file, load_file, resolve
from jax_massact.errors import ConfigError
from jax_massact.report.console import make_console
from jax_massact.settings import check_int
from jax_massact.studies.compare.run import compare_runs
from jax_massact.studies.output import Outcome, finish, made
from jax_massact.train.command import code_of, run_train
from jax_massact.train.config import TrainConfig

VARIANTS = "standard,sink,kv_bias"


def run_compare(
    runs: Sequence[str],
    config: str | None,
    overrides: Sequence[str],
    workdir: str,
    *,
    variants: str = VARIANTS,
    seeds: int = 1,
    interventions: bool = True,
) -> int:
    """Compares finished runs, or those of `config`, which are trained as far as they are not yet.

    Writes `compare.json` and `figures/` into `workdir`, prints the table.

    Args:
      runs: folders of finished runs; with `config`: none.
      config: a configuration file that takes a variant, `FILE:VARIANT`.
      overrides: `--config.KEY=VALUE`, for every variant.
      workdir: the runs of `config` are in its `VARIANT` or `VARIANT/seed-N`.
      variants: names, commas between.
      seeds: how many runs of each variant, from the configuration's seed upwards.
      interventions: whether to set each run's massive activations to zero and to their mean, and to
        round its weights and activations.

    Returns:
      The process's exit code; that of `train` where training was stopped before its end.

    Raises:
      UserError: a setting, a run or the folder cannot be used.
    """
    console = make_console(stderr=True)
    folder = Path(workdir).expanduser()
    if config is None:
        if overrides:
            raise ConfigError(f"{overrides[0]} needs --config=FILE")
        folders = [Path(run).expanduser() for run in runs]
    else:
        if runs:
            raise ConfigError(f"{runs[0]} is a run; expected together with --config: none")
        planned = plan(config, overrides, folder, variants=variants, seeds=seeds)
        for place, settings in planned:
            trained = run_train(settings, place, console)
            if trained.summary is None:
                return code_of(trained)
        folders = [place for place, _ in planned]
    # What is wrong with a run is said before anything is written or intervened on.
    result = compare_runs(folders, interventions=False)
    with made(folder):
        if interventions:
            result = compare_runs(folders, report=console.print)
        return finish("compare", Outcome(result), folder, console)


def plan(
    config: str, overrides: Sequence[str], folder: Path, *, variants: str, seeds: int
) -> list[tuple[Path, TrainConfig]]:
    """Every run's folder and settings, in the order in which they are trained.

    Raises:
      ConfigError: the file already names a variant, or a setting is wrong: before any training.
    """
    check_int("--seeds", seeds, 1, 1000)
    if find_file(config)[1]:
        raise ConfigError(f"--config is {config}; expected: FILE alone, and --variants={VARIANTS}")
    names = [name for name in variants.split(",") if name]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--variants is {variants!r}; expected: different names, commas between")
    runs = []
    for name in names:
        load_file(f"{config}:{name}")
        first = resolve(TrainConfig, f"{config}:{name}", overrides)
        for seed in range(first.seed, first.seed + seeds):
            place = folder / name if seeds == 1 else folder / name / f"seed-{seed}"
            runs.append((place, dataclasses.replace(first, seed=seed)))
    return runs
