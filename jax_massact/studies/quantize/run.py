"""What rounding costs a checkpoint, with its massive activations and without."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jax_massact.errors import ConfigError
from jax_massact.measure.definition import Definition
from jax_massact.measure.magnitudes import magnitudes_tap
from jax_massact.results import SCHEMA_VERSION, MassiveRecord
from jax_massact.studies.collector import Collector, Probed, reduce_batch
from jax_massact.studies.collector import kept as kept_batches
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
from jax_massact.studies.interventions import split
from jax_massact.studies.interventions_result import InterveneData
from jax_massact.studies.output import Outcome
from jax_massact.studies.passes import Job, Reading, Runner, ready
from jax_massact.studies.quantize.measured import (
    Measured,
    Work,
    answers,
    row_record,
    searched,
    stderr_of,
)
from jax_massact.studies.quantize.result import (
    BitsRecord,
    QuantizeResult,
    QuantizeVerdict,
    RowRecord,
    SensitivityRecord,
)
from jax_massact.studies.quantize.settings import QuantizeConfig
from jax_massact.studies.quantize.variants import (
    Read,
    first_tokens,
    make_variants,
    massive_tokens,
    rotations_of,
)
from jax_massact.studies.records import massive_records, remarks
from jax_massact.studies.rounding_rows import FLOAT_ROW, Row, parse
from jax_massact.studies.targets import Samples, choose_targets, estimate_means

STREAMS = True  # see `frame.run_study`
SENSITIVE = 0.02  # nats that one rounded block adds, from which on it is named


def run(prepared: Prepared, config: QuantizeConfig, progress: Progress = silent) -> Outcome:
    """Measures every row of every variant, the ranges, and one block at a time.

    Returns:
      A `QuantizeResult`.

    Raises:
      WeightsError: a weight cannot be read.
      DataError: the text gives fewer than two sequences.
    """
    watch = Stopwatch()
    if prepared.streamed:
        _check_streamed(config)
    calibration, held_out = split(prepared, config, config.calibration_sequences)
    size = min(config.batch_size, len(calibration), len(held_out))
    reading = _reading(config.definition)
    runner = ready(prepared, config, reading, next(kept_batches(calibration, size)), progress)
    seconds = {"load_and_compile": watch.lap()}
    rows, depth = parse(config.rows), runner.model.config.depth
    work = Work(rows, config, depth, progress)
    work.expect(len(calibration) + len(held_out))
    samples = Samples()
    parts = calibration, held_out
    both = runner.start([Job(reading, kept_batches(part, size)) for part in parts])
    calibrated, known, _ = _read(both[0], calibration, size, config.definition, work.done)
    for sequence, hits in enumerate(known):
        samples.add(hits, lambda position, s=sequence: calibration.kind_at(s, position))
    _, found, plain = _read(both[1], held_out, size, config.definition, work.done)
    massive = massive_records(calibrated)
    targets = choose_targets(massive, "first", depth)
    means = estimate_means(samples, targets)
    reads = Read(held_out, found), Read(calibration, known)
    kept = _kept(runner, reads, size, config)
    variants, first_token, notices = make_variants(
        runner.model, *reads, targets, means, prepared, config, kept  # pyright: ignore
    )
    seconds["find"] = watch.lap()
    work.expect(work.passes(variants))
    rotations = rotations_of(runner.model, config.seed) if config.rotate else {}
    many = [Measured(variant, work, size, rotations, config, runner) for variant in variants]
    ranges = many[0].ranges()
    records, alone, bits = _rounded(runner, many, rows, plain, config)
    seconds["round"] = watch.lap()
    said = remarks(calibrated.layers, {
        f"loss of {r['variant']}, {r['sites']} {r['format']}": r["loss"]["mean"] for r in records
    })
    said["notices"] += notices
    has_kept = any(variant.name == "kept" for variant in variants)
    return Outcome(QuantizeResult(
        schema=SCHEMA_VERSION,
        **said,
        model=model_info(prepared, config.dtype, runner.model),
        data=InterveneData(
            source=prepared.text.description,
            calibration_sequences=len(calibration),
            sequences=len(held_out),
            window=held_out.tokens.shape[1],
            stride=held_out.tokens.shape[1] - prepared.bos,
            scored_tokens=held_out.scored_tokens,
            bos=prepared.bos,
            bos_setting=config.bos,
            bos_token=prepared.tokenizer.bos_token,
        ),
        definition=definition_info(config.definition),
        massive=massive,
        first_token=first_token,
        kept_tokens=float(kept[0].sum(1).mean()) if has_kept else None,
        rows=records,
        ranges=ranges,
        sensitivity=alone,
        bits=bits,
        verdict=None if said["warnings"] else _verdict(massive, alone, bits),
        config=dataclasses.asdict(config),
        seconds=seconds,
        versions=versions(),
    ))


def _check_streamed(config: QuantizeConfig) -> None:
    if config.smooth:
        raise ConfigError(
            f"smooth is {config.smooth}; expected of a model whose blocks are streamed: 0"
        )


def _rounded(
    runner: Runner, many: Sequence[Measured], rows: Sequence[Row],
    plain: Float[np.ndarray, "S T-1"], config: QuantizeConfig,
) -> tuple[list[RowRecord], list[SensitivityRecord], list[BitsRecord]]:
    """Every row of every variant, one block of the original at a time, and the fewest bits.

    Args:
      plain: losses of the original.
    """
    known = {"original": plain, "kept": plain}
    alone = many[0].alone(min(config.sensitivity_sequences, len(plain)))
    asks = [m.ask(FLOAT_ROW) for m in many if m.variant.name not in known]
    asks += [m.ask(row) for m in many for row in rows] + [ask for *_, ask in alone]
    found = answers(runner, asks)
    exact = {m.variant.name: next(found) for m in many if m.variant.name not in known} | known
    records, eights = [], {}
    for m in many:
        name = m.variant.name
        records.append(row_record(name, FLOAT_ROW, exact[name], exact[name]))
        for row in rows:
            records.append(row_record(name, row, next(found), exact[name]))
            eights[name, row] = records[-1]["ratio"]
    sensitivity = []
    for site, layer, ask in alone:
        change = (next(found) - plain[: ask.count]).mean(1)
        sensitivity.append(SensitivityRecord(
            variant="original", site=site, layer=layer, loss_change=float(change.mean()),
            stderr=stderr_of(change),
        ))
    searches = [
        m.fewest_bits(row, exact[m.variant.name][: config.bits_sequences],
                      eights[m.variant.name, row])
        for m in many if m.variant.name in ("original", "folded") for row in m.work.bits_rows
    ]
    return records, sensitivity, searched(runner, searches)


def _reading(definition: Definition) -> Reading:
    """The statistics that find massive activations, and the losses of the same pass."""
    return Reading(
        lambda acts, keep: magnitudes_tap(acts, top_k=1, definition=definition),
        lambda stats, losses, keep: (losses, reduce_batch(stats, keep, definition)),
        losses=True,
    )


def _read(
    results: Iterator[Any], inputs: Inputs, size: int, definition: Definition,
    done: Callable[[int], None],
) -> tuple[Probed, list, Float[np.ndarray, "S T-1"]]:
    collector, found, losses = Collector(definition, inputs), [], []
    for (rows, _, _), (loss, batch) in zip(inputs.batches(size), results, strict=True):
        found += collector.add(batch)
        losses.append(inputs.scored(loss[: rows.stop - rows.start]))
        done(rows.stop - rows.start)
    return collector.probed(), found, np.concatenate(losses)


def _kept(
    runner: Runner, reads: Sequence[Read], size: int, config: QuantizeConfig
) -> list[Bool[np.ndarray, "S T"]]:
    """The tokens of `config.keep` in each text."""
    shapes = [(len(read.inputs), read.inputs.length) for read in reads]
    if config.keep == "first" or "kept" not in config.names:
        return [first_tokens(shape) for shape in shapes]
    if config.keep == "massive":
        return [massive_tokens(read.found, shape)
                for read, shape in zip(reads, shapes, strict=True)]

    def ratios(acts, data):
        sizes = [jnp.abs(x).max(-1) for x in (acts.mlp_hidden, acts.resid_post)]
        return jnp.stack([x / jnp.median(x, axis=1, keepdims=True) for x in sizes]).max(0)

    reading = Reading(ratios, lambda taps, losses, data: taps.max(0))
    results = runner.start([Job(reading, kept_batches(read.inputs, size)) for read in reads])
    return [
        np.concatenate([
            result[: rows.stop - rows.start]
            for (rows, _, _), result in zip(read.inputs.batches(size), own, strict=True)
        ]) > config.ratio
        for read, own in zip(reads, results, strict=True)
    ]


def _verdict(
    massive: Sequence[MassiveRecord], alone: Sequence[SensitivityRecord],
    bits: Sequence[BitsRecord],
) -> QuantizeVerdict:
    largest = massive[0] if massive else None
    writer = largest and largest["written_by"]
    remover = largest and largest["removed_by"]
    hidden = [r for r in alone if r["site"] == "mlp_hidden" and r["loss_change"] > SENSITIVE]
    sensitive = [r["layer"] for r in sorted(hidden, key=lambda r: -r["loss_change"])]
    own = {place["layer"] for place in (writer, remover) if place is not None}
    needed = {(r["variant"], r["sites"]): r["bits"] for r in bits}
    saved = {}
    for (variant, sites), original in needed.items():
        folded = needed.get(("folded", sites))
        if variant == "original" and original is not None and folded is not None:
            saved[sites] = original - folded
    return QuantizeVerdict(
        writer=writer, remover=remover, sensitive=sensitive,
        others=[layer for layer in sensitive if layer not in own], bits_saved=saved,
    )
