"""Probing many sequences: batches stream through the device, and only totals are kept."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_massact.measure.definition import Definition
from jax_massact.measure.magnitudes import (
    QUANTILES,
    THRESHOLDS,
    Magnitudes,
    Places,
    magnitudes_tap,
    map_first_dims,
)
from jax_massact.measure.massive import (
    Hits,
    Massive,
    Tally,
    decide,
    find_hits,
    tally,
)
from jax_massact.nn import sharded
from jax_massact.nn.transformer import Transformer
from jax_massact.results import (
    ActivationMap,
    LayerStats,
    Prompt,
    TopEntry,
)
from jax_massact.studies.inputs import ImageInputs, Inputs
from jax_massact.studies.passes import Batch, Reading, compile_reading

PROMPT_TOKENS = 512
# One number of each sequence, which has its name in both and is averaged. NaN and infinity are
# counted over all sequences.
MEANS = tuple(
    name for name in Magnitudes._fields
    if name in LayerStats.__annotations__ and name not in ("top", "quantile", "nonfinite")
)


class BatchProbe(NamedTuple):
    """What one batch sends back from the device.

    Attributes:
      sequences: the numbers of each sequence that the report averages, without what is only
        tallied.
    """

    sequences: Magnitudes
    tally: Tally
    hits: Hits
    places: Places
    map: jax.Array


def probe_reading(*, top_k: int, definition: Definition) -> Reading:
    """A batch's statistics; its data says which sequences count in the tally."""
    return Reading(
        lambda acts, keep: magnitudes_tap(acts, top_k=top_k, definition=definition),
        lambda stats, losses, keep: reduce_batch(stats, keep, definition),
    )


def kept(inputs: Inputs | ImageInputs, size: int) -> Iterator[Batch]:
    """The batches of `inputs`, as `probe_reading` takes them."""
    return (Batch(tokens, keep) for _, tokens, keep in inputs.batches(size))


def reduce_batch(
    stats: Magnitudes, keep: Bool[Array, " B"], definition: Definition | None = None
) -> BatchProbe:
    """What of a batch's statistics goes to the host."""
    tallied: Any = None
    return BatchProbe(
        stats._replace(outliers=tallied, places=tallied, map=tallied),
        tally(stats, definition, keep=keep),
        find_hits(stats, definition),
        stats.places,
        first_sequence(stats.map),
    )


def first_sequence(x: Float[Array, "L B ..."]) -> Float[Array, "L 1 ..."]:
    """That of the first sequence, on every device: over a mesh it lies on some of them only."""
    return sharded.entries(x, (slice(None), np.zeros(1, int)))


def compile_probe(
    model: Any, shape: tuple[int, ...], *, top_k: int, definition: Definition
) -> Callable[[Transformer, np.ndarray, np.ndarray], BatchProbe]:
    """`probe_reading` compiled for batches of this shape: [B, T], or of images [B, Y, X, C].

    Args:
      model: a model, or its shapes alone; see `compile_reading`.
    """
    tokens = jax.ShapeDtypeStruct(shape, jnp.int32 if len(shape) == 2 else jnp.uint8)
    keep = jax.ShapeDtypeStruct(shape[:1], jnp.bool_)
    reading = probe_reading(top_k=top_k, definition=definition)
    return compile_reading(reading, model, tokens, keep)


class Whereabouts(NamedTuple):
    """Where one dimension's massive activations sit, over all sequences.

    Attributes:
      first: the sequence and the position of the first one.
    """

    first: tuple[int, int]
    positions: collections.Counter
    tokens: collections.Counter
    kinds: collections.Counter


class Probed(NamedTuple):
    """Everything `summarize` needs; its size does not grow with the number of sequences."""

    layers: list[LayerStats]
    massive: Massive
    tally: Tally
    where: dict[int, Whereabouts]
    prompt: Prompt
    map: ActivationMap
    kinds: Sequence[str]


