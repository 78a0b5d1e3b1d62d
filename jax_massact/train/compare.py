"""Finished runs side by side: from their folders to one plain result."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from jax_massact.errors import UserError
from jax_massact.train.loop import CONFIG, SUMMARY
from jax_massact.train.metrics import FILE, of_kind, read_rows

SCHEMA_VERSION = 1
# Measured per layer; the last are 0 for variants that have no such thing.
PER_LAYER = ("top1", "ratio", "kurtosis", "sink_rate", "value_drain", "strict", "relaxed",
             "sink_token_rate", "extra_rate")


class RunRecord(TypedDict):
    """One finished run.

    Attributes:
      folder: where it is.
      seed: of its weights and its data.
      parameters, steps, tokens: how large and how long.
      validation_loss, validation_std: over the evaluation batches, in nats.
      validation_losses: of each.
      layers: each of PER_LAYER at the last step, by layer.
      emergence: the step at which each quantity first crossed its threshold, or null.
      curves: `step`, and each of PER_LAYER over them, the largest of all layers (of `value_drain`
        the smallest).
      losses: `step` and `loss` of every validation.
      seconds, tokens_per_second: how fast.
    """

    folder: str
    seed: int
    parameters: int
    steps: int
    tokens: int
    validation_loss: float
    validation_std: float | None
    validation_losses: list[float]
    layers: dict[str, list[float | None]]
    emergence: dict[str, int | None]
    curves: dict[str, list[Any]]
    losses: dict[str, list[Any]]
    seconds: float
    tokens_per_second: float


class Group(TypedDict):
    """The runs of one variant, which differ in their seeds.

    Attributes:
      name: the attention variant, or, for runs that differ otherwise too, the folder's name.
      mean: over the runs, of `validation_loss` and of the last value of each curve.
      std: the same, standard deviation; null for one run.
      difference: validation loss minus that of the first group, batch by batch, means over runs:
        (its mean, its standard error over batches, null for one batch). Null where the runs were
        not validated on the same number of batches, and for the first group.
    """

    name: str
    runs: list[RunRecord]
    mean: dict[str, float | None]
    std: dict[str, float | None]
    difference: tuple[float, float | None] | None


class Comparison(TypedDict):
    """`compare.json`.

    Attributes:
      sink_epsilon, sink_tokens: what the sink rate means here.
      definition: what strict and relaxed mean here.
    """

    schema: int
    sink_epsilon: float
    sink_tokens: int
    definition: dict[str, Any]
    groups: list[Group]


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Reads finished runs and puts together those that differ in nothing but the seed.

    Args:
      folders: of `train`; groups come in the order of their first run.

    Raises:
      UserError: a folder holds no finished run, one that was not watched, or runs that were
        watched by different definitions.
    """
    if not folders:
        raise UserError("nothing to compare; expected: folders of finished runs, or --config")
    configs = [_read(folder / CONFIG, folder) for folder in folders]
    groups: dict[str, Group] = {}
    for name, folder, config in zip(_names(folders, configs), folders, configs, strict=True):
        group = groups.setdefault(name, Group(name=name, runs=[], mean={}, std={}, difference=None))
        group["runs"].append(_record(folder, config))
    first, *others = groups.values()
    for group in groups.values():
        group["mean"], group["std"] = _over_runs(group["runs"])
    for group in others:
        group["difference"] = _difference(first["runs"], group["runs"])
    watched = configs[0]["watch"]
    for folder, config in zip(folders, configs, strict=True):
        for key in ("sink_epsilon", "sink_tokens", "definition"):
            if config["watch"][key] != watched[key]:
                raise UserError(
                    f"{folder} was watched with another watch.{key} than {folders[0]}; such "
                    "numbers do not compare"
                )
    return Comparison(
        schema=SCHEMA_VERSION,
        sink_epsilon=watched["sink_epsilon"],
        sink_tokens=watched["sink_tokens"],
        definition=watched["definition"],
        groups=list(groups.values()),
    )


def _names(folders: Sequence[Path], configs: Sequence[dict[str, Any]]) -> list[str]:
    """The variants' names, if no two groups would share one; else the folders'."""
    without_seed = [json.dumps({**config, "seed": None}, sort_keys=True) for config in configs]
    variants = [config["model"]["attention"] for config in configs]
    if len(set(without_seed)) == len(set(variants)):
        return variants
    first = {key: folder for folder, key in reversed(list(zip(folders, without_seed, strict=True)))}
    return [str(first[key]) for key in without_seed]


def _record(folder: Path, config: dict[str, Any]) -> RunRecord:
    summary = _read(folder / SUMMARY, folder)
    rows = read_rows(folder / FILE)
    watched, validated = of_kind(rows, "watch"), of_kind(rows, "validation")
    if not watched:
        raise UserError(f"{folder} was not watched; expected: a run with watch.every above 0")
    validation = summary["validation"]
    return RunRecord(
        folder=str(folder),
        seed=config["seed"],
        parameters=summary["parameters"],
        steps=summary["steps"],
        tokens=summary["tokens"],
        validation_loss=validation["loss"],
        validation_std=validation["std"],
        validation_losses=validation["losses"],
        layers={name: watched[-1][name] for name in PER_LAYER},
        emergence=summary["emergence"],
        curves={"step": [row["step"] for row in watched]}
        | {name: [_extreme(name, row[name]) for row in watched] for name in PER_LAYER},
        losses={key: [row[key] for row in validated] for key in ("step", "loss")},
        seconds=summary["seconds"],
        tokens_per_second=summary["tokens_per_second"],
    )


def _extreme(name: str, values: Sequence[float | None]) -> float | None:
    """Of the layers the one in which most happens."""
    finite = [value for value in values if value is not None]
    if not finite:
        return None
    return min(finite) if name == "value_drain" else max(finite)


def _over_runs(runs: list[RunRecord]) -> tuple[dict[str, Any], dict[str, Any]]:
    last = lambda name: [run["curves"][name][-1] for run in runs]
    columns = {"validation_loss": [run["validation_loss"] for run in runs]}
    columns |= {name: last(name) for name in PER_LAYER}
    whole = {name: None not in values for name, values in columns.items()}
    mean = {n: statistics.fmean(v) if whole[n] else None for n, v in columns.items()}
    several = len(runs) > 1
    std = {n: statistics.stdev(v) if several and whole[n] else None for n, v in columns.items()}
    return mean, std


def _difference(first: list[RunRecord], runs: list[RunRecord]) -> tuple[float, float | None] | None:
    """Validation batches do not depend on the seed, so that losses compare one by one."""
    if len({len(run["validation_losses"]) for run in (*first, *runs)}) > 1:
        return None
    of = lambda runs: zip(*(run["validation_losses"] for run in runs), strict=True)
    means = zip(map(statistics.fmean, of(first)), map(statistics.fmean, of(runs)), strict=True)
    by_batch = [b - a for a, b in means]
    error = statistics.stdev(by_batch) / len(by_batch) ** 0.5 if len(by_batch) > 1 else None
    return statistics.fmean(by_batch), error


def _read(path: Path, folder: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(
            f"{folder} has no {path.name}; expected: the --workdir of a finished massact train"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
