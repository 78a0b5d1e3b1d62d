"""The interventions of `massact intervene` on a finished run: its model, on its held-out data."""

from pathlib import Path

from jax_massact.data.text import Documents
from jax_massact.errors import UserError
from jax_massact.loading import RUN_MODEL, open_checkpoint
from jax_massact.nn.variants import rows_in_front
from jax_massact.studies.frame import Prepared
from jax_massact.studies.held_out import held_out
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.interventions import intervene_checkpoint
from jax_massact.studies.interventions_result import InterveneResult
from jax_massact.studies.settings import InterveneConfig
from jax_massact.train.config import TrainConfig

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
    return intervene_checkpoint(*prepare_run(folder, config))


def prepare_run(folder: Path, config: TrainConfig) -> tuple[Prepared, InterveneConfig]:
    """The model of a run, with the rows that it is intervened on.

    Raises:
      UserError: the model or the data of the run cannot be read any more.
    """
    length = config.sequence_length
    count = min(max(TOKENS // length, FEWEST), MOST)
    checkpoint = open_checkpoint(folder / RUN_MODEL)
    try:
        rows = held_out(folder, config, 2 * count)
    except UserError as error:
        raise UserError(
            f"to intervene on {folder} its data is needed ({error}); --no-interventions leaves "
            "this out"
        ) from None
    settings = InterveneConfig(
        text=config.data.source,
        bos=str(rows.bos),
        sequences=count,
        calibration_sequences=count,
        sequence_length=length,
        batch_size=max(1, min(count, _BATCH_TOKENS // length)),
        definition=config.watch.definition,
        fractions=(),
    )
    prepared = Prepared(
        name=str(folder),
        checkpoint=checkpoint,
        tokenizer=rows.tokenizer,
        text=Documents(rows.description, ()),
        inputs=Inputs(
            rows.tokens, rows.tokenizer.token_strings, rows_in_front(checkpoint.config),
            scored_from=rows.scored_from,
        ),
        bos=rows.bos,
    )
    return prepared, settings
