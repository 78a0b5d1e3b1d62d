"""The probe of a checkpoint on a text, from their names to one result."""

import dataclasses

from jax_massact.results import SCHEMA_VERSION
from jax_massact.studies.collector import kept, probe_inputs, probe_reading
from jax_massact.studies.frame import (
    Prepared,
    Progress,
    Stopwatch,
    data_info,
    definition_info,
    model_info,
    silent,
    versions,
)
from jax_massact.studies.medium import measure_medium
from jax_massact.studies.output import Outcome
from jax_massact.studies.passes import ready, waited
from jax_massact.studies.probe.images import run_images
from jax_massact.studies.probe.result import ProbeResult
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.studies.probe.super_weights import super_weight_records
from jax_massact.studies.records import massive_records, outlier_records, remarks

__all__ = ["run", "run_images"]

STREAMS = True  # see `frame.run_study`


def run(prepared: Prepared, config: ProbeConfig, progress: Progress = silent) -> Outcome:
    """Runs the probe and merges its statistics into one result.

    Returns:
      A `ProbeResult` and the activation map of the first sequence.

    Raises:
      WeightsError: a weight cannot be read.
      DataError: no prediction is scored, and activations of medium scale are to be changed.
    """
    watch = Stopwatch()
    inputs = prepared.inputs
    if config.medium.sequences:
        inputs.check_scored()
    batch = min(config.batch_size, len(inputs))
    reading = probe_reading(top_k=config.top_k, definition=config.definition)
    runner = ready(prepared, config, reading, next(kept(inputs, batch)), progress)
    loaded = watch.lap()
    probed = probe_inputs(
        runner.run(reading, kept(inputs, batch)),
        inputs,
        definition=config.definition,
        progress=lambda done: progress(done, len(inputs)),
    )
    massive = massive_records(probed)
    result = ProbeResult(
        schema=SCHEMA_VERSION,
        **remarks(probed.layers),
        model=model_info(prepared, config.dtype, runner.model),
        data=data_info(prepared, config),
        definition=definition_info(config.definition),
        layers=probed.layers,
        massive=massive,
        super_weights=super_weight_records(prepared, runner.model, probed, massive),
        outlier_features=outlier_records(probed),
        prompt=probed.prompt,
        config=dataclasses.asdict(config),
        seconds={"load_and_compile": loaded, "run": watch.lap()} | waited(runner),
        versions=versions(),
    )
    medium = measure_medium(runner, inputs, config.medium, batch_size=batch)
    if medium is not None:
        result["medium"] = medium
        result["seconds"]["medium_scale"] = watch.lap()
    return Outcome(result, (probed.map,))
