"""What every study does once: prepare, announce, compile while loading, run, write and print.

A study is a folder with a `run` module, whose `run(prepared, config, progress)` gives an `Outcome`
(`run_images`, if it has one, for encoders of images) and which has `STREAMS` if it can read blocks
from the file one at a time; and a `report` module, whose `show(result, console)` prints it and
whose `page` and `charts`, if it has them, make further files (see `output`); and one row of
`cli.table`.
"""

import concurrent.futures
import contextlib
import dataclasses
import importlib
import importlib.metadata
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np
import rich.console
import rich.progress

from jax_massact.data.images import pictures
from jax_massact.data.preprocessing import Preprocessing
from jax_massact.data.text import HELP, Documents, documents
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.data.windows import windows
from jax_massact.errors import ConfigError, DataError, WeightsError
from jax_massact.families.checkpoint import Checkpoint
from jax_massact.families.run_checkpoint import RunCheckpoint, is_run
from jax_massact.families.table import FAMILIES
from jax_massact.loading import open_checkpoint
from jax_massact.measure.definition import Definition
from jax_massact.nn.config import DType, ModelConfig
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer, abstract, parameters
from jax_massact.nn.variants import rows_in_front
from jax_massact.report.console import make_console
from jax_massact.results import (
    DataInfo,
    DefinitionInfo,
    ModelInfo,
)
from jax_massact.studies.fitting import why_streamed
from jax_massact.studies.inputs import ImageInputs, Inputs
from jax_massact.studies.output import finish, folder_for
from jax_massact.studies.settings import AUTO, DEFAULT_LENGTH, RunConfig


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that the numbers depend on, and the device."""
    names = ("jax-massact", "jax", "flax", "numpy", "tokenizers", "gguf", "safetensors")
    found = {name: importlib.metadata.version(name) for name in names}
    device = jax.devices()[0]
    python = ".".join(map(str, sys.version_info[:3]))
    return {"python": python, **found, "device": f"{device.platform} {device.device_kind}"}


class Stopwatch:
    """Seconds since it was made, or since its last lap."""

    def __init__(self) -> None:
        self.start = self.last = time.perf_counter()

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds


T = TypeVar("T")
# Called with the sequences done, and those of the whole run; or with blocks, and a line about them.
Progress = Callable[..., None]


def silent(done: int, total: int, line: str = "") -> None:
    """A `Progress` that says nothing."""


class Prepared(NamedTuple):
    """A checkpoint, opened but not read, and the sequences it is to be run on.

    Attributes:
      name: of the model, as the user gave it.
      text: the source of the sequences; without texts where they are rows of a training run.
      inputs: the sequences; every id has an embedding in the model.
      bos: whether every sequence begins with the BOS token.
      streamed: why the model's blocks are read from the file one at a time; empty: they are not.
    """

    name: str
    checkpoint: Checkpoint
    tokenizer: Tokenizer
    text: Documents
    inputs: Inputs
    bos: bool
    streamed: str = ""


class PreparedImages(NamedTuple):
    """As `Prepared`, of an encoder of images."""

    name: str
    checkpoint: Checkpoint
    inputs: ImageInputs


def prepare(source: str, config: RunConfig, step: int | None = None) -> Prepared:
    """Opens a checkpoint and cuts the text into sequences, `config.total` of them.

    Raises:
      WeightsError, ResourceError: the checkpoint cannot be used, or takes images.
      DataError: the text or the tokenizer cannot be, or the sequences are too long for the model.
    """
    prepared = prepare_any(source, config, step)
    if isinstance(prepared, PreparedImages):
        raise WeightsError(f"{source} is an encoder of images; expected: a model of text")
    return prepared


def prepare_any(
    source: str, config: RunConfig, step: int | None = None
) -> Prepared | PreparedImages:
    """As `prepare`, and for encoders of images: pictures in place of a text.

    Raises:
      DataError: also where there are no pictures.
      ConfigError: pictures cannot have the size that is asked for.
    """
    checkpoint = open_checkpoint(source, step)
    if checkpoint.pictures is not None:
        return _prepare_images(source, checkpoint, checkpoint.pictures, config)
    if config.images:
        raise ConfigError(f"images is {config.images!r}; {source} takes text; expected: text=...")
    limit = checkpoint.config.context_length - checkpoint.config.first_position - config.spare
    length = config.sequence_length
    chosen = length != DEFAULT_LENGTH
    if length > limit and not chosen:
        length = limit
    if length > limit:
        raise DataError(f"sequence_length is {length}; expected for this model: at most {limit}")
    config.check(checkpoint.config)
    path, scored_from = Path(source).expanduser(), 0
    if config.text == AUTO and is_run(path):
        # What trains takes a second to import, and only runs need it.
        from jax_massact.studies.held_out import sequences_of

        rows = sequences_of(
            path, count=config.total, length=length if chosen else None, bos=config.bos
        )
        tokenizer, tokens, bos = rows.tokenizer, rows.tokens[:, :length], rows.bos
        scored_from = rows.scored_from
        text = Documents(rows.description, ())
    else:
        tokenizer = checkpoint.load_tokenizer()
        # k' and v' of a folded model stand for its first token.
        folded = checkpoint.config.bias_position is not None
        bos = tokenizer.resolve_bos("false" if folded and config.bos == "auto" else config.bos)
        text = documents(HELP if config.text == AUTO else config.text, config.text_field)
        tokens = windows(
            text, tokenizer, sequences=config.total, sequence_length=length, bos=bos
        )
    if tokens.max() >= checkpoint.config.embed.vocab_size:
        raise DataError(
            f"the tokenizer gives id {tokens.max()}; the model of {checkpoint.path.name} has "
            f"embeddings for {checkpoint.config.embed.vocab_size} ids: they do not belong together"
        )
    front = rows_in_front(checkpoint.config)
    inputs = Inputs(tokens, tokenizer.token_strings, front, scored_from=scored_from)
    if isinstance(checkpoint, RunCheckpoint):
        source = f"{source}, step {checkpoint.path.name}"
    return Prepared(
        source, checkpoint, tokenizer, text, inputs, bos, _streamed(checkpoint, config)
    )


def _streamed(checkpoint: Checkpoint, config: RunConfig) -> str:
    """Why blocks are to be streamed; empty: they are not."""
    if config.stream == "true":
        return "blocks are streamed from the file"
    if config.stream == "false" or not checkpoint.places:
        return ""
    return why_streamed(checkpoint, config.dtype) or ""


def _prepare_images(
    source: str, checkpoint: Checkpoint, rule: Preprocessing, config: RunConfig
) -> PreparedImages:
    model, patches = checkpoint.config, checkpoint.config.embed.patches
    assert patches is not None
    if config.stream == "true":
        raise ConfigError(
            f"stream is 'true'; {source} is an encoder of images, which the commands load whole; "
            "expected: auto or false. In Python, ma.open streams it"
        )
    rule = rule.resized(config.image_size or rule.crop, patches.size)
    config.check(model)
    side, path = rule.crop // patches.size, Path(source).expanduser()
    if not config.images and is_run(path):
        from jax_massact.studies.held_out import pictures_of

        chosen = pictures_of(path, config.total)
    else:
        chosen = pictures(config.images, config.total)
    inputs = ImageInputs(
        chosen, rule, (side, side), patches.cls,
        rows_in_front(model) - patches.cls,
    )
    if isinstance(checkpoint, RunCheckpoint):
        source = f"{source}, step {checkpoint.path.name}"
    return PreparedImages(source, checkpoint, inputs)


def compile_while_loading(
    checkpoint: Checkpoint, dtype: DType, compile: Callable[[Any], T]
) -> tuple[T, Transformer]:
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


def data_info(prepared: Prepared | PreparedImages, config: RunConfig) -> DataInfo:
    """What was run, in plain words and numbers."""
    if isinstance(prepared, PreparedImages):
        return DataInfo(
            source=prepared.inputs.pictures.description, sequences=len(prepared.inputs),
            sequence_length=prepared.inputs.length, bos=False, bos_setting="false", bos_token=None,
        )
    return DataInfo(
        source=prepared.text.description,
        sequences=len(prepared.inputs),
        sequence_length=prepared.inputs.tokens.shape[1],
        bos=prepared.bos,
        bos_setting=config.bos,
        bos_token=prepared.tokenizer.bos_token,
    )


def model_info(
    prepared: Prepared | PreparedImages, dtype: DType, model: Transformer | BlockSource
) -> ModelInfo:
    """Which model was run."""
    c = prepared.checkpoint.config
    attention = c.block.attention
    return ModelInfo(
        name=Path(prepared.name).name,
        source=prepared.checkpoint.path.name,
        family=prepared.checkpoint.family,
        parameters=sum(leaf.size for leaf in parameters(abstract(model.config)).values()),
        depth=c.depth,
        width=c.width,
        num_heads=attention.heads,
        num_kv_heads=attention.kv_heads,
        head_dim=attention.head_dim,
        mlp_dim=c.block.mlp.hidden,
        vocab_size=c.embed.vocab_size if c.head.present or c.embed.patches is None else 0,
        dtype=dtype,
    )


def definition_info(definition: Definition) -> DefinitionInfo:
    """What counted as massive."""
    values = dataclasses.asdict(definition)
    share = values.pop("outlier_share")
    return DefinitionInfo(**(values | {"outlier": values["outlier"] | {"share": share}}))


def announce(
    prepared: Prepared | PreparedImages, config: RunConfig, console: rich.console.Console
) -> None:
    """Says what will be run: the sequences, their source, the choice of BOS and where it is from.

    What is doubtful about the tokenizer or the beginning of the sequences is noted.
    """
    if isinstance(prepared, PreparedImages):
        inputs = prepared.inputs
        rule, (rows, columns) = inputs.prepare, inputs.grid
        resize = "squashed to" if rule.resize == "squash" else "shorter side to"
        console.print(
            f"{prepared.name}: {len(inputs)} pictures of {inputs.pictures.description}, {resize} "
            f"{rule.edge} ({rule.filter}), cut to {rule.crop} px: {rows} x {columns} patches"
        )
        return
    found, length = prepared.inputs.tokens.shape
    tokenizer = prepared.tokenizer
    if prepared.text.texts:
        bos = tokenizer.bos_words(config.bos, prepared.bos)
    elif prepared.bos:
        first = prepared.inputs.name(int(prepared.inputs.tokens[0, 0]))
        bos = f"each beginning with {first!r}, as in training"
    else:
        bos = "which begin anywhere in it"
    console.print(
        f"{prepared.name}: {found} x {length} tokens of {prepared.text.description}, {bos}"
    )
    if prepared.streamed:
        console.print(f"note: {prepared.streamed}")
    twice = tokenizer.second_bos(prepared.inputs.tokens) if prepared.bos else None
    for note in filter(None, (*tokenizer.notes, twice, _without_bos(prepared, config))):
        console.print(f"note: {note}")
    if found < config.total and not prepared.text.literal:
        console.print(f"the text holds {found} of the {config.total} sequences asked for")


def _without_bos(prepared: Prepared, config: RunConfig) -> str | None:
    """A warning where a tokenizer leaves out what a family's models were trained with."""
    checkpoint = prepared.checkpoint
    of_run = isinstance(checkpoint, RunCheckpoint) or is_run(checkpoint.path.parent)
    if config.bos != "auto" or prepared.bos or of_run:
        return None
    family = next((f for f in FAMILIES if f.model_type == checkpoint.family), None)
    if family is None or not family.bos:
        return None
    return (
        f"{family.about} was trained with BOS in front of every sequence, and this tokenizer puts "
        "none there (--config.bos=true does)"
    )


