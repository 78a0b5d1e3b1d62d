"""The interventions on a checkpoint, from the names of model and text to one result."""

from jax_massact.studies.frame import Prepared, Progress, silent
from jax_massact.studies.intervene.images import run_images
from jax_massact.studies.interventions import intervene_checkpoint
from jax_massact.studies.output import Outcome
from jax_massact.studies.settings import InterveneConfig

__all__ = ["run", "run_images"]

STREAMS = True  # see `frame.run_study`


def run(prepared: Prepared, config: InterveneConfig, progress: Progress = silent) -> Outcome:
    """The `InterveneResult` of `intervene_checkpoint`, whose errors it raises."""
    return Outcome(intervene_checkpoint(prepared, config, progress=progress))