def probe_inputs(
    batches: Iterable[BatchProbe],
    inputs: Inputs | ImageInputs,
    *,
    definition: Definition,
    progress: Callable[[int], None] = lambda done: None,
) -> Probed:
    """Merges batches of results.

    Args:
      batches: what `probe_reading` gives for those of `inputs`, in order.
      progress: called with the number of sequences done.
    """
    collector = Collector(definition, inputs)
    for batch in batches:
        collector.add(batch)
        progress(collector.sequences)
    return collector.probed()


class Found(NamedTuple):
    """One activation of one sequence that is over the relaxed threshold after a block."""

    layer: int
    position: int
    dim: int
    value: float
    strict: bool


class Collector:
    """Merges the batches of one run; what it holds does not grow with the number of sequences.

    Args:
      inputs: the sequences of the run, whose batches are added in order.
    """

    def __init__(self, definition: Definition, inputs: Inputs | ImageInputs) -> None:
        self.sequences = 0
        self._definition, self._inputs = definition, inputs
        self._total: Tally | None = None
        self._layers = _LayerTotals(inputs)
        self._where: dict[int, Whereabouts] = {}
        self._prompt: Prompt | None = None
        self._map: ActivationMap | None = None

    def add(self, batch: BatchProbe) -> list[list[Found]]:
        """Adds the next batch, already on the host; returns what was found in each sequence."""
        size = batch.hits.relaxed.shape[1]
        rows = slice(self.sequences, min(self.sequences + size, len(self._inputs)))
        n = rows.stop - rows.start
        part = jax.tree.map(np.float64, batch.tally)
        self._total = part if self._total is None else self._total.merge(part)
        sequences = jax.tree.map(lambda x: x[:, :n], batch.sequences)
        self._layers.add(sequences, self._inputs.ids(rows))
        found = [found_in(batch.hits, batch.places, b) for b in range(n)]
        for b in range(n):
            self._note_places(found[b], rows.start + b)
        if self._prompt is None:
            self._keep_first(batch, found[0])
        self.sequences = rows.stop
        return found

    def probed(self) -> Probed:
        """The verdict over all batches."""
        total, prompt, picture = self._total, self._prompt, self._map
        assert total is not None and prompt is not None and picture is not None
        verdict = jax.jit(decide, static_argnums=1)(
            jax.tree.map(np.float32, total), self._definition
        )
        massive = jax.device_get(verdict)
        return Probed(
            self._layers.means(), massive, total, self._where, prompt, picture, self._inputs.kinds
        )

    def _keep_first(self, batch: BatchProbe, found: list[Found]) -> None:
        places = {(f.position, f.dim) for f in found if f.position < PROMPT_TOKENS}
        self._prompt = Prompt(tokens=self._inputs.names(0, PROMPT_TOKENS), massive=sorted(places))
        magnitude = np.asarray(batch.map[:, 0])
        self._map = ActivationMap(
            magnitude=magnitude,
            first_dim=np.asarray(map_first_dims(batch.tally.anywhere.shape[0])),
            tokens=self._inputs.names(0, magnitude.shape[1]),
        )

    def _note_places(self, found: list[Found], sequence: int) -> None:
        strict_dims = {f.dim for f in found if f.strict}
        # A dimension with strict hits is described by those alone.
        described = {(f.position, f.dim) for f in found if f.strict or f.dim not in strict_dims}
        (ids,) = self._inputs.ids(slice(sequence, sequence + 1))
        for position, dim in sorted(described):
            kind = self._inputs.kind_at(sequence, position)
            counts = (collections.Counter() for _ in range(3))
            place = self._where.setdefault(dim, Whereabouts((sequence, position), *counts))
            place.positions[position] += 1
            place.tokens[self._inputs.name(ids[position]), kind] += 1
            place.kinds[kind] += 1


