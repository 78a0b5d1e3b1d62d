"""The entries of down projections that write the massive activations which a probe has found."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.families.checkpoint import Checkpoint
from jax_massact.measure.super_weights import EVERY_TOKEN, SuperWeights, super_weights
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer
from jax_massact.results import MassiveRecord
from jax_massact.studies.collector import Probed
from jax_massact.studies.frame import Prepared, PreparedImages
from jax_massact.studies.probe.result import SuperWeight

MOST = 16


def super_weight_records(
    prepared: Prepared | PreparedImages,
    model: Transformer | BlockSource,
    probed: Probed,
    massive: Sequence[MassiveRecord],
) -> list[SuperWeight]:
    """One record for each of the largest dimensions that an MLP writes, strict ones if any are.

    Each is computed in the first sequence that has it.
    """
    strict = [r for r in massive if r["strict"]] or massive
    written = [r for r in strict if r["written_by"]["sublayer"] == "mlp"][:MOST]
    if not written:
        return []
    layers = jnp.asarray([r["written_by"]["layer"] for r in written])
    dims = jnp.asarray([r["dim"] for r in written])
    firsts = [probed.where[r["dim"]].first for r in written]
    last = None if _depends_on_what_follows(model) else 1 + max(p for _, p in firsts)
    sequences = sorted({sequence for sequence, _ in firsts})
    texts = [prepared.inputs.one(sequence, last) for sequence in sequences]
    if isinstance(model, BlockSource):
        # All at once: blocks are read from the file.
        found = jax.device_get(super_weights(model, np.concatenate(texts), layers, dims))
    else:
        compute = jax.jit(super_weights)
        rows = [jax.device_get(compute(model, text, layers, dims)) for text in texts]
        found = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    of = lambda sequence, i: SuperWeights(*(x[sequences.index(sequence), i] for x in found))
    return [
        _record(prepared.checkpoint, record, sequence, of(sequence, i))
        for i, (record, (sequence, _)) in enumerate(zip(written, firsts, strict=True))
    ]


def _depends_on_what_follows(model: Transformer | BlockSource) -> bool:
    """Whether a token's activations depend on the tokens behind it, or on how many these are."""
    kinds = (kind.attention for kind in model.config.pattern)
    return any(not kind.causal or kind.rope.original_context is not None for kind in kinds)


def _record(
    checkpoint: Checkpoint, record: MassiveRecord, sequence: int, found: SuperWeights
) -> SuperWeight:
    layer, expert = record["written_by"]["layer"], int(found.expert)
    return SuperWeight(
        layer=layer,
        dim=record["dim"],
        column=int(found.column),
        expert=None if expert == EVERY_TOKEN else expert,
        tensor=_tensor(checkpoint, layer, expert),
        weight=float(found.weight),
        activation=float(found.activation),
        share=float(found.share),
        expert_share=float(found.expert_share),
        sequence=sequence,
        position=int(found.position),
    )


def _tensor(checkpoint: Checkpoint, layer: int, expert: int) -> str | None:
    """What the file calls the matrix."""
    shared = "shared." if checkpoint.config.block.mlp.moe.experts else ""
    part = shared if expert == EVERY_TOKEN else "experts."
    place = checkpoint.places.get(f"blocks.mlp.{part}down")
    if place is None:  # of a run, which has parameters in place of tensors
        return None
    return place.template.replace("{l}", str(layer)).replace("{e}", str(expert))
