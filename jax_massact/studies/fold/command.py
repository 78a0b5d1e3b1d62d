"""`massact fold`: a fixed first token as explicit k' and v'."""

import dataclasses

import rich.console

from jax_massact.errors import ConfigError
from jax_massact.save import save
from jax_massact.studies.fold.report import print_fold, write_fold_report
from jax_massact.studies.fold.result import FoldResult
from jax_massact.studies.fold.run import fold_checkpoint
from jax_massact.studies.fold.settings import FoldConfig
from jax_massact.studies.frame import (
    announce,
    make_folder,
    prepare,
    progress_bar,
    say_written,
)

MODEL = "model"  # the subfolder that holds the folded model


def run_fold(source: str, config: FoldConfig, workdir: str | None) -> FoldResult:
    """Folds a checkpoint, compares it with the original, and writes the folder.

    Raises:
      UserError: the checkpoint, the text, a setting or the folder cannot be used.
    """
    if config.bos == "true":
        raise ConfigError(
            "bos is 'true'; allowed for folding: auto or false. The first token is put in front "
            "of every sequence of the original model; see first_token"
        )
    config = dataclasses.replace(config, bos="false")
    console = rich.console.Console(stderr=True, highlight=False)
    folder = make_folder(workdir, source)
    prepared = prepare(source, config, spare=1)  # for the first token
    announce(prepared, config, console)
    with progress_bar(console, len(prepared.tokens), "compared") as progress:
        result, folded = fold_checkpoint(prepared, config, progress=progress)
    if config.save:
        save(folded, folder / MODEL, tokenizer=prepared.tokenizer)
        result["saved_to"] = MODEL
    print_fold(result, rich.console.Console())
    say_written(folder, lambda: write_fold_report(result, folder), console)
    if config.save:
        console.print(f"wrote {folder / MODEL}: massact probe {folder / MODEL}")
    return result
