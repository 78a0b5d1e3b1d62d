"""Finished runs side by side: from their folders to one plain result."""

import dataclasses
import math
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from jax_massact.errors import UserError
from jax_massact.loading import RUN_MODEL
from jax_massact.results import DefinitionInfo, Remarks
from jax_massact.studies.changes import CHANGES
from jax_massact.studies.compare.difference import Difference, paired
from jax_massact.studies.compare.kept import measured
from jax_massact.studies.compare.rounding import FLOAT, KINDS
from jax_massact.studies.frame import definition_info
from jax_massact.studies.held_out import run_config, run_file
from jax_massact.studies.interventions_result import InterveneResult
from jax_massact.train.config import TrainConfig, to_json
from jax_massact.train.loop import SUMMARY
from jax_massact.train.metrics import (
    FILE,
    extreme,
    of_kind,
    read_rows,
)

SCHEMA_VERSION = 4
# Measured per layer; the last are 0 for variants that have no such thing.
PER_LAYER = ("top1", "ratio", "kurtosis", "sink_rate", "value_drain", "strict", "relaxed",
             "sink_token_rate", "extra_rate")
TRAINING = ("loss", "lr", "grad_norm")  # of an update, over training
MOST_ROWS = 300  # of those that are kept


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
      training: `step` and each of TRAINING, at about MOST_ROWS evenly spaced steps.
      validated_on: what the validation rows depend on: data, tokenizer, and the shape of batches.
      seconds, tokens_per_second, device: how fast, and on what.
      versions: of the packages that trained it.
      interventions: of `studies.compare.interventions`, or null where none were asked for.
      rounded: of `studies.compare.rounding`, the loss of the same rows, likewise.
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
    curves: dict[str, list[float | None]]
    losses: dict[str, list[float]]
    training: dict[str, list[float | None]]
    validated_on: dict[str, str]
    seconds: float
    tokens_per_second: float
    device: str
    versions: dict[str, str]
    interventions: InterveneResult | None
    rounded: dict[str, float] | None


class Group(TypedDict):
    """The runs of one variant, which differ in their seeds.

    Attributes:
      name: the attention variant, or, for runs that differ otherwise too, the folder's name.
      mean: over the runs, of `validation_loss` and of the last value of each curve.
      std: the same, standard deviation; null for one run.
      difference: validation loss minus that of the first group; null where the runs were not
        validated on the same rows (see `Comparison.notices`), and for the first group.
      loss_change: of each of CHANGES, loss minus that of the same text unchanged, in nats,
        for each run; null where nothing was massive in that text, and so nothing changed.
      rounding_change: of each of `studies.compare.rounding.KINDS`, the same; null where it was not
        asked for.
    """

    name: str
    runs: list[RunRecord]
    mean: dict[str, float | None]
    std: dict[str, float | None]
    difference: Difference | None
    loss_change: dict[str, list[float | None]]
    rounding_change: dict[str, list[float | None]]


class Comparison(Remarks):
    """`compare.json`.

    Attributes:
      sink_epsilon, sink_tokens: what the sink rate means here.
      definition: what strict and relaxed mean here.
    """

    schema: int
    sink_epsilon: float
    sink_tokens: int
    definition: DefinitionInfo
    groups: list[Group]


