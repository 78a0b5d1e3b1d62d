"""Interventions on an encoder of images: what its output is when activations are changed."""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from jax_massact.errors import DataError
from jax_massact.nn.edits import Additions, Edits
from jax_massact.nn.transformer import Transformer
from jax_massact.results import SCHEMA_VERSION
from jax_massact.studies.collector import Collector, Found, compile_probe
from jax_massact.studies.frame import (
    PreparedImages,
    Progress,
    Stopwatch,
    compile_while_loading,
    data_info,
    definition_info,
    model_info,
    silent,
    versions,
)
from jax_massact.studies.image_scores import (
    ImageScore,
    Judge,
    Output,
    embedding_width,
    joined,
    labels_of,
    mean_score,
    output_of,
    read_texts,
)
from jax_massact.studies.intervene.image_registers import FixedRegisters
from jax_massact.studies.intervene.images_result import ImageInterveneResult, ImageTarget
from jax_massact.studies.intervene.names import CHANGES
from jax_massact.studies.output import Outcome
from jax_massact.studies.records import massive_records, remarks
from jax_massact.studies.settings import InterveneConfig
from jax_massact.studies.targets import TargetPlace, choose_targets

DRAWS = 5  # of the random vector
_LISTED = 16


class Seen(NamedTuple):
    """The targets in the unedited streams of a batch."""

    columns: Float[Array, "E B S"]
    next: Float[Array, "E B D"]  # magnitudes at the token that is largest in the dimension


def _see(
    model: Transformer, images: UInt8[Array, "B Y X C"], layers: Int[Array, " E"],
    dims: Int[Array, " E"],
) -> Seen:
    def tap(acts):
        columns = jnp.moveaxis(acts.resid_post[..., dims], -1, 0).astype(jnp.float32)
        place = jnp.abs(columns).argmax(-1)
        at = jax.vmap(lambda p: jax.vmap(lambda x, p: x[p])(acts.resid_post, p))(place)
        return Seen(columns, jnp.abs(at.astype(jnp.float32)))

    found = model.residual(images, tap=tap)[1]
    pick = lambda x: jax.vmap(lambda x, l: x[l], (1, 0))(x, layers)
    return Seen(*map(pick, found))


def _output(model: Transformer, images: Any, edits: Sequence[Any]) -> Output:
    return output_of(model, model.residual(images, edits=edits)[0])


def run_images(
    prepared: PreparedImages, config: InterveneConfig, progress: Progress = silent
) -> Outcome:
    """Finds massive activations in pictures and changes them, beside controls of equal size.

    Where nothing is massive, the largest activation over its layer's median is changed. Means are
    over the other pictures, so that none is needed for calibration.

    Raises:
      WeightsError: a weight cannot be read.
      ConfigError: `config.layers` names a layer that holds nothing massive.
      DataError: there are fewer than two pictures, one cannot be read, or the text embeddings
        cannot be used.
    """
    watch = Stopwatch()
    inputs = prepared.inputs
    if len(inputs) < 2:
        raise DataError(
            f"{inputs.pictures.description} holds {len(inputs)} picture; expected: at least two, "
            "one of which gives the value that another is set to"
        )
    texts = None
    if config.text_embeddings:
        width = embedding_width(prepared.checkpoint.config)
        texts = read_texts(config.text_embeddings, inputs.pictures.classes, width)
    size, side = min(config.batch_size, len(inputs)), inputs.prepare.crop
    step, model = compile_while_loading(
        prepared.checkpoint, config.dtype,
        lambda shapes: compile_probe(
            shapes, (size, side, side, 3), top_k=1, definition=config.definition
        ),
    )
    seconds = {"load_and_compile": watch.lap()}
    collector, found = Collector(config.definition, inputs), []
    for _, pixels, keep in inputs.batches(size):
        found += collector.add(jax.device_get(step(model, pixels, keep)))
    probed = collector.probed()
    massive = massive_records(probed)
    targets, kind = _targets(massive, probed.layers, config, model.config.depth)
    seconds["probe"] = watch.lap()
    places = _Places(model, inputs, targets, kind, found, size)
    seconds["targets"] = watch.lap()
    registers = FixedRegisters(model, inputs, size) if inputs.registers else None
    outputs = _outputs(model, places, registers, config.seed, size, progress)
    seconds["intervene"] = watch.lap()
    labels = labels_of(inputs.pictures.labels)
    has_head = model.config.head.present
    judge = Judge(outputs["original"], labels, inputs.cls, has_head, texts)
    scores = _scores(outputs, judge)
    numbers = {f"cosine of {name}": s["features"]["mean"] for name, s in scores.items()}
    said = remarks(probed.layers, numbers)
    if kind == "largest":
        target = targets[0]
        said["notices"].append(
            "nothing is massive in these pictures, strict or relaxed: the activation that is the "
            f"largest over its layer's median is changed, dim {target.dim} after block "
            f"{target.layer}"
        )
    return Outcome(ImageInterveneResult(
        schema=SCHEMA_VERSION,
        **said,
        model=model_info(prepared, config.dtype, model),
        data=data_info(prepared, config),
        classes=len(set(inputs.pictures.labels)),
        definition=definition_info(config.definition),
        massive=massive,
        targets=places.records(kind),
        scores=scores,
        draws=DRAWS,
        config=dataclasses.asdict(config),
        seconds=seconds,
        versions=versions(),
    ))


