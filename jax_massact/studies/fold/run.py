"""The folding of a checkpoint, and its comparison with the original on a text."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.data.pieces import token_kind
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import DataError
from jax_massact.measure.fold import fold
from jax_massact.measure.loss import losses_of
from jax_massact.measure.magnitudes import magnitudes_tap
from jax_massact.nn.transformer import Transformer
from jax_massact.results import SCHEMA_VERSION
from jax_massact.studies.collector import (
    Collector,
    batches,
    massive_records,
    reduce_batch,
)
from jax_massact.studies.fold.result import FoldResult
from jax_massact.studies.fold.settings import FoldConfig
from jax_massact.studies.frame import (
    Prepared,
    Stopwatch,
    data_info,
    definition_info,
    model_info,
    versions,
)

# Of logits in float32, relative to the largest.
ALLOWED_DIFFERENCE = {"float32": 1e-4, "bfloat16": 5e-2}


def fold_checkpoint(
    prepared: Prepared,
    config: FoldConfig,
    *,
    progress: Callable[[int], None] = lambda done: None,
) -> tuple[FoldResult, Transformer]:
    """Folds a checkpoint and compares it with the original on a text.

    Args:
      prepared: with sequences without the first token (`bos` false), one token shorter than the
        model takes.

    Raises:
      WeightsError: a weight cannot be read.
      ConfigError: the model's attention is not standard.
      DataError: there is no such first token.
    """
    watch = Stopwatch()
    first = find_first_token(prepared.tokenizer, config.first_token)
    if first >= prepared.checkpoint.config.vocab_size:
        raise DataError(f"first_token is {first}, which has no embedding in the model")
    model = prepared.checkpoint.load_model(config.dtype)
    folded = jax.jit(fold)(model, jnp.int32(first))
    seconds = {"load_and_fold": watch.lap()}
    tokens = prepared.tokens
    size = min(config.batch_size, len(tokens))
    strings = prepared.tokenizer.token_strings
    before = Collector(config.definition, strings, token_kind)
    after = Collector(config.definition, strings, token_kind)
    difference = largest = 0.0
    losses: dict[str, list[np.ndarray]] = {"original": [], "folded": []}
    tops = {"original": 0.0, "folded": 0.0}

    @jax.jit
    def run(model, tokens, keep):
        tap = lambda acts: magnitudes_tap(acts, top_k=1, definition=config.definition)
        logits, stats = model(tokens, tap=tap)
        return logits.astype(jnp.float32), reduce_batch(stats, keep, config.definition)

    @jax.jit
    def compare(whole, own, tokens, keep):
        # Logits after the first token and the last token's are left out by losses_of.
        rest = whole[:, 1:]
        kept = keep[:, None, None]
        return (
            jnp.where(kept, jnp.abs(rest - own), 0).max(),
            jnp.where(kept, jnp.abs(rest), 0).max(),
            losses_of(rest, tokens),
            losses_of(own, tokens),
        )

    for rows, full, keep in batches(tokens, size):
        with_first = np.concatenate([np.full((len(full), 1), first, full.dtype), full], axis=1)
        whole, whole_batch = run(model, with_first, keep)
        own, own_batch = run(folded, full, keep)
        gap, top, loss_whole, loss_own = jax.device_get(compare(whole, own, full, keep))
        difference, largest = max(difference, float(gap)), max(largest, float(top))
        n = len(rows)
        losses["original"].append(loss_whole[:n])
        losses["folded"].append(loss_own[:n])
        for name, batch, collector, ids in (
            ("original", whole_batch, before, with_first[:n]),
            ("folded", own_batch, after, rows),
        ):
            host: Any = jax.device_get(batch)
            collector.add(host, ids)
            tops[name] = max(tops[name], float(np.abs(host.sequences.top.value[:, :n]).max()))
        progress(before.sequences)
    seconds["compare"] = watch.lap()
    relative = difference / largest if largest else math.inf
    perplexity = {name: float(np.exp(np.mean(x))) for name, x in losses.items()}
    info = model_info(prepared, config.dtype, folded)
    result = FoldResult(
        schema=SCHEMA_VERSION,
        model=info,
        first_token=strings([first])[0],
        first_token_id=first,
        data=data_info(prepared, config, len(tokens)),
        logit_difference=relative,
        allowed_difference=ALLOWED_DIFFERENCE[config.dtype],
        unchanged=relative <= ALLOWED_DIFFERENCE[config.dtype],
        perplexity_original=perplexity["original"],
        perplexity_folded=perplexity["folded"],
        definition=definition_info(config.definition),
        massive_before=massive_records(before.probed()),
        massive_after=massive_records(after.probed()),
        largest_before=tops["original"],
        largest_after=tops["folded"],
        saved_to=None,
        config=dataclasses.asdict(config),
        seconds=seconds,
        versions=versions(),
    )
    return result, folded


def find_first_token(tokenizer: Tokenizer, name: str) -> int:
    """The id that `FoldConfig.first_token` means.

    Raises:
      DataError: the tokenizer has no BOS token, or the text is not one token.
    """
    if name == "bos":
        if tokenizer.bos_id is None:
            raise DataError(
                f"{tokenizer.source}: its tokenizer has no BOS token; name the first token with "
                "first_token, by its id or text"
            )
        return tokenizer.bos_id
    if name.isdecimal():
        return int(name)
    ids = tokenizer.encode(name, bos=False)
    if len(ids) != 1:
        raise DataError(f"first_token {name!r} is {len(ids)} tokens; allowed: a text that is one")
    return int(ids[0])
