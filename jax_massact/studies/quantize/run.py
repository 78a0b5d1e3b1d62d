"""What rounding costs a checkpoint, with its massive activations and without."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from jax_massact.measure.definition import Definition
from jax_massact.measure.loss import losses_of
from jax_massact.measure.magnitudes import magnitudes_tap
from jax_massact.nn.transformer import Transformer
from jax_massact.results import SCHEMA_VERSION, MassiveRecord
from jax_massact.studies.collector import Collector, Probed, reduce_batch
from jax_massact.studies.frame import (
    Prepared,
    Progress,
    Stopwatch,
    compile_while_loading,
    definition_info,
    model_info,
    silent,
    versions,
)
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.interventions import split
from jax_massact.studies.interventions_result import InterveneData
from jax_massact.studies.output import Outcome
from jax_massact.studies.quantize.measured import Measured, Work, row_record
from jax_massact.studies.quantize.result import (
    BitsRecord,
    QuantizeResult,
    QuantizeVerdict,
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
from jax_massact.studies.rounding_rows import FLOAT_ROW, parse
from jax_massact.studies.targets import Samples, choose_targets, estimate_means

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
    calibration, held_out = split(prepared, config, config.calibration_sequences)
    size = min(config.batch_size, len(calibration), len(held_out))
    shape = size, calibration.tokens.shape[1]
    step, model = compile_while_loading(
        prepared.checkpoint, config.dtype,
        lambda shapes: _compile_reading(shapes, shape, config.definition),
    )
    seconds = {"load_and_compile": watch.lap()}
    rows, depth = parse(config.rows), model.config.depth
    work = Work(rows, config, depth, progress)
    work.expect(len(calibration) + len(held_out))
    samples = Samples()
    calibrated, known, _ = _read(step, model, calibration, size, config.definition, work.done)
    for sequence, hits in enumerate(known):
        samples.add(hits, lambda position, s=sequence: calibration.kind_at(s, position))
    _, found, plain = _read(step, model, held_out, size, config.definition, work.done)
    massive = massive_records(calibrated)
    targets = choose_targets(massive, "first", depth)
    means = estimate_means(samples, targets)
    reads = Read(held_out, found), Read(calibration, known)
    kept = tuple(_kept(model, read, size, config) for read in reads)
    variants, first_token, notices = make_variants(
        model, *reads, targets, means, prepared, config, kept  # pyright: ignore
    )
    seconds["find"] = watch.lap()
    work.expect(work.passes(variants))
    rotations = rotations_of(model, config.seed) if config.rotate else {}
    records, ranges, alone, bits = [], [], [], []
    floats: dict[str, np.ndarray] = {"original": plain, "kept": plain}
    for variant in variants:
        measured = Measured(variant, work, size, rotations, config)
        if variant.name == "original":
            ranges = measured.ranges()
        exact = floats.get(variant.name)
        exact = measured.losses(FLOAT_ROW) if exact is None else exact
        records.append(row_record(variant.name, FLOAT_ROW, exact, exact))
        for row in rows:
            records.append(row_record(variant.name, row, measured.losses(row), exact))
        if variant.name == "original":
            alone += measured.sensitivity(exact)
        if variant.name in ("original", "folded"):
            bits += measured.fewest_bits(exact, records)
    seconds["round"] = watch.lap()
    said = remarks(calibrated.layers, {
        f"loss of {r['variant']}, {r['sites']} {r['format']}": r["loss"]["mean"] for r in records
    })
    said["notices"] += notices
    has_kept = any(variant.name == "kept" for variant in variants)
    return Outcome(QuantizeResult(
        schema=SCHEMA_VERSION,
        **said,
        model=model_info(prepared, config.dtype, model),
        data=InterveneData(
            source=prepared.text.description,
            calibration_sequences=len(calibration),
            sequences=len(held_out),
            window=held_out.tokens.shape[1],
            stride=held_out.tokens.shape[1] - prepared.bos,
            scored_tokens=len(held_out) * (held_out.tokens.shape[1] - 1),
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


def _compile_reading(model: Any, shape: tuple[int, int], definition: Definition) -> Callable:
    """The statistics that find massive activations, and the losses of the same pass."""

    def step(model, tokens, keep):
        tap = lambda acts: magnitudes_tap(acts, top_k=1, definition=definition)
        logits, stats = model(tokens, tap=tap)
        return losses_of(logits, tokens), reduce_batch(stats, keep, definition)

    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    keep = jax.ShapeDtypeStruct(shape[:1], jnp.bool_)
    return jax.jit(step).lower(model, tokens, keep).compile()


def _read(
    step: Callable, model: Transformer, inputs: Inputs, size: int, definition: Definition,
    done: Callable[[int], None],
) -> tuple[Probed, list, Float[np.ndarray, "S T-1"]]:
    collector, found, losses = Collector(definition, inputs), [], []
    for rows, tokens, keep in inputs.batches(size):
        loss, batch = jax.device_get(step(model, tokens, keep))
        found += collector.add(batch)
        losses.append(loss[: rows.stop - rows.start])
        done(rows.stop - rows.start)
    return collector.probed(), found, np.concatenate(losses)


def _kept(
    model: Transformer, read: Read, size: int, config: QuantizeConfig
) -> Bool[np.ndarray, "S T"]:
    """The tokens of `config.keep`."""
    shape = len(read.inputs), read.inputs.length
    if config.keep == "first" or "kept" not in config.names:
        return first_tokens(shape)
    if config.keep == "massive":
        return massive_tokens(read.found, shape)

    @jax.jit
    def ratios(model, tokens):
        def tap(acts):
            sizes = [jnp.abs(x).max(-1) for x in (acts.mlp_hidden, acts.resid_post)]
            return jnp.stack([x / jnp.median(x, axis=1, keepdims=True) for x in sizes]).max(0)

        return model.residual(tokens, tap=tap)[1].max(0)

    found = [
        jax.device_get(ratios(model, tokens))[: rows.stop - rows.start]
        for rows, tokens, _ in read.inputs.batches(size)
    ]
    return np.concatenate(found) > config.ratio


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
