"""Registers of an encoder of images, folded into keys and values, and how far that moves it."""

import dataclasses
import math
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_massact.measure.definition import Definition
from jax_massact.measure.magnitudes import magnitudes_tap
from jax_massact.measure.registers import fix_registers, fold_registers, registers_of
from jax_massact.nn.transformer import Transformer
from jax_massact.results import SCHEMA_VERSION
from jax_massact.saving import save
from jax_massact.studies.collector import BatchProbe, Collector, reduce_batch
from jax_massact.studies.fold.images_result import Distance, FoldImagesResult
from jax_massact.studies.fold.settings import FoldConfig
from jax_massact.studies.frame import (
    PreparedImages,
    Progress,
    Stopwatch,
    data_info,
    definition_info,
    model_info,
    silent,
    versions,
)
from jax_massact.studies.image_scores import Judge, Output, joined, labels_of, output_of
from jax_massact.studies.inputs import ImageInputs
from jax_massact.studies.output import Outcome
from jax_massact.studies.records import massive_records, remarks

MODEL = "model"  # the subfolder that holds the folded model
# Of the last stream and of the features, relative to the largest.
ALLOWED_DIFFERENCE = {"float32": 1e-5, "bfloat16": 5e-2}


class Look(NamedTuple):
    """One forward pass: the stream after the last block, the output, what is massive."""

    stream: Float[Array, "B S D"]
    output: Output
    probe: BatchProbe


def run_images(
    prepared: PreparedImages, config: FoldConfig, progress: Progress = silent
) -> Outcome:
    """Folds the registers and compares the model with the fixed and with the unedited one.

    The means are over the first pictures; the comparison is on the others.

    Returns:
      A `FoldImagesResult`; its `save` writes the folded model where the settings ask for it.

    Raises:
      WeightsError: a weight cannot be read.
      DataError: there are fewer than two pictures, or one cannot be read.
    """
    watch, inputs = Stopwatch(), prepared.inputs
    first, whole = inputs.split(config.sequences)
    model = prepared.checkpoint.load_model(config.dtype)
    size = min(config.batch_size, len(inputs))
    means = _means(model, first, size)
    folded = jax.jit(fold_registers)(model, means)
    seconds = {"load_and_fold": watch.lap()}
    compared = _compare(model, folded, means, whole, size, config.definition, progress)
    seconds["compare"] = watch.lap()
    original, remaining = compared.before.probed(), compared.after.probed()
    labels, has_head = labels_of(whole.pictures.labels), model.config.head.present
    judge = Judge(compared.original, labels, inputs.cls, has_head)
    allowed = ALLOWED_DIFFERENCE[config.dtype]
    differences = {"stream": compared.stream.relative, "features": compared.features.relative}
    score = judge.score(compared.folded)
    numbers = {f"difference of the {name}": x for name, x in differences.items()}
    result = FoldImagesResult(
        schema=SCHEMA_VERSION,
        **remarks(original.layers, numbers | {"cosine": score["features"]["mean"]}),
        model=model_info(prepared, config.dtype, folded),
        registers=inputs.registers,
        calibration=len(first),
        data=data_info(prepared._replace(inputs=whole), config),
        difference=differences,
        allowed_difference=allowed,
        unchanged=max(differences.values()) <= allowed,
        original=judge.score(compared.original),
        folded=score,
        distance=compared.distance(),
        definition=definition_info(config.definition),
        massive_before=massive_records(original),
        massive_after=massive_records(remaining),
        largest_before=max(layer["max"] for layer in original.layers),
        largest_after=max(layer["max"] for layer in remaining.layers),
        saved_to=None,
        config=dataclasses.asdict(config),
        seconds=seconds,
        versions=versions(),
    )

    def save_model(folder: Path) -> None:
        if config.save:
            save(folded, folder / MODEL, pictures=prepared.checkpoint.pictures)
            result["saved_to"] = MODEL
        elif (folder / MODEL).exists():
            result["notices"].append(f"the model in {folder / MODEL} is of an earlier fold")

    return Outcome(result, save=save_model)


