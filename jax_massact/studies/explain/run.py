"""The mechanism of a checkpoint's massive activations, measured over many sequences."""

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Bool, Int

from jax_massact.data.windows import windows
from jax_massact.errors import DataError
from jax_massact.measure.mechanism import LayerMechanism, mechanism_tap
from jax_massact.nn.variants import variant_of
from jax_massact.results import SCHEMA_VERSION, MassiveRecord
from jax_massact.studies.collector import (
    Collector,
    Found,
    kept,
    probe_inputs,
    probe_reading,
)
from jax_massact.studies.explain.result import (
    AttentionMap,
    AttentionRecord,
    ExplainLayer,
    ExplainResult,
    Location,
    MeanStd,
    UpdateStats,
    VectorStats,
)
from jax_massact.studies.explain.settings import ExplainConfig
from jax_massact.studies.frame import (
    Prepared,
    Progress,
    Stopwatch,
    data_info,
    definition_info,
    model_info,
    silent,
    versions,
)
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.output import Outcome
from jax_massact.studies.passes import Batch, Job, Reading, ready
from jax_massact.studies.records import massive_records, remarks

VECTORS = ("stream", "normed", "keys", "values")

STREAMS = True  # see `frame.run_study`


def run(prepared: Prepared, config: ExplainConfig, progress: Progress = silent) -> Outcome:
    """Finds the massive tokens of every sequence, then measures what attention makes of them.

    Two passes over the text: which tokens are massive is known only after the layers that write
    them, and the first layers are measured as well. Then come the location studies.

    Returns:
      An `ExplainResult` and the attention map of the first sequence.

    Raises:
      WeightsError: a weight cannot be read.
      DataError: the text is too short for the location study.
    """
    watch = Stopwatch()
    inputs = prepared.inputs
    batch = min(config.batch_size, len(inputs))
    total_sequences = 2 * len(inputs) + len(bos_choices(prepared)) * config.location_sequences
    reading = probe_reading(top_k=1, definition=config.definition)
    runner = ready(prepared, config, reading, next(kept(inputs, batch)), progress)
    seconds = {"load_and_compile": watch.lap()}
    collector = Collector(config.definition, inputs)
    found: list[list[Found]] = []
    located = _location_inputs(prepared, config)
    # Of another shape than what `reading` is compiled for.
    there = probe_reading(top_k=1, definition=config.definition)
    jobs = [Job(there, kept(of, min(config.batch_size, len(of)))) for of in located.values()]
    first, *others = runner.start([Job(reading, kept(inputs, batch)), *jobs])
    for result in first:
        found += collector.add(result)
        progress(len(found), total_sequences)
    probed = collector.probed()
    massive = massive_records(probed)
    marks = mark_tokens(found, massive, (len(inputs), inputs.length))
    seconds["find"] = watch.lap()

    explained = Reading(
        lambda acts, massive: mechanism_tap(acts, massive, config.sink_length),
        lambda taps, losses, massive: taps,
    )
    padded = lambda at: np.concatenate([at, np.repeat(at[-1:], batch - len(at), axis=0)])
    batches = [Batch(tokens, padded(marks[rows])) for rows, tokens, _ in inputs.batches(batch)]
    results = runner.run(explained, batches)
    total = Totals(config.sink_epsilon)
    picture: AttentionMap | None = None
    for (rows, _, _), measured in zip(inputs.batches(batch), results, strict=True):
        at = marks[rows]
        n = len(at)
        total.add(jax.tree.map(lambda x, n=n: np.float64(x[:, :n]), measured))
        if picture is None:
            weight = measured.map[:, 0]
            shown = weight.shape[1]
            picture = AttentionMap(weight, inputs.names(0, shown), at[0, :shown].tolist())
        progress(len(inputs) + rows.stop, total_sequences)
    assert picture is not None
    has_extra = variant_of(runner.model.config).extra_key is not None
    layers = total.layers(has_extra)
    seconds["explain"] = watch.lap()
    locations = []
    done = 2 * len(inputs)
    for (bos, of), results in zip(located.items(), others, strict=True):
        note = lambda n, done=done: progress(done + n, total_sequences)
        probed_there = probe_inputs(results, of, definition=config.definition, progress=note)
        done += config.location_sequences
        locations.append(
            Location(
                bos=bos, sequences=len(of), sequence_length=of.tokens.shape[1],
                massive=massive_records(probed_there),
            )
        )
    seconds["locate"] = watch.lap()
    result = ExplainResult(
        schema=SCHEMA_VERSION,
        **remarks(probed.layers),
        model=model_info(prepared, config.dtype, runner.model),
        data=data_info(prepared, config),
        definition=definition_info(config.definition),
        massive=massive,
        massive_tokens=float(marks.sum(1).mean()),
        sink_epsilon=config.sink_epsilon,
        sink_length=config.sink_length,
        sink_rate=mean_std(total.sink_rate().mean(0)),
        layers=layers,
        locations=locations,
        config=dataclasses.asdict(config),
        seconds=seconds,
        versions=versions(),
    )
    return Outcome(result, (picture,))


