"""`massact probe`: prints what was found and writes the folder."""

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import rich.console
import rich.progress

from jax_massact.config import ProbeConfig, RunConfig
from jax_massact.errors import UserError
from jax_massact.probe.checkpoint import Prepared, prepare, probe_checkpoint
from jax_massact.probe.result import ProbeResult
from jax_massact.report import print_probe, write_probe_report


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


def say_written(
    folder: Path, write: Callable[[], list[Path]], console: rich.console.Console
) -> None:
    """Writes a report and says what was written.

    Raises:
      UserError: the folder cannot be written to.
    """
    try:
        written = write()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    figures = f" and {len(written) - 2} figures" if len(written) > 2 else ""
    console.print(f"wrote {written[0]}, {written[1].name}{figures}")


def make_folder(workdir: str | None, source: str) -> Path:
    """The folder for results, made now: a run should not fail after its work is done."""
    name = re.sub(r"[^\w.-]+", "_", Path(source).name or "model")
    folder = Path(workdir).expanduser() if workdir else Path("massact_out") / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        trial = folder / ".writable"
        trial.touch()
        trial.unlink()
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror or error}") from None
    return folder


def announce(
    prepared: Prepared, config: RunConfig, console: rich.console.Console, wanted: int | None = None
) -> None:
    """Says what will be run before it is: the sequences, their source, and the choice of BOS."""
    found, length = prepared.tokens.shape
    bos = f"{'with' if prepared.bos else 'without'} BOS (bos={config.bos})"
    console.print(
        f"{prepared.name}: {found} x {length} tokens of {prepared.text.description}, {bos}"
    )
    wanted = wanted or config.sequences
    if found < wanted and not prepared.text.literal:
        console.print(f"the text holds {found} of the {wanted} sequences asked for")


@contextlib.contextmanager
def progress_bar(
    console: rich.console.Console, total: int, verb: str
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line every tenth of the way in a log."""
    if console.is_terminal:
        columns = rich.progress.Progress.get_default_columns()
        with rich.progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task(verb, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    tenth = max(1, total // 10)
    seen = 0

    def line(done: int) -> None:
        nonlocal seen
        if done // tenth > seen // tenth or done == total:
            console.print(f"{verb} {done} of {total} sequences")
        seen = done

    yield line