@contextlib.contextmanager
def progress_bar(console: rich.console.Console) -> Iterator[Progress]:
    """A bar on a terminal, a line every tenth of the way in a log."""
    if console.is_terminal:
        columns = rich.progress.Progress.get_default_columns()
        with rich.progress.Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("running", total=None)
            yield lambda done, total, line="running": bar.update(
                task, completed=done, total=total, description=line
            )
        return
    seen = {True: 0, False: 0}  # of blocks, of sequences

    def say(done: int, total: int, line: str = "") -> None:
        kind, tenth = bool(line), max(1, total // 10)
        if done // tenth > seen[kind] // tenth or done == total:
            console.print(line or f"ran {done} of {total} sequences")
        seen[kind] = done

    yield say


def _streamed_or_loaded(
    prepared: Prepared, config: RunConfig, name: str, streams: bool
) -> Prepared:
    """As prepared; loaded whole if the study cannot stream and was not told to."""
    if streams or not prepared.streamed:
        return prepared
    if config.stream == "true":
        raise ConfigError(
            f"stream is 'true', and {name} loads the model whole; expected: auto or false"
        )
    return prepared._replace(streamed="")


def run_study(
    name: str,
    source: str,
    config: RunConfig,
    workdir: str | None,
    step: int | None = None,
    following: Callable[[ModelConfig], str | None] = lambda model: None,
) -> int:
    """Runs a study on a model and leaves what it found in a folder; the process's exit code.

    Args:
      name: of its folder in this package.
      source: the model, as for `load`.
      workdir: the folder for results; None: massact_out/MODEL.
      step: the checkpoint of a training run, as for `load`.
      following: of a model, the study that goes on from this one, for the last line.

    Raises:
      UserError: the checkpoint, the text, a setting or the folder cannot be used.
    """
    console = make_console(stderr=True)
    named = source if step is None else f"{source}-{step}"
    with folder_for(workdir, named, console) as folder:
        prepared = prepare_any(source, config, step)
        study = importlib.import_module(f"jax_massact.studies.{name}.run")
        if isinstance(prepared, PreparedImages) and not hasattr(study, "run_images"):
            raise WeightsError(f"{source} is an encoder of images; expected: a model of text")
        if isinstance(prepared, Prepared):
            prepared = _streamed_or_loaded(prepared, config, name, hasattr(study, "STREAMS"))
        announce(prepared, config, console)
        # What is not finite is reported by its layer; NumPy would warn of every sum over it.
        with progress_bar(console) as progress, np.errstate(invalid="ignore", over="ignore"):
            run = study.run_images if isinstance(prepared, PreparedImages) else study.run
            outcome = run(prepared, config, progress)
        then = []
        after = following(prepared.checkpoint.config)
        if after and outcome.result.get("massive", True):
            then = [after, source, *([f"--step={step}"] if step is not None else ()),
                    *([f"--workdir={workdir}"] if workdir else ())]
        return finish(name, outcome, folder, console, then)
