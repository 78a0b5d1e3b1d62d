"""The probe of a checkpoint on a text, from their names to one result."""

import dataclasses

from jax_massact.results import SCHEMA_VERSION
from jax_massact.studies.collector import compile_probe, probe_inputs
from jax_massact.studies.frame import (
    Prepared,
    Progress,
    Stopwatch,
    compile_while_loading,
    data_info,
    definition_info,
    model_info,
    silent,
    versions,
)
from jax_massact.studies.medium import measure_medium
from jax_massact.studies.output import Outcome
from jax_massact.studies.probe.images import run_images
from jax_massact.studies.probe.result import ProbeResult
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.studies.probe.super_weights import super_weight_records
from jax_massact.studies.records import massive_records, outlier_records, remarks

__all__ = ["run", "run_images"]


def run(prepared: Prepared, config: ProbeConfig, progress: Progress = silent) -> Outcome:
    """Runs the probe and merges its statistics into one result.

    Returns:
      A `ProbeResult` and the activation map of the first sequence.

    Raises:
      WeightsError: a weight cannot be read.
    """
    watch = Stopwatch()
    inputs = prepared.inputs
    batch = min(config.batch_size, len(inputs))
    step, model = compile_while_loading(
        prepared.checkpoint,
        config.dtype,
        lambda shapes: compile_probe(
            shapes,
            (batch, inputs.tokens.shape[1]),
            top_k=config.top_k,
            definition=config.definition,
        ),
    )
    loaded = watch.lap()
    probed = probe_inputs(
        step,
        model,
        inputs,
        batch_size=batch,
        definition=config.definition,
        progress=lambda done: progress(done, len(inputs)),
    )
    massive = massive_records(probed)
    result = ProbeResult(
        schema=SCHEMA_VERSION,
        **remarks(probed.layers),
        model=model_info(prepared, config.dtype, model),
        data=data_info(prepared, config),
        definition=definition_info(config.definition),
        layers=probed.layers,
        massive=massive,
        super_weights=super_weight_records(prepared, model, probed, massive),
        outlier_features=outlier_records(probed),
        prompt=probed.prompt,
        config=dataclasses.asdict(config),
        seconds={"load_and_compile": loaded, "run": watch.lap()},
        versions=versions(),
    )
    medium = measure_medium(model, inputs, config.medium, batch_size=batch)
    if medium is not None:
        result["medium"] = medium
        result["seconds"]["medium_scale"] = watch.lap()
    return Outcome(result, (probed.map,))
