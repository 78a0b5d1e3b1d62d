"""The folding of a checkpoint, and its comparison with the original on a text."""

import dataclasses
import math
from pathlib import Path

import numpy as np

from jax_massact.errors import ConfigError
from jax_massact.families.open_model import OpenModel
from jax_massact.measure.fold import fold
from jax_massact.nn.transformer import Transformer
from jax_massact.results import SCHEMA_VERSION
from jax_massact.saving import loads_in, save
from jax_massact.studies.collector import Collector, Found
from jax_massact.studies.first_token import find_first_token
from jax_massact.studies.fold.images import MODEL, run_images
from jax_massact.studies.fold.outliers import study_outliers
from jax_massact.studies.fold.pairs import Pairs
from jax_massact.studies.fold.result import FoldResult
from jax_massact.studies.fold.settings import FoldConfig
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
from jax_massact.studies.passes import InMemory
from jax_massact.studies.records import massive_records, outlier_records, remarks

__all__ = ["run", "run_images"]
STREAMS = True  # see `frame.run_study`
# Of logits in float32, relative to the largest.
ALLOWED_DIFFERENCE = {"float32": 1e-4, "bfloat16": 5e-2}


def run(prepared: Prepared, config: FoldConfig, progress: Progress = silent) -> Outcome:
    """Folds a checkpoint and compares it with the original on a text.

    Args:
      prepared: with sequences without the first token (`bos` false), one token shorter than the
        model takes.

    Returns:
      A `FoldResult`; its `save` writes the folded model where the settings ask for it.

    Raises:
      WeightsError: a weight cannot be read.
      ConfigError: the model's attention is not standard.
      DataError: there is no such first token, or no prediction is scored.
    """
    watch = Stopwatch()
    prepared.inputs.check_scored()
    first = find_first_token(prepared.tokenizer, config.first_token)
    model: Transformer | OpenModel
    if prepared.streamed:
        _check_streamed(config)
        model = OpenModel(prepared.checkpoint, config.dtype)
    else:
        model = prepared.checkpoint.load_model(config.dtype)
    folded = fold(model, first)
    seconds = {"load_and_fold": watch.lap()}
    inputs = prepared.inputs
    whole_inputs = inputs.behind(first)
    size = min(config.batch_size, len(inputs))
    before = Collector(config.definition, whole_inputs)
    after = Collector(config.definition, inputs)
    difference = largest = 0.0
    losses: dict[str, list[np.ndarray]] = {"original": [], "folded": []}
    tops = {"original": 0.0, "folded": 0.0}
    found: dict[str, list[list[Found]]] = {"original": [], "folded": []}

    pairs = Pairs(model, folded, config.definition)
    batches = [(whole_tokens, own_tokens, keep) for (_, own_tokens, keep), (_, whole_tokens, _)
               in zip(inputs.batches(size), whole_inputs.batches(size), strict=True)]
    for (rows, _, _), found_here in zip(
        inputs.batches(size), pairs.compared(batches, progress), strict=True
    ):
        compared, whole_batch, own_batch = found_here
        gap, top, loss_whole, loss_own = compared
        difference, largest = max(difference, float(gap)), max(largest, float(top))
        n = rows.stop - rows.start
        losses["original"].append(inputs.scored(np.asarray(loss_whole[:n])))
        losses["folded"].append(inputs.scored(np.asarray(loss_own[:n])))
        for name, batch, collector in (
            ("original", whole_batch, before), ("folded", own_batch, after)
        ):
            found[name] += collector.add(batch)
            tops[name] = max(tops[name], float(np.abs(batch.sequences.top.value[:, :n]).max()))
        progress(rows.stop, len(inputs))
    seconds["compare"] = watch.lap()
    relative = difference / largest if largest else math.inf
    perplexity = {name: float(np.exp(np.mean(np.concatenate(x)))) for name, x in losses.items()}
    info = model_info(prepared, config.dtype, folded)
    original, remaining = before.probed(), after.probed()
    massive, left = massive_records(original), massive_records(remaining)
    again = [hits for hits in found["folded"] if any(hit.strict for hit in hits)]
    numbers = {"difference of the logits": relative} | {
        f"loss of the {name} model": float(np.mean(np.concatenate(x))) for name, x in losses.items()
    }
    result = FoldResult(
        schema=SCHEMA_VERSION,
        **remarks(original.layers, numbers),
        model=info,
        first_token=inputs.name(first),
        first_token_id=first,
        data=data_info(prepared, config),
        logit_difference=relative,
        allowed_difference=ALLOWED_DIFFERENCE[config.dtype],
        unchanged=relative <= ALLOWED_DIFFERENCE[config.dtype],
        perplexity_original=perplexity["original"],
        perplexity_folded=perplexity["folded"],
        definition=definition_info(config.definition),
        massive_before=massive,
        massive_after=left,
        largest_before=tops["original"],
        largest_after=tops["folded"],
        massive_sequences_after=len(again),
        massive_first_after=sum(any(h.strict and h.position == 0 for h in hits) for hits in again),
        loads_in=loads_in(folded.config),
        saved_to=None,
        config=dataclasses.asdict(config),
        seconds=seconds,
        versions=versions(),
    )
    medium = None
    if isinstance(folded, Transformer):
        medium = measure_medium(InMemory(folded), inputs, config.medium, batch_size=size)
    if medium is not None and isinstance(model, Transformer) and isinstance(folded, Transformer):
        last = slice(len(inputs) - config.medium.sequences, len(inputs))
        result["medium"] = medium
        result["outliers"] = study_outliers(
            model, folded, whole_inputs[last], inputs[last], found["original"][last], massive,
            outlier_records(original), outlier_records(remaining),
        )
        seconds["medium_scale"] = watch.lap()

    def save_model(folder: Path) -> None:
        if config.save:
            save(folded, folder / MODEL, tokenizer=prepared.tokenizer)
            result["saved_to"] = MODEL
        elif (folder / MODEL).exists():
            result["notices"].append(f"the model in {folder / MODEL} is of an earlier fold")

    return Outcome(result, save=save_model)


def _check_streamed(config: FoldConfig) -> None:
    if config.medium.sequences:
        raise ConfigError(
            f"medium.sequences is {config.medium.sequences}; expected of a model whose blocks are "
            "streamed: 0, since this section takes many passes"
        )
