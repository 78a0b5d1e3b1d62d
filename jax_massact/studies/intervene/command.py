"""`massact intervene`: what the perplexity is when massive activations are changed."""

import rich.console

from jax_massact.studies.frame import (
    announce,
    make_folder,
    prepare,
    progress_bar,
    say_written,
)
from jax_massact.studies.intervene.report import print_intervene, write_intervene_report
from jax_massact.studies.interventions import intervene_checkpoint
from jax_massact.studies.interventions_result import InterveneResult
from jax_massact.studies.settings import InterveneConfig


def run_intervene(source: str, config: InterveneConfig, workdir: str | None) -> InterveneResult:
    """Intervenes on a checkpoint, prints the table and writes the folder.

    Raises:
      UserError: the checkpoint, the text, a setting or the folder cannot be used.
    """
    console = rich.console.Console(stderr=True, highlight=False)
    folder = make_folder(workdir, source)
    wanted = config.calibration_sequences + config.sequences
    prepared = prepare(source, config, sequences=wanted)
    announce(prepared, config, console, wanted)
    with progress_bar(console, len(prepared.tokens), "ran") as progress:
        result = intervene_checkpoint(prepared, config, progress=progress)
    print_intervene(result, rich.console.Console())
    say_written(folder, lambda: write_intervene_report(result, folder), console)
    return result