def _means(model: Transformer, inputs: ImageInputs, size: int) -> Float[np.ndarray, "L R D"]:
    read, total = jax.jit(registers_of), np.zeros(())
    for rows, pixels, _ in inputs.batches(size):
        values: Any = jax.device_get(read(model, pixels))
        total = total + values[:, : rows.stop - rows.start].sum(1, dtype=np.float64)
    return (total / len(inputs)).astype(np.float32)


class _Gap:
    """The largest difference of two arrays over the largest entry, batch by batch."""

    def __init__(self) -> None:
        self.difference = self.largest = 0.0

    def add(self, a: Any, b: Any) -> None:
        self.difference = max(self.difference, float(np.abs(a - b).max()))
        self.largest = max(self.largest, float(np.abs(a).max()))

    @property
    def relative(self) -> float:
        return self.difference / self.largest if self.largest else math.inf


class _Compared:
    """What the pictures have shown of the unedited, the fixed and the folded model.

    Attributes:
      before, after: what is massive in the unedited and in the folded model.
      stream, features: differences of the fixed and the folded model.
      original, folded: outputs.
    """

    def __init__(self, whole: ImageInputs, definition: Definition) -> None:
        self.before = Collector(definition, whole)
        self.after = Collector(definition, dataclasses.replace(whole, registers=0))
        self.stream, self.features = _Gap(), _Gap()
        self._outputs: dict[str, list[Output]] = {"original": [], "folded": []}
        self._moved: list[np.ndarray] = []

    @property
    def original(self) -> Output:
        return joined(self._outputs["original"])

    @property
    def folded(self) -> Output:
        return joined(self._outputs["folded"])

    def add(self, whole: Look, fixed: Look, own: Look, rest: np.ndarray, n: int) -> None:
        """Adds a batch, on the host; `rest`: positions of all tokens but the registers."""
        self.before.add(whole.probe)
        self.after.add(own.probe)
        self.stream.add(fixed.stream[:n, rest], own.stream[:n])
        self.features.add(fixed.output.features[:n], own.output.features[:n])
        for name, look in (("original", whole), ("folded", own)):
            self._outputs[name].append(jax.tree.map(lambda x: x[:n], look.output))
        self._moved.append(_moved(own.stream[:n], whole.stream[:n, rest]))

    def distance(self) -> dict[str, Distance]:
        """From the unedited to the folded model, over pictures."""
        found = {"features": _moved(self.folded.features, self.original.features),
                 "stream": np.concatenate(self._moved)}
        return {name: Distance(mean=float(x.mean()), max=float(x.max()))
                for name, x in found.items()}


def _moved(new: Any, old: Any) -> Float[np.ndarray, " B"]:
    """|new - old| / |old| of each picture."""
    new, old = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (new, old))
    return np.linalg.norm(new - old, axis=1) / np.linalg.norm(old, axis=1)


def _compare(
    model: Transformer, folded: Transformer, means: Float[np.ndarray, "L R D"],
    inputs: ImageInputs, size: int, definition: Definition, progress: Progress,
) -> _Compared:
    @jax.jit
    def look(model: Transformer, images: Array, keep: Bool[Array, " B"], edits: Any) -> Look:
        tap = lambda acts: magnitudes_tap(acts, top_k=1, definition=definition)
        x, stats = model.residual(images, tap=tap, edits=edits)
        return Look(x.astype(jnp.float32), output_of(model, x),
                    reduce_batch(stats, keep, definition))

    compared = _Compared(inputs, definition)
    edits = fix_registers(model.config, means, inputs.length)
    nothing = dataclasses.replace(edits, tokens=edits.tokens & False)
    rest = np.array([inputs.kind_of(position) != "register" for position in range(inputs.length)])
    for rows, pixels, keep in inputs.batches(size):
        # One compilation serves the unedited and the fixed model.
        looks = [(model, nothing), (model, edits), (folded, None)]
        found: list[Any] = [jax.device_get(look(m, pixels, keep, e)) for m, e in looks]
        compared.add(found[0], found[1], found[2], rest, rows.stop - rows.start)
        progress(rows.stop, len(inputs))
    return compared
