"""`massact explain`: what attention makes of massive activations."""

import rich.console

from jax_massact.studies.explain.report import print_explain, write_explain_report
from jax_massact.studies.explain.result import ExplainResult
from jax_massact.studies.explain.run import explain_checkpoint, total_sequences
from jax_massact.studies.explain.settings import ExplainConfig
from jax_massact.studies.frame import (
    announce,
    make_folder,
    prepare,
    progress_bar,
    say_written,
)


def run_explain(source: str, config: ExplainConfig, workdir: str | None) -> ExplainResult:
    """Measures the mechanism in a checkpoint, prints the tables and writes the folder.

    Raises:
      UserError: the checkpoint, the text, a setting or the folder cannot be used.
    """
    console = rich.console.Console(stderr=True, highlight=False)
    folder = make_folder(workdir, source)
    prepared = prepare(source, config)
    announce(prepared, config, console)
    with progress_bar(console, total_sequences(prepared, config), "ran") as progress:
        result, attention_map = explain_checkpoint(prepared, config, progress=progress)
    print_explain(result, rich.console.Console())
    say_written(folder, lambda: write_explain_report(result, attention_map, folder), console)
    return result