def found_in(hits: Hits, places: Places, b: int, first_layer: int = 0) -> list[Found]:
    """Every hit of sequence b, at any of the layers; arrays on the host.

    Args:
      first_layer: number of the first of these layers.
    """
    at = np.nonzero(hits.relaxed[:, b])
    columns = (places.position[:, b], places.dim[:, b], places.post[:, b], hits.strict[:, b])
    layers = (at[0] + first_layer).tolist()
    return [Found(*row) for row in zip(layers, *(c[at].tolist() for c in columns), strict=True)]


class _LayerTotals:
    """Running sums of the per-sequence numbers, in float64."""

    def __init__(self, inputs: Inputs | ImageInputs) -> None:
        self.inputs = inputs
        self.sequences = 0
        self.sums: dict[str, Any] = {}
        self.max: np.ndarray | None = None
        self.places: list[list[collections.Counter]] = []

    def add(self, batch: Magnitudes, rows: np.ndarray) -> None:
        value = np.asarray(batch.top.value, np.float64)
        largest = np.abs(value[:, :, 0]).max(1)
        self.max = largest if self.max is None else np.maximum(self.max, largest)
        sums = {
            "value": value,
            "magnitude": np.abs(value),
            "square": np.square(value),
            "quantile": batch.quantile,
            **batch.counts._asdict(),
            "nonfinite": batch.nonfinite,
            **{name: getattr(batch, name) for name in MEANS},
        }
        for name, x in sums.items():
            self.sums[name] = self.sums.get(name, 0) + np.float64(x).sum(1)
        L, n, k = value.shape
        if not self.places:
            self.places = [[collections.Counter() for _ in range(k)] for _ in range(L)]
        for layer in range(L):
            for b in range(n):
                for i in range(k):
                    position = int(batch.top.position[layer, b, i])
                    place = position, int(batch.top.dim[layer, b, i]), int(rows[b][position])
                    self.places[layer][i][place] += 1
        self.sequences += n

    def means(self) -> list[LayerStats]:
        assert self.max is not None
        n = self.sequences
        mean = {name: x / n for name, x in self.sums.items()}
        return [
            LayerStats(
                layer=layer,
                top=[self._top(mean, layer, i) for i in range(len(self.places[layer]))],
                median=float(mean["quantile"][layer, 0]),
                quantile={
                    f"{q:g}": float(mean["quantile"][layer, i])
                    for i, q in enumerate(QUANTILES)
                    if i
                },
                max=float(self.max[layer]),
                count_above=_by_threshold(mean["entries"][layer]),
                dims_above=_by_threshold(mean["dims"][layer]),
                tokens_above=_by_threshold(mean["tokens"][layer]),
                nonfinite=int(self.sums["nonfinite"][layer]),
                **{name: float(mean[name][layer]) for name in MEANS},
            )
            for layer in range(len(self.places))
        ]

    def _top(self, mean: dict[str, Any], layer: int, i: int) -> TopEntry:
        places = self.places[layer][i]
        by_place: dict[tuple[int, int], int] = {}
        for (position, dim, _), n in places.items():
            by_place[position, dim] = by_place.get((position, dim), 0) + n
        position, dim = max(by_place, key=lambda place: by_place[place])
        tokens = {t: c for (p, d, t), c in places.items() if (p, d) == (position, dim)}
        magnitude = float(mean["magnitude"][layer, i])
        return TopEntry(
            value=float(mean["value"][layer, i]),
            magnitude=magnitude,
            magnitude_std=float(np.sqrt(max(0.0, mean["square"][layer, i] - magnitude**2))),
            position=position,
            dim=dim,
            token=self.inputs.name(max(tokens, key=lambda t: tokens[t])),
            share=by_place[position, dim] / self.sequences,
        )


def _by_threshold(counts: Sequence[float]) -> dict[str, float]:
    return {f"{t:g}": float(c) for t, c in zip(THRESHOLDS, counts, strict=True)}
