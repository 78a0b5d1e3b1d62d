"""`massact intervene`: what the perplexity is when massive activations are changed."""

import rich.console

from jax_massact.cli.probe import announce, make_folder, progress_bar, say_written
from jax_massact.config import InterveneConfig
from jax_massact.probe.checkpoint import prepare
from jax_massact.probe.intervene import intervene_checkpoint
from jax_massact.probe.intervene_result import InterveneResult
from jax_massact.report import print_intervene, write_intervene_report


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