def compare_runs(
    folders: Sequence[Path],
    *,
    interventions: bool = True,
    report: Callable[[str], None] = lambda line: None,
) -> Comparison:
    """Reads finished runs and puts together those that differ in nothing but the seed.

    Args:
      folders: of `train`; groups come in the order of their first run.
      interventions: whether to make them, and to round, for which every run's model and data are
        needed, or what an earlier comparison has kept in its folder.
      report: called with a line of text before each.

    Raises:
      UserError: a folder is given twice, holds no finished run, one that was not watched, or runs
        that were watched by different definitions; or a run cannot be intervened on.
    """
    if not folders:
        raise UserError("nothing to compare; expected: folders of finished runs, or --config")
    _check_different(folders)
    configs = [run_config(folder) for folder in folders]
    records = [_record(folder, config) for folder, config in zip(folders, configs, strict=True)]
    _check_watched_alike(folders, configs)
    if interventions and any(config.model.embed.patches is not None for config in configs):
        raise UserError("runs of image encoders; expected with them: --no-interventions")
    gone = []
    if interventions:
        for record, folder, config in zip(records, folders, configs, strict=True):
            found = measured(folder, config, report)
            if found is None:
                gone.append(f"{folder} has no {RUN_MODEL}: nothing is changed in it")
            else:
                record["interventions"] = found["interventions"]
                record["rounded"] = found["rounded"]
    runs: dict[str, list[RunRecord]] = {}
    for name, record in zip(_names(folders, configs), records, strict=True):
        runs.setdefault(name, []).append(record)
    first = next(iter(runs.values()))
    warnings = [
        f"not finite is the validation loss of {record['folder']}: there is no verdict"
        for record in records if not _is_finite(record["validation_losses"])
    ]
    for record in records:
        if (found := record["interventions"]) is not None:
            warnings += [f"{record['folder']}: {line}" for line in found["warnings"]]
    watch = configs[0].watch
    return Comparison(
        schema=SCHEMA_VERSION,
        warnings=warnings,
        notices=[*_other_rows(runs), *_one_seed(runs), *gone],
        sink_epsilon=watch.sink_epsilon,
        sink_tokens=watch.sink_tokens,
        definition=definition_info(watch.definition),
        groups=[_group(name, those, first) for name, those in runs.items()],
    )


def _check_different(folders: Sequence[Path]) -> None:
    seen: dict[Path, Path] = {}
    for folder in folders:
        former = seen.get(place := folder.resolve())
        if former is not None:
            same = "is given twice" if former == folder else f"is the folder {former}"
            raise UserError(f"{folder} {same}; expected: a folder for each run")
        seen[place] = folder


def _other_rows(runs: Mapping[str, list[RunRecord]]) -> Iterator[str]:
    """Says which runs were not validated on the rows of the first, and what differs."""
    first, *others = [run for group in runs.values() for run in group]
    for run in others:
        then, now = first["validated_on"], run["validated_on"]
        differ = [name for name in then if then[name] != now[name]]
        if differ:
            yield (
                f"{run['folder']} was not validated on the rows of {first['folder']} (another "
                f"{' and another '.join(differ)}): their losses do not compare"
            )


def _one_seed(runs: Mapping[str, list[RunRecord]]) -> Iterator[str]:
    """Says which runs of a group have one seed: what they differ in is no spread over seeds."""
    for name, group in runs.items():
        seeds = [run["seed"] for run in group]
        if len(set(seeds)) < len(seeds):
            yield f"{name}: several runs have one seed ({', '.join(map(str, seeds))})"


def _is_finite(losses: Sequence[float]) -> bool:
    return all(map(math.isfinite, losses))


def _number(loss: float | None) -> float:
    """JSON has no NaN."""
    return math.nan if loss is None else loss


def _check_watched_alike(folders: Sequence[Path], configs: Sequence[TrainConfig]) -> None:
    for folder, config in zip(folders, configs, strict=True):
        for key in ("sink_epsilon", "sink_tokens", "definition"):
            if getattr(config.watch, key) != getattr(configs[0].watch, key):
                raise UserError(
                    f"{folder} was watched with another watch.{key} than {folders[0]}; such "
                    "numbers do not compare"
                )


def _names(folders: Sequence[Path], configs: Sequence[TrainConfig]) -> list[str]:
    """The variants' names, if no two groups would share one; else those of the folders.

    Of a group whose runs lie in one folder, `muon/seed-0` and `muon/seed-1`, that folder's.
    """
    same = {"seed": 0, "tensorboard": False}
    without_seed = [to_json(dataclasses.replace(config, **same)) for config in configs]
    variants = [config.model.block.attention.variant for config in configs]
    if len(set(without_seed)) == len(set(variants)):
        return list(variants)
    groups: dict[str, list[Path]] = {}
    for folder, key in zip(folders, without_seed, strict=True):
        groups.setdefault(key, []).append(folder)
    # A link is called as it is, not as what it leads to.
    above = {
        key: {Path(os.path.abspath(folder)).parent for folder in group}
        for key, group in groups.items()
    }
    own = {parent.name for parents in above.values() for parent in parents}
    if len(own) == len(groups) == sum(map(len, above.values())):
        return [next(iter(above[key])).name for key in without_seed]
    return [str(groups[key][0]) for key in without_seed]


