"""Interventions on a checkpoint: what the perplexity is when massive activations are changed."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool

from jax_massact.errors import DataError
from jax_massact.measure.definition import Definition
from jax_massact.results import SCHEMA_VERSION, MassiveRecord
from jax_massact.studies.changed import ZERO, Meeting, passes
from jax_massact.studies.changes import change_of, with_fractions
from jax_massact.studies.collector import Collector, Probed, kept, probe_reading
from jax_massact.studies.frame import (
    Prepared,
    Progress,
    Stopwatch,
    definition_info,
    model_info,
    silent,
    versions,
)
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.interventions_result import (
    InterveneData,
    InterveneResult,
    KindMean,
    Rebuilt,
    Spread,
    Target,
    Trajectory,
    Verdict,
)
from jax_massact.studies.passes import Runner, ready
from jax_massact.studies.records import massive_records, remarks
from jax_massact.studies.settings import InterveneConfig, RunConfig
from jax_massact.studies.targets import (
    Means,
    Samples,
    TargetPlace,
    choose_control_dims,
    choose_targets,
    estimate_means,
)

# A perplexity that rises by more than this share says that the model needs what was set to zero.
NEEDED = 0.01


class _Runs:
    """Losses per sequence of every intervention, and what is measured beside them."""

    def __init__(self) -> None:
        self.losses: dict[str, list[np.ndarray]] = {}
        self.places = 0
        self.sums: dict[str, Any] = {}

    def add(self, name: str, losses: np.ndarray) -> None:
        self.losses.setdefault(name, []).extend(losses.astype(np.float64))

    def add_columns(
        self, name: str, columns: np.ndarray, tokens: Bool[np.ndarray, "W B T"]
    ) -> None:
        """Sums the watched dimensions over the places that are changed."""
        total = np.einsum("lbtw,wbt->lw", np.float64(columns), tokens)
        self.sums[name] = self.sums.get(name, 0) + total


def intervene_checkpoint(
    prepared: Prepared,
    config: InterveneConfig,
    *,
    progress: Progress = silent,
) -> InterveneResult:
    """Finds massive activations on the calibration text and changes them on the held-out text.

    Args:
      prepared: with the sequences of both, the calibration text first.
      progress: counts calibration sequences, too.

    Raises:
      WeightsError: a weight cannot be read.
      ConfigError: `config.layers` names a layer that the model lacks or that holds nothing massive.
      DataError: the text gives fewer than two sequences.
    """
    watch = Stopwatch()
    calibration, held_out = split(prepared, config, config.calibration_sequences)
    batch = min(config.batch_size, len(calibration))
    total, window = len(calibration) + len(held_out), calibration.tokens.shape[1]
    reading = probe_reading(top_k=1, definition=config.definition)
    runner = ready(prepared, config, reading, next(kept(calibration, batch)), progress)
    seconds = {"load_and_compile": watch.lap()}
    samples = Samples()
    collector = Collector(config.definition, calibration)
    for result in runner.run(reading, kept(calibration, batch)):
        start = collector.sequences
        for sequence, hits in enumerate(collector.add(result), start=start):
            samples.add(hits, functools.partial(calibration.kind_at, sequence))
        progress(collector.sequences, total)
    calibrated = collector.probed()
    massive = massive_records(calibrated)
    targets = choose_targets(massive, config.layers, runner.model.config.depth)
    means = estimate_means(samples, targets)
    seconds["calibrate"] = watch.lap()
    measured = _measure(
        runner, held_out, targets, means, calibrated, config,
        lambda n: progress(len(calibration) + n, total),
    )
    seconds["intervene"] = watch.lap()
    loss = {
        name: Spread(mean=float(np.mean(x)), std=float(np.std(np.mean(x, axis=1))))
        for name, x in measured.losses.items()
    }
    said = remarks(
        calibrated.layers,
        {f"loss of the text, {change_of(name).short}": x["mean"] for name, x in loss.items()},
    )
    is_sound = bool(targets) and not said["warnings"]
    return InterveneResult(
        schema=SCHEMA_VERSION,
        **said,
        model=model_info(prepared, config.dtype, runner.model),
        data=InterveneData(
            source=prepared.text.description,
            calibration_sequences=len(calibration),
            sequences=len(held_out),
            window=window,
            stride=window - prepared.bos,
            scored_tokens=held_out.scored_tokens,
            bos=prepared.bos,
            bos_setting=config.bos,
            bos_token=prepared.tokenizer.bos_token,
        ),
        definition=definition_info(config.definition),
        massive=massive,
        targets=[
            _target_record(target, mean, measured, e)
            for e, (target, mean) in enumerate(zip(targets, means, strict=True))
        ],
        perplexity={name: _exp(spread["mean"]) for name, spread in loss.items()},
        loss=loss,
        after_zero=_rebuilt(targets, measured, loss, config.definition) if is_sound else None,
        config=dataclasses.asdict(config),
        seconds=seconds,
        versions=versions(),
    )


def split(
    prepared: Prepared, config: RunConfig, calibration_sequences: int
) -> tuple[Inputs, Inputs]:
    """Calibration and held-out sequences; in proportion, where the text holds too few for both.

    Raises:
      DataError: there are fewer than two, or they are so short that no prediction is scored.
    """
    inputs = prepared.inputs
    inputs.check_scored()
    wanted = calibration_sequences, config.total - calibration_sequences
    if len(inputs) < 2:
        raise DataError(
            f"{prepared.text.description} fills {len(inputs)} sequence of "
            f"{inputs.tokens.shape[1]} tokens (sequence_length is {config.sequence_length}); "
            "expected: one for calibration and one held out. Give more text or ask for a smaller "
            "sequence_length"
        )
    first = wanted[0]
    if len(inputs) < sum(wanted):
        first = min(max(1, round(len(inputs) * wanted[0] / sum(wanted))), len(inputs) - 1)
    return inputs[:first], inputs[first : first + wanted[1]]


class _Measured(NamedTuple):
    losses: dict[str, np.ndarray]  # [S, T-1]
    activations: np.ndarray  # [E]
    control_dims: np.ndarray  # [E]
    control_activations: np.ndarray  # [E]
    dims: list[int]  # of the targets
    original: np.ndarray  # [L, dims], means over the changed places
    zero: np.ndarray
    after: Probed | None  # of the zeroed run


def _measure(
    runner: Runner,
    held_out: Inputs,
    targets: Sequence[TargetPlace],
    means: Sequence[Means],
    calibrated: Probed,
    config: InterveneConfig,
    progress: Callable[[int], None],
) -> _Measured:
    """Every intervention on every held-out sequence."""
    E = len(targets)
    dims = sorted({t.dim for t in targets})
    taken = np.nonzero(calibrated.massive.relaxed | calibrated.tally.outlier.count.any(0))[0]
    control_dims = choose_control_dims(E, runner.model.config.width, taken, config.seed)
    watched = np.array([*dims, *control_dims], np.int32)
    size = min(config.batch_size, len(held_out))
    changes = with_fractions(config.fractions) if E else {}
    meeting = Meeting(targets, means, watched, held_out, size, config.seed, config.definition)
    runs = _Runs()
    before, after = (Collector(config.definition, held_out) for _ in range(2))
    activations, controls = np.zeros(E, int), np.zeros(E, int)
    in_dim = np.array([[t.dim == d for t in targets] for d in dims], bool).reshape(len(dims), E)
    for rows, plain, met, changed in passes(runner, held_out, meeting, changes, size):
        n = rows.stop - rows.start
        runs.add("original", held_out.scored(np.asarray(plain.losses[:n])))
        before.add(plain.batch)
        if E:
            activations += met.tokens[:, :n].sum((1, 2))
            controls += met.control[:, :n].sum((1, 2))
            places = np.einsum("we,ebt->wbt", in_dim, met.tokens)
            runs.places = runs.places + places.sum((1, 2))
            runs.add_columns("original", np.asarray(plain.columns[..., : len(dims)]), places)
            for name, losses, whole in changed:
                runs.add(name, held_out.scored(losses[:n]))
                if name == ZERO and whole is not None:
                    after.add(whole.batch)
                    runs.add_columns(ZERO, np.asarray(whole.columns[..., : len(dims)]), places)
        progress(before.sequences)
    mean_of = lambda name: runs.sums.get(name, np.zeros(0)) / np.maximum(runs.places, 1)
    return _Measured(
        losses={name: np.stack(x) for name, x in runs.losses.items()},
        activations=activations,
        control_dims=control_dims,
        control_activations=controls,
        dims=dims,
        original=mean_of("original"),
        zero=mean_of("zero"),
        after=after.probed() if E else None,
    )


def _target_record(target: TargetPlace, means: Means, measured: _Measured, e: int) -> Target:
    return Target(
        layer=target.layer,
        dim=target.dim,
        strict=target.strict,
        means=[
            KindMean(kind=kind, mean=mean, std=std, count=count)
            for kind, (mean, std, count) in means.of_kind.items()
        ],
        activations=int(measured.activations[e]),
        control_dim=int(measured.control_dims[e]),
        control_activations=int(measured.control_activations[e]),
    )


def _rebuilt(
    targets: Sequence[TargetPlace],
    measured: _Measured,
    loss: dict[str, Spread],
    definition: Definition,
) -> Rebuilt:
    """Needed, or written again: what the zeroed run shows downstream of the last edit."""
    after = measured.after
    assert after is not None
    share = definition.min_share * after.tally.sequences
    strict_steady = after.tally.strict > share
    relaxed_steady = after.tally.relaxed > share
    dims = []
    for dim in measured.dims:
        own = [t for t in targets if t.dim == dim]
        steady = strict_steady if own[0].strict else relaxed_steady
        if steady[max(t.layer for t in own) + 1 :, dim].any():
            dims.append(dim)
    first = min(t.layer for t in targets)
    needed = loss["zero"]["mean"] - loss["original"]["mean"] > math.log1p(NEEDED)
    verdicts: dict[tuple[bool, bool], Verdict] = {
        (True, False): "needed",
        (False, True): "rebuilt",
        (True, True): "needed and rebuilt",
        (False, False): "not needed",
    }
    later: list[MassiveRecord] = [r for r in massive_records(after) if r["last_layer"] >= first]
    return Rebuilt(
        verdict=verdicts[needed, bool(dims)],
        dims=dims,
        massive=later,
        trajectories=[
            Trajectory(
                dim=dim,
                original=measured.original[:, i].tolist(),
                zero=measured.zero[:, i].tolist(),
            )
            for i, dim in enumerate(measured.dims)
        ],
    )


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 709 else math.inf
