"""The interventions of `massact intervene` on a finished run: its model, on its held-out data."""

from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Int

from jax_massact.data.text import Documents
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.errors import UserError
from jax_massact.load import RUN_MODEL, open_checkpoint
from jax_massact.studies.collector import in_front
from jax_massact.studies.frame import Prepared
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.interventions import intervene_checkpoint
from jax_massact.studies.interventions_result import InterveneResult
from jax_massact.studies.settings import InterveneConfig
from jax_massact.train.config import TrainConfig
from jax_massact.train.data import open_batches

# Of each part, calibration and held out: enough tokens for a loss, and few forward passes.
TOKENS, FEWEST, MOST = 8192, 8, 64
_BATCH_TOKENS = 4096


def intervene_run(folder: Path, config: TrainConfig) -> InterveneResult:
    """Sets the massive activations of a run's model to zero, to their mean, and a control to zero.

    The text is the first rows of the run's validation; half of them calibrate. What is massive is
    what the run was watched for, and each massive dimension is changed where it first appears. A
    model in which nothing is massive, not even by the relaxed definition, has no targets, and its
    loss alone is measured.

    Args:
      folder: of `train`.
      config: of that run.

    Raises:
      UserError: the model or the data of the run cannot be read any more.
    """
    length = config.sequence_length
    count = min(max(TOKENS // length, FEWEST), MOST)
    checkpoint = open_checkpoint(folder / RUN_MODEL)
    try:
        stream = open_batches(config)
    except UserError as error:
        raise UserError(
            f"to intervene on {folder} its data is needed ({error}); --no-interventions leaves "
            "this out"
        ) from None
    has_first = stream.first_token is not None
    settings = InterveneConfig(
        text=config.data.source,
        bos=str(has_first),
        sequences=count,
        calibration_sequences=count,
        sequence_length=length,
        batch_size=max(1, min(count, _BATCH_TOKENS // length)),
        definition=config.watch.definition,
        fractions=(),
    )
    tokenizer = stream.tokenizer or _nameless(stream.vocab_size)
    prepared = Prepared(
        name=str(folder),
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        text=Documents(f"validation rows of {stream.description}", ()),
        inputs=Inputs(
            _different(stream.validation(0, 2 * count)[:, :-1]),
            tokenizer.token_strings,
            in_front(checkpoint.config),
        ),
        bos=has_first,
    )
    return intervene_checkpoint(prepared, settings)


def _different(rows: Int[np.ndarray, "S T"]) -> Int[np.ndarray, "R T"]:
    """Each row once: a short text begins anew, and nothing that calibrates may be held out."""
    _, first = np.unique(rows, axis=0, return_index=True)
    return rows[np.sort(first)]


def _nameless(size: int) -> Tokenizer:
    """For ids of which nothing but their number is known; each reads `<id 17>`."""
    return Tokenizer(
        tokenizers.Tokenizer(tokenizers.models.BPE()),
        source="ids",
        vocab_size=size,
        bos_id=None,
        eos_id=None,
        adds_bos=False,
        raw_piece=lambda i: None,
        readable=str,
    )