def _targets(
    massive: Any, layers: Any, config: InterveneConfig, depth: int
) -> tuple[list[TargetPlace], str]:
    if massive:
        targets = choose_targets(massive, config.layers, depth)
        return targets, "strict" if targets[0].strict else "relaxed"
    chosen = [] if config.layers in ("first", "all") else list(map(int, config.layers.split(",")))
    some = [x for x in layers if not chosen or x["layer"] in chosen]
    best = max(some, key=lambda x: x["top"][0]["magnitude"] / max(x["median"], 1e-30))
    return [TargetPlace(best["layer"], best["top"][0]["dim"], False)], "largest"


class _Places:
    """Where the targets are in each picture, and what their values are there."""

    def __init__(
        self, model: Transformer, inputs: Any, targets: list[TargetPlace], kind: str,
        found: list[list[Found]], size: int,
    ) -> None:
        self.inputs, self.targets, self.width = inputs, targets, model.config.width
        self.layers = np.array([t.layer for t in targets], np.int32)
        self.dims = np.array([t.dim for t in targets], np.int32)
        E, S, T = len(targets), len(inputs), inputs.length
        self.tokens = np.zeros((E, S, T), bool)
        self.value = np.zeros((E, S, T), np.float32)
        following = np.zeros((E, self.width))
        see = jax.jit(_see)
        for rows, pixels, _ in inputs.batches(size):
            n = rows.stop - rows.start
            seen: Any = jax.device_get(see(model, pixels, self.layers, self.dims))
            self.value[:, rows] = seen.columns[:, :n]
            following += seen.next[:, :n].sum(1)
        for e, target in enumerate(targets):
            for s in range(S):
                if kind == "largest":
                    self.tokens[e, s, np.abs(self.value[e, s]).argmax()] = True
                else:
                    at = [hit.position for hit in found[s] if target.is_met_by(hit)]
                    self.tokens[e, s, at] = True
        following[:, np.unique(self.dims)] = -1
        self.next_dims = following.argmax(1).astype(np.int32)
        # Of each picture, where it has one.
        count = self.tokens.sum(-1)
        self.has = count > 0
        self.own = (self.value * self.tokens).sum(-1) / np.maximum(count, 1)

    def of_others(self, e: int, s: int, *, shuffle: bool) -> float:
        """The value of the next picture that has one, or the mean over all others."""
        others = [i for i in range(len(self.inputs)) if i != s and self.has[e, i]]
        if not others:
            return float(self.own[e, s])
        if shuffle:
            return float(self.own[e, min(others, key=lambda i: (i - s) % len(self.inputs))])
        return float(self.own[e, others].mean())

    def records(self, kind: str) -> list[ImageTarget]:
        """The targets, as the result states them."""
        found = []
        for e, target in enumerate(self.targets):
            names = collections.Counter(
                self.inputs.name(int(t)) for s in range(len(self.inputs))
                for t in np.nonzero(self.tokens[e, s])[0]
            )
            own = self.own[e, self.has[e]]
            found.append(ImageTarget(
                layer=target.layer, dim=target.dim, kind=kind,
                tokens=dict(names.most_common(_LISTED)),
                activations=int(self.tokens[e].sum()),
                value_mean=float(own.mean()), value_std=float(own.std()),
                next_dim=int(self.next_dims[e]),
            ))
        return found

    def changes(self, rows: slice, size: int, seed: int) -> dict[str, tuple[Edits, Additions]]:
        """The edits of each change for a batch of `size` pictures; all share one compilation."""
        E, T, n = len(self.targets), self.inputs.length, rows.stop - rows.start
        tokens = np.zeros((E, size, T), bool)
        tokens[:, :n] = self.tokens[:, rows]
        size_of = np.zeros((E, size, T), np.float32)
        size_of[:, :n] = np.abs(self.value[:, rows]) * self.tokens[:, rows]
        none, no_size = np.zeros_like(tokens), np.zeros_like(size_of)
        vectors = np.zeros((E, self.width), np.float32)

        def adding(size: np.ndarray, vector: np.ndarray) -> Additions:
            return Additions(jnp.asarray(self.layers), jnp.asarray(size), jnp.asarray(vector))

        def setting(dims: np.ndarray, mask: Bool[np.ndarray, "E B T"], value: Any):
            value = np.broadcast_to(np.asarray(value, np.float32), mask.shape)
            return Edits.set_to(self.layers, mask, dims, value), adding(no_size, vectors)

        def others(shuffle: bool) -> np.ndarray:
            value = np.zeros((E, size, 1), np.float32)
            for e in range(E):
                for b in range(n):
                    value[e, b] = self.of_others(e, rows.start + b, shuffle=shuffle)
            return value

        found = {
            "original": setting(self.dims, none, 0.0),
            "zero": setting(self.dims, tokens, 0.0),
            "mean": setting(self.dims, tokens, others(False)),
            "shuffle": setting(self.dims, tokens, others(True)),
            "control_next": setting(self.next_dims, tokens, 0.0),
        }
        for draw in range(DRAWS):
            rng = np.random.default_rng([seed, draw])
            random = rng.standard_normal(vectors.shape).astype(np.float32)
            random /= np.linalg.norm(random, axis=-1, keepdims=True)
            edits, _ = found["original"]
            found[f"control_random {draw}"] = edits, adding(size_of, random)
        return found