def _record(folder: Path, config: TrainConfig) -> RunRecord:
    summary = run_file(folder, SUMMARY)
    rows = read_rows(folder / FILE)
    watched, validated = of_kind(rows, "watch"), of_kind(rows, "validation")
    if not watched:
        raise UserError(f"{folder} was not watched; expected: a run with watch.every above 0")
    validation = summary["validation"]
    return RunRecord(
        folder=str(folder),
        seed=config.seed,
        parameters=summary["parameters"],
        steps=summary["steps"],
        tokens=summary["tokens"],
        validation_loss=_number(validation["loss"]),
        validation_std=validation["std"],
        validation_losses=[_number(loss) for loss in validation["losses"]],
        layers={name: watched[-1][name] for name in PER_LAYER},
        emergence=summary["emergence"],
        curves={"step": [row["step"] for row in watched]}
        | {name: [extreme(name, row[name]) for row in watched] for name in PER_LAYER},
        losses={key: [row[key] for row in validated] for key in ("step", "loss")},
        training=_thinned(of_kind(rows, "train")),
        validated_on=_validated_on(config, summary),
        seconds=summary["seconds"],
        tokens_per_second=summary["tokens_per_second"],
        device=summary.get("device", "unknown"),  # runs of earlier versions have neither
        versions=summary.get("versions", {}),
        interventions=None,
        rounded=None,
    )


def _validated_on(config: TrainConfig, summary: Mapping[str, Any]) -> dict[str, str]:
    data, digests = config.data, summary.get("digests", {})  # runs of earlier versions have none
    text = f"{data.source} {data.text_field} {data.same_first_token}"
    return {
        "text": digests.get("validation data", text),
        "tokenizer": digests.get("tokenizer", data.tokenizer),
        "shape of the batches": f"{config.validation_batches} x {config.batch_size} x "
        f"{config.sequence_length}",
        "choice of positions": f"from {config.loss_from} on",
    }


def _group(name: str, runs: list[RunRecord], first: list[RunRecord]) -> Group:
    mean, std = _over_runs(runs)
    return Group(
        name=name,
        runs=runs,
        mean=mean,
        std=std,
        difference=None if runs is first else _difference(first, runs),
        loss_change={kind: [_loss_change(run, kind) for run in runs] for kind in CHANGES},
        rounding_change={kind: [_rounding_change(run, kind) for run in runs] for kind in KINDS},
    )


def _loss_change(run: RunRecord, kind: str) -> float | None:
    found = run["interventions"]
    if found is None or not any(target["activations"] for target in found["targets"]):
        return None
    return found["loss"][kind]["mean"] - found["loss"]["original"]["mean"]


def _rounding_change(run: RunRecord, kind: str) -> float | None:
    found = run["rounded"]
    return None if found is None else found[kind] - found[FLOAT]


def _over_runs(
    runs: list[RunRecord]
) -> tuple[dict[str, float | None], dict[str, float | None]]:
    """Mean and standard deviation; null where a run has no number."""
    columns: dict[str, list[float | None]] = {name: [run["curves"][name][-1] for run in runs]
                                              for name in PER_LAYER}
    columns["validation_loss"] = [
        run["validation_loss"] if _is_finite([run["validation_loss"]]) else None for run in runs
    ]
    mean: dict[str, float | None] = dict.fromkeys(columns)
    std: dict[str, float | None] = dict.fromkeys(columns)
    for name, values in columns.items():
        known = [value for value in values if value is not None]
        if len(known) == len(runs):
            mean[name] = statistics.fmean(known)
            std[name] = statistics.stdev(known) if len(known) > 1 else None
    return mean, std


def _difference(first: list[RunRecord], runs: list[RunRecord]) -> Difference | None:
    """Validation batches do not depend on the seed, so that losses compare one by one."""
    both = [*first, *runs]
    same = all(run["validated_on"] == first[0]["validated_on"] for run in both)
    if not same or not all(_is_finite(run["validation_losses"]) for run in both):
        return None
    return paired(_by_seed(first), _by_seed(runs))


def _by_seed(runs: list[RunRecord]) -> dict[int, list[list[float]]]:
    found: dict[int, list[list[float]]] = {}
    for run in runs:
        found.setdefault(run["seed"], []).append(run["validation_losses"])
    return found


def _thinned(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[float | None]]:
    kept = rows[:: max(1, len(rows) // MOST_ROWS)]
    return {key: [row.get(key) for row in kept] for key in ("step", *TRAINING)}
