"""`massact probe` without the probe: reads the same model, computes the logits of the same text.

    python -m jax_massact.bench.forward MODEL SETTINGS

The baseline of the probe's time and memory, in a process of its own, so that its peak memory is
its own. SETTINGS is a `ProbeConfig` as JSON.
"""

import json
import sys

import jax
import jax.numpy as jnp

from jax_massact.settings import from_mapping
from jax_massact.studies.frame import compile_while_loading, prepare
from jax_massact.studies.probe.settings import ProbeConfig


def main(model: str, settings: str) -> None:
    config = from_mapping(ProbeConfig, json.loads(settings))
    prepared = prepare(model, config)
    tokens = prepared.inputs.tokens
    batch = min(config.batch_size, len(tokens))
    rows = jax.ShapeDtypeStruct((batch, tokens.shape[1]), jnp.int32)

    def best(model, tokens):
        # Reading every logit keeps XLA from leaving any out.
        return model(tokens)[0].argmax(-1)

    step, decoder = compile_while_loading(
        prepared.checkpoint,
        config.dtype,
        lambda shapes: jax.jit(best).lower(shapes, rows).compile(),
    )
    for start in range(0, len(tokens) - batch + 1, batch):
        jax.block_until_ready(step(decoder, tokens[start : start + batch]))


if __name__ == "__main__":
    main(*sys.argv[1:])