def _outputs(
    model: Transformer, places: _Places, registers: FixedRegisters | None, seed: int, size: int,
    progress: Progress,
) -> dict[str, Output]:
    """What every change ends with, of all pictures."""
    step, parts = jax.jit(_output), collections.defaultdict(list)
    for rows, pixels, _ in places.inputs.batches(size):
        n = rows.stop - rows.start
        changes: dict[str, tuple[Any, ...]] = dict(places.changes(rows, size, seed))
        if registers is not None:
            fixed = registers.edits(rows, pixels)
            nothing, plain = fixed.pop("original"), changes["original"]
            changes = {name: (*edits, nothing) for name, edits in changes.items()}
            changes |= {name: (*plain, edits) for name, edits in fixed.items()}
        for name, edits in changes.items():
            found = jax.device_get(step(model, pixels, edits))
            parts[name].append(jax.tree.map(lambda x, n=n: x[:n], found))
        progress(rows.stop, len(places.inputs))
    return {name: joined(each) for name, each in parts.items()}


def _scores(outputs: dict[str, Output], judge: Judge) -> dict[str, ImageScore]:
    scores = {name: judge.score(out) for name, out in outputs.items()}
    draws = [scores.pop(name) for name in list(scores) if name.startswith("control_random ")]
    scores["control_random"] = mean_score(draws)
    return {name: scores[name] for name in ("original", *CHANGES) if name in scores}