def bos_choices(prepared: Prepared) -> list[bool]:
    """Whether sequences begin with BOS, for each location study that the text allows."""
    if not prepared.text.texts:
        return [prepared.bos]  # rows as a run was trained on; they cannot be cut anew
    return [False, True] if prepared.tokenizer.bos_id is not None else [False]


def mark_tokens(
    found: list[list[Found]], massive: list[MassiveRecord], shape: tuple[int, int]
) -> Bool[np.ndarray, "S T"]:
    """The massive tokens: those with an activation over the threshold, at any of the layers at
    which its dimension is massive.

    Of the strict dimensions only, if there are any; else of the relaxed ones.
    """
    strict = [r for r in massive if r["strict"]]
    spans = {r["dim"]: range(r["first_layer"], r["last_layer"] + 1) for r in strict or massive}
    marks = np.zeros(shape, bool)
    for s, hits in enumerate(found):
        for hit in hits:
            if hit.layer in spans.get(hit.dim, ()) and (hit.strict or not strict):
                marks[s, hit.position] = True
    return marks


def mean_std(values: np.ndarray) -> MeanStd:
    """Over sequences; NaN are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return MeanStd(mean=float("nan"), std=float("nan"))
    return MeanStd(mean=float(values.mean()), std=float(values.std()))


class _Vectors(NamedTuple):
    """Running sums of one kind of vector over sequences; [L] and [L, F]."""

    count: Any = 0.0
    squares: Any = 0.0  # of the sequences' counts
    norm: Any = 0.0
    dims: Any = 0.0
    direction: Any = 0.0
    own: Any = 0.0  # |direction|^2 of each sequence

    def plus(self, sums: Any) -> "_Vectors":
        return _Vectors(
            self.count + sums.count.sum(1),
            self.squares + np.square(sums.count).sum(1),
            self.norm + sums.norm.sum(1),
            self.dims + sums.dims.sum(1),
            self.direction + sums.direction.sum(1),
            self.own + np.square(sums.direction).sum((1, 2)),
        )

    def cosine(self, layer: int) -> float | None:
        """Mean cosine over all pairs of tokens of different sequences."""
        pairs = self.count[layer] ** 2 - self.squares[layer]
        if not pairs:
            return None
        return float((np.square(self.direction[layer]).sum() - self.own[layer]) / pairs)

    def mean(self, name: str, layer: int) -> float | None:
        count = self.count[layer]
        return float(getattr(self, name)[layer] / count) if count else None


class _Updates(NamedTuple):
    """Running sums of one part of the value updates, and its numbers for every sequence."""

    cosine: list[np.ndarray]  # [L] each
    deviation: list[np.ndarray]
    share: list[np.ndarray]
    queries: list[np.ndarray]
    mean: list[np.ndarray]  # sums over sequences, in place: [L F]
    direction: list[np.ndarray]
    square: list[np.ndarray]  # mean |u|^2 times queries, [L]


class Totals:
    """Merges `explain`'s sums over batches, in float64; its size hardly grows with them."""

    def __init__(self, epsilon: float) -> None:
        self.epsilon = epsilon
        self.sequences = 0
        self.heads: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}
        self.rates: list[np.ndarray] = []
        self.vectors = {
            (name, part): _Vectors() for name in VECTORS for part in ("massive", "other")
        }
        self.updates = {
            part: _Updates([], [], [], [], [], [], []) for part in ("massive", "other")
        }

    def add(self, batch: LayerMechanism) -> None:
        """Adds a batch of NumPy arrays with leading axes [L, B]."""
        a: Any = batch.attention
        self.sequences += a.sink.shape[1]
        self.rates += list((a.sink > self.epsilon).mean(-1).T)  # [L] for every sequence
        seen = (a.queries > 0)[..., None]
        for name in ("first", "extra", "massive", "logit_massive", "logit_other"):
            weight = seen if name in ("massive", "logit_massive") else np.ones_like(seen)
            x = getattr(a, name)
            self.heads[name] = self.heads.get(name, 0) + (x * weight).sum(1)
            self.weights[name] = self.weights.get(name, 0) + weight.sum(1)
        for name in VECTORS:
            for part in ("massive", "other"):
                key = name, part
                sums = getattr(getattr(batch, name), part)
                self.vectors[key] = self.vectors[key].plus(sums)
        for part in ("massive", "other"):
            self._add_updates(self.updates[part], getattr(a, f"{part}_update"), a.queries)

    def _add_updates(self, into: _Updates, m: Any, queries: np.ndarray) -> None:
        for b in range(queries.shape[1]):
            n = queries[:, b]
            norm = np.linalg.norm(m.mean[:, b], axis=-1)
            cosine, deviation = _constancy(m.mean[:, b], m.direction[:, b], m.square[:, b], norm)
            none = (n == 0) | (norm == 0)
            into.cosine.append(np.where(none, np.nan, cosine))
            into.deviation.append(np.where(none, np.nan, deviation))
            into.share.append(np.where(n == 0, np.nan, m.share[:, b]))
            into.queries.append(n)
            parts = (
                (into.mean, n[:, None] * m.mean[:, b]),
                (into.direction, n[:, None] * m.direction[:, b]),
                (into.square, n * (m.square[:, b] + norm**2)),
            )
            for total, part in parts:
                total[:] = [part] if not total else [total[0] + part]

    def sink_rate(self) -> np.ndarray:
        """[L, S]."""
        return np.stack(self.rates, axis=1)

    def layers(self, has_extra: bool) -> list[ExplainLayer]:
        """The means, layer by layer."""
        L = len(self.rates[0])
        return [self._layer(layer, has_extra) for layer in range(L)]

    def _layer(self, l: int, has_extra: bool) -> ExplainLayer:
        def heads(name: str) -> list[float] | None:
            weight = self.weights[name][l]
            return (self.heads[name][l] / weight).tolist() if weight.all() else None

        values = self._vector("values", l)
        drain = None
        if values["norm_massive"] is not None and values["norm_other"]:
            drain = values["norm_massive"] / values["norm_other"]
        return ExplainLayer(
            layer=l,
            attention=AttentionRecord(
                sink_rate=mean_std(self.sink_rate()[l]),
                first=heads("first") or [],
                massive=heads("massive"),
                extra=heads("extra") if has_extra else None,
                logit_massive=heads("logit_massive"),
                logit_other=heads("logit_other") or [],
            ),
            stream=self._vector("stream", l),
            normed=self._vector("normed", l),
            keys=self._vector("keys", l),
            values=values,
            value_drain=drain,
            massive_update=self._update("massive", l),
            other_update=self._update("other", l),
        )

    def _vector(self, name: str, l: int) -> VectorStats:
        massive, other = (self.vectors[name, part] for part in ("massive", "other"))
        return VectorStats(
            norm_massive=massive.mean("norm", l),
            norm_other=other.mean("norm", l) or 0.0,
            cosine_massive=massive.cosine(l),
            cosine_other=other.cosine(l),
            dims_massive=massive.mean("dims", l),
            dims_other=other.mean("dims", l) or 0.0,
        )

    def _update(self, part: str, l: int) -> UpdateStats | None:
        u = self.updates[part]
        queries = sum(n[l] for n in u.queries)
        if not queries:
            return None
        mean, direction = u.mean[0][l] / queries, u.direction[0][l] / queries
        norm = np.linalg.norm(mean)
        square = max(u.square[0][l] / queries - norm**2, 0.0)
        cosine, deviation = _constancy(mean, direction, square, norm)
        of = lambda rows: mean_std(np.array([row[l] for row in rows]))
        return UpdateStats(
            cosine=of(u.cosine),
            deviation=of(u.deviation),
            cosine_pooled=float(cosine),
            deviation_pooled=float(deviation),
            share=of(u.share),
        )


