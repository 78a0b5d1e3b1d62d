"""Probing a checkpoint on a text: from their names to one result."""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
from jaxtyping import Int

from jax_massact.config import Definition, DType, ProbeConfig, RunConfig
from jax_massact.data.text import Documents, documents, token_kind, windows
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import DataError
from jax_massact.nn.decoder import Decoder, abstract, parameters
from jax_massact.probe.result import (
    SCHEMA_VERSION,
    ActivationMap,
    DataInfo,
    DefinitionInfo,
    ModelInfo,
    ProbeResult,
)
from jax_massact.probe.run import (
    Stopwatch,
    compile_probe,
    massive_records,
    outlier_records,
    probe_sequences,
    versions,
)
from jax_massact.weights.checkpoint import Checkpoint
from jax_massact.weights.load import open_checkpoint

T = TypeVar("T")


class Prepared(NamedTuple):
    """A checkpoint, opened but not read, and the sequences it is to be run on.

    Attributes:
      name: as the person gave it.
      tokens: ids, every one with an embedding in the model.
      bos: whether every sequence begins with the BOS token.
    """

    name: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    text: Documents
    tokens: Int[np.ndarray, "S T"]
    bos: bool


def prepare(
    source: str, config: RunConfig, *, sequences: int | None = None, spare: int = 0
) -> Prepared:
    """Opens a checkpoint and cuts the text into sequences.

    Args:
      sequences: how many; None: as `config` says.
      spare: how many tokens of the model's context to leave free.

    Raises:
      WeightsError, ResourceError: the checkpoint cannot be used.
      DataError: the text or the tokenizer cannot be, or the sequences are too long for the model.
    """
    checkpoint = open_checkpoint(source)
    limit = checkpoint.config.context_length - checkpoint.config.first_position - spare
    if config.sequence_length > limit:
        raise DataError(
            f"sequence_length is {config.sequence_length}; allowed for this model: at most {limit}"
        )
    tokenizer = checkpoint.load_tokenizer()
    # k' and v' of a folded model stand for its first token.
    folded = checkpoint.config.bias_position is not None
    bos = tokenizer.resolve_bos("false" if folded and config.bos == "auto" else config.bos)
    text = documents(config.text)
    tokens = windows(
        text,
        tokenizer,
        sequences=sequences or config.sequences,
        sequence_length=config.sequence_length,
        bos=bos,
    )
    if tokens.max() >= checkpoint.config.vocab_size:
        raise DataError(
            f"the tokenizer gives id {tokens.max()}; the model of {checkpoint.path.name} has "
            f"embeddings for {checkpoint.config.vocab_size} ids: they do not belong together"
        )
    return Prepared(source, checkpoint, tokenizer, text, tokens, bos)


def compile_while_loading(
    checkpoint: Checkpoint, dtype: DType, compile: Callable[[Any], T]
) -> tuple[T, Decoder]:
    """What `compile` makes of the model's shapes, and the model: XLA works while weights are read.

    Args:
      compile: gets a decoder of `jax.ShapeDtypeStruct`.
    """
    shapes = abstract(dataclasses.replace(checkpoint.config, dtype=dtype))
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, dtype), shapes)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        compiling = pool.submit(compile, shapes)
        model = checkpoint.load_model(dtype)
        return compiling.result(), model


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


def data_info(prepared: Prepared, config: RunConfig, sequences: int) -> DataInfo:
    """What was run, in plain words and numbers."""
    return DataInfo(
        source=prepared.text.description,
        sequences=sequences,
        sequence_length=prepared.tokens.shape[1],
        bos=prepared.bos,
        bos_setting=config.bos,
        bos_token=prepared.tokenizer.bos_token,
    )


def model_info(prepared: Prepared, dtype: DType, model: Decoder) -> ModelInfo:
    """Which model was run."""
    c = prepared.checkpoint.config
    return ModelInfo(
        name=Path(prepared.name).name,
        source=prepared.checkpoint.path.name,
        family=c.family,
        parameters=sum(leaf.size for leaf in parameters(model).values()),
        depth=c.depth,
        width=c.width,
        num_heads=c.num_heads,
        num_kv_heads=c.num_kv_heads,
        head_dim=c.head_dim,
        mlp_dim=c.mlp_dim,
        vocab_size=c.vocab_size,
        dtype=dtype,
    )


def definition_info(definition: Definition) -> DefinitionInfo:
    """What counted as massive."""
    values = dataclasses.asdict(definition)
    share = values.pop("outlier_share")
    return DefinitionInfo(**(values | {"outlier": values["outlier"] | {"share": share}}))
