"""`massact probe`: prints what was found and writes the folder."""

import rich.console
import rich.progress

from jax_massact.report.terminal import print_probe
from jax_massact.studies.frame import announce, make_folder, prepare, progress_bar, say_written
from jax_massact.studies.probe.report import write_probe_report
from jax_massact.studies.probe.result import ProbeResult
from jax_massact.studies.probe.run import probe_checkpoint
from jax_massact.studies.probe.settings import ProbeConfig


def run_probe(source: str, config: ProbeConfig, workdir: str | None) -> ProbeResult:
    """Probes a checkpoint, prints the table and writes the folder.

    Raises:
      UserError: the checkpoint, the text, a setting or the folder cannot be used.
    """
    console = rich.console.Console(stderr=True, highlight=False)
    folder = make_folder(workdir, source)
    prepared = prepare(source, config)
    announce(prepared, config, console)
    with progress_bar(console, len(prepared.tokens), "probed") as progress:
        result, picture = probe_checkpoint(prepared, config, progress=progress)
    print_probe(result, rich.console.Console())
    say_written(folder, lambda: write_probe_report(result, picture, folder), console)
    return result
