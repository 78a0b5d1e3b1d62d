"""The probe of a checkpoint on a text, from their names to one result."""

import dataclasses
from collections.abc import Callable

from jax_massact.data.pieces import token_kind
from jax_massact.results import (
    SCHEMA_VERSION,
    ActivationMap,
)
from jax_massact.studies.collector import (
    compile_probe,
    massive_records,
    outlier_records,
    probe_sequences,
)
from jax_massact.studies.frame import (
    Prepared,
    Stopwatch,
    compile_while_loading,
    data_info,
    definition_info,
    model_info,
    versions,
)
from jax_massact.studies.probe.result import ProbeResult
from jax_massact.studies.probe.settings import ProbeConfig


def probe_checkpoint(
    prepared: Prepared,
    config: ProbeConfig,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[ProbeResult, ActivationMap]:
    """Runs the probe and merges its statistics into one result.

    Args:
      progress: called with the number of sequences done.

    Raises:
      WeightsError: a weight cannot be read.
    """
    watch = Stopwatch()
    checkpoint, tokens = prepared.checkpoint, prepared.tokens
    batch = min(config.batch_size, len(tokens))
    step, model = compile_while_loading(
        checkpoint,
        config.dtype,
        lambda shapes: compile_probe(
            shapes,
            (batch, tokens.shape[1]),
            top_k=config.top_k,
            definition=config.definition,
        ),
    )
    loaded = watch.lap()
    probed = probe_sequences(
        step,
        model,
        tokens,
        batch_size=batch,
        definition=config.definition,
        strings=prepared.tokenizer.token_strings,
        kind=token_kind,
        progress=progress,
    )
    result = ProbeResult(
        schema=SCHEMA_VERSION,
        model=model_info(prepared, config.dtype, model),
        data=data_info(prepared, config, len(tokens)),
        definition=definition_info(config.definition),
        layers=probed.layers,
        massive=massive_records(probed),
        outlier_features=outlier_records(probed),
        prompt=probed.prompt,
        config=dataclasses.asdict(config),
        seconds={"load_and_compile": loaded, "run": watch.lap()},
        versions=versions(),
    )
    return result, probed.map