def _constancy(mean, direction, square, norm):
    """Mean cosine of vectors u to their mean, and their relative deviation from it.

    E[cos(u, m)] = E[u / |u|].m / |m| and sqrt(E|u - m|^2) / |m|, m = E[u]: one pass is enough.
    """
    size = np.maximum(norm, np.finfo(np.float64).tiny)
    return (direction * mean).sum(-1) / size, np.sqrt(square) / size


def _location_inputs(prepared: Prepared, config: ExplainConfig) -> dict[bool, Inputs]:
    """The many sequences of the location studies, without and with BOS."""
    if not config.location_sequences:
        return {}
    return {
        bos: dataclasses.replace(prepared.inputs, tokens=_location_tokens(prepared, config, bos))
        for bos in bos_choices(prepared)
    }


def _location_tokens(
    prepared: Prepared, config: ExplainConfig, bos: bool
) -> Int[np.ndarray, "S T"]:
    c = prepared.checkpoint.config
    length = min(config.location_length, c.context_length - c.first_position)
    if not prepared.text.texts:
        return prepared.inputs.tokens[: config.location_sequences, :length]
    try:
        return windows(
            prepared.text, prepared.tokenizer, sequences=config.location_sequences,
            sequence_length=length, bos=bos,
        )
    except DataError as error:
        raise DataError(
            f"the location study: {error}. location_sequences=0 leaves it out"
        ) from None
