"""Probing many sequences: batches stream through the device, and only totals are kept."""

import collections
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jax_massact.measure.definition import Definition
from jax_massact.measure.magnitudes import (
    QUANTILES,
    THRESHOLDS,
    Magnitudes,
    Places,
    magnitudes,
    map_first_dims,
)
from jax_massact.measure.massive import (
    SUBLAYERS,
    Hits,
    Massive,
    Tally,
    decide,
    find_hits,
    tally,
)
from jax_massact.measure.statistics import CountsAbove, Top
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import Transformer
from jax_massact.nn.variants import VARIANTS
from jax_massact.results import (
    ActivationMap,
    LayerStats,
    OutlierFeature,
    Prompt,
    TopEntry,
    Writer,
)
from jax_massact.results import Massive as MassiveRecord

MAX_LISTED = 16


SINK = "<sink>"  # how a learned embedding in front is called


PROMPT_TOKENS = 512


class PerSequence(NamedTuple):
    """The numbers of each sequence that the report averages; leading axes [L, B]."""

    top: Top
    quantile: jax.Array
    kurtosis: jax.Array
    counts: CountsAbove
    strict: jax.Array
    relaxed: jax.Array
    nonfinite: jax.Array


class BatchProbe(NamedTuple):
    """What one batch sends back from the device."""

    sequences: PerSequence
    tally: Tally
    hits: Hits
    places: Places
    map: jax.Array


def probe_batch(
    model: Transformer,
    tokens: Int[Array, "B T"],
    keep: Bool[Array, " B"],
    *,
    top_k: int = 5,
    definition: Definition | None = None,
) -> BatchProbe:
    """One batch's statistics; sequences that are not kept are left out of the tally."""
    stats = magnitudes(model, tokens, top_k=top_k, definition=definition)
    return reduce_batch(stats, keep, definition)


def reduce_batch(
    stats: Magnitudes, keep: Bool[Array, " B"], definition: Definition | None = None
) -> BatchProbe:
    """What of a batch's statistics goes to the host."""
    fields = {name: getattr(stats, name) for name in PerSequence._fields}
    return BatchProbe(
        PerSequence(**fields),
        tally(stats, definition, keep=keep),
        find_hits(stats, definition),
        stats.places,
        stats.map[:, :1],
    )


def compile_probe(
    model: Any, shape: tuple[int, int], *, top_k: int, definition: Definition
) -> Callable[[Transformer, np.ndarray, np.ndarray], BatchProbe]:
    """`probe_batch` compiled for batches of this shape [B, T].

    Args:
      model: a decoder, or its shapes alone (`nn.decoder.abstract`), so that compiling can go on
        while the weights are being read.
    """

    def step(model, tokens, keep):
        return probe_batch(model, tokens, keep, top_k=top_k, definition=definition)

    tokens = jax.ShapeDtypeStruct(shape, jnp.int32)
    keep = jax.ShapeDtypeStruct(shape[:1], jnp.bool_)
    return jax.jit(step).lower(model, tokens, keep).compile()


class Whereabouts(NamedTuple):
    """Where one dimension's massive activations sit, over all sequences."""

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


def probe_sequences(
    step: Callable[..., BatchProbe],
    model: Transformer,
    tokens: Int[np.ndarray, "S T"],
    *,
    batch_size: int,
    definition: Definition,
    strings: Callable[[Iterable[int]], list[str]],
    kind: Callable[[str], str],
    progress: Callable[[int], None] = lambda done: None,
) -> Probed:
    """Streams `tokens` through `step`, batch by batch.

    Args:
      step: of `compile_probe`, for batches of [batch_size, T].
      strings: ids to token strings.
      kind: a token string to "delimiter" or "other".
      progress: called with the number of sequences done.
    """
    collector = Collector(definition, strings, kind, in_front=in_front(model.config))
    for rows, full, keep in batches(tokens, batch_size):
        collector.add(jax.device_get(step(model, full, keep)), rows)
        progress(collector.sequences)
    return collector.probed()


def batches(
    tokens: Int[np.ndarray, "S T"], batch_size: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(rows, the same filled up to the batch size, which of them to keep), in order.

    The last batch is filled up, so that one compilation serves all.
    """
    for start in range(0, len(tokens), batch_size):
        rows = tokens[start : start + batch_size]
        n = len(rows)
        full = np.concatenate([rows, np.repeat(rows[-1:], batch_size - n, axis=0)])
        yield rows, full, np.arange(batch_size) < n


def in_front(config: ModelConfig) -> int:
    """How many learned embeddings stand before the tokens of a sequence."""
    return VARIANTS[config.attention].tokens_in_front


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
      strings: ids to token strings.
      kind: a token string to "delimiter" or "other".
      in_front: how many learned embeddings stand before the tokens of a sequence.
    """

    def __init__(
        self,
        definition: Definition,
        strings: Callable[[Iterable[int]], list[str]],
        kind: Callable[[str], str],
        *,
        in_front: int = 0,
    ) -> None:
        def with_sink(ids: Iterable[int]) -> list[str]:
            ids = [int(i) for i in ids]
            return [SINK if i < 0 else strings([i])[0] for i in ids] if in_front else strings(ids)

        self.sequences = 0
        self._definition, self._strings, self._kind = definition, with_sink, kind
        self._front = np.full(in_front, -1)
        self._total: Tally | None = None
        self._layers = _LayerTotals()
        self._where: dict[int, Whereabouts] = {}
        self._prompt: Prompt | None = None
        self._map: ActivationMap | None = None

    def add(self, batch: BatchProbe, rows: Int[np.ndarray, "b T"]) -> list[list[Found]]:
        """Adds a batch, already on the host; returns what was found in each of its `rows`."""
        n = len(rows)
        rows = self.with_front(rows)
        part = jax.tree.map(np.float64, batch.tally)
        self._total = part if self._total is None else self._total.merge(part)
        self._layers.add(jax.tree.map(lambda x: x[:, :n], batch.sequences), rows, self._strings)
        found = [_found(batch, b) for b in range(n)]
        for b in range(n):
            self._note_places(found[b], rows[b])
        if self._prompt is None:
            self._keep_first(batch, rows[0], found[0])
        self.sequences += n
        return found

    def with_front(self, rows: Int[np.ndarray, "b T"]) -> Int[np.ndarray, "b S"]:
        """The ids as the model sees them: -1 for a learned embedding in front."""
        front = np.broadcast_to(self._front, (len(rows), len(self._front)))
        return np.concatenate([front, rows], axis=1)

    def probed(self) -> Probed:
        """The verdict over all batches."""
        total, prompt, picture = self._total, self._prompt, self._map
        assert total is not None and prompt is not None and picture is not None
        verdict = jax.jit(decide, static_argnums=1)(
            jax.tree.map(np.float32, total), self._definition
        )
        massive = jax.device_get(verdict)
        return Probed(self._layers.means(), massive, total, self._where, prompt, picture)

    def kind_of(self, row: Int[np.ndarray, " T"], position: int) -> str:
        """ "first", "delimiter" or "other"."""
        return "first" if position == 0 else self._kind(self._strings([int(row[position])])[0])

    def _keep_first(self, batch: BatchProbe, row: np.ndarray, found: list[Found]) -> None:
        places = {(f.position, f.dim) for f in found if f.position < PROMPT_TOKENS}
        self._prompt = Prompt(
            tokens=self._strings(row[:PROMPT_TOKENS]), massive=sorted(places)
        )
        magnitude = np.asarray(batch.map[:, 0])
        self._map = ActivationMap(
            magnitude=magnitude,
            first_dim=np.asarray(map_first_dims(batch.tally.anywhere.shape[0])),
            tokens=self._strings(row[: magnitude.shape[1]]),
        )

    def _note_places(self, found: list[Found], row: np.ndarray) -> None:
        strict_dims = {f.dim for f in found if f.strict}
        # A dimension with strict hits is described by those alone.
        described = {(f.position, f.dim) for f in found if f.strict or f.dim not in strict_dims}
        for position, dim in described:
            piece = self._strings([int(row[position])])[0]
            name = self.kind_of(row, position)
            place = self._where.setdefault(
                dim, Whereabouts(*(collections.Counter() for _ in range(3)))
            )
            place.positions[position] += 1
            place.tokens[piece, name] += 1
            place.kinds[name] += 1


def _found(batch: BatchProbe, b: int) -> list[Found]:
    """Every hit of sequence b, at any layer."""
    hits = np.nonzero(batch.hits.relaxed[:, b])
    columns = (
        batch.places.position[:, b], batch.places.dim[:, b], batch.places.post[:, b],
        batch.hits.strict[:, b],
    )
    return [Found(*row) for row in zip(hits[0].tolist(), *(c[hits].tolist() for c in columns),
                                       strict=True)]


class _LayerTotals:
    """Running sums of the per-sequence numbers, in float64."""

    def __init__(self) -> None:
        self.sequences = 0
        self.sums: dict[str, Any] = {}
        self.max: np.ndarray | None = None
        self.places: list[list[collections.Counter]] = []

    def add(
        self,
        batch: PerSequence,
        rows: np.ndarray,
        strings: Callable[[Iterable[int]], list[str]],
    ) -> None:
        value = np.asarray(batch.top.value, np.float64)
        largest = np.abs(value[:, :, 0]).max(1)
        self.max = largest if self.max is None else np.maximum(self.max, largest)
        sums = {
            "value": value,
            "magnitude": np.abs(value),
            "square": np.square(value),
            "quantile": batch.quantile,
            "kurtosis": batch.kurtosis,
            "entries": batch.counts.entries,
            "dims": batch.counts.dims,
            "tokens": batch.counts.tokens,
            "strict": batch.strict,
            "relaxed": batch.relaxed,
            "nonfinite": batch.nonfinite,
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
        self.strings = strings

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
                kurtosis=float(mean["kurtosis"][layer]),
                max=float(self.max[layer]),
                count_above=_by_threshold(mean["entries"][layer]),
                dims_above=_by_threshold(mean["dims"][layer]),
                tokens_above=_by_threshold(mean["tokens"][layer]),
                strict=float(mean["strict"][layer]),
                relaxed=float(mean["relaxed"][layer]),
                nonfinite=int(self.sums["nonfinite"][layer]),
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
            token=self.strings([max(tokens, key=lambda t: tokens[t])])[0],
            share=by_place[position, dim] / self.sequences,
        )


def _by_threshold(counts: Sequence[float]) -> dict[str, float]:
    return {f"{t:g}": float(c) for t, c in zip(THRESHOLDS, counts, strict=True)}


def massive_records(probed: Probed) -> list[MassiveRecord]:
    """One record for each dimension with a hit: strict ones first, then by size."""
    m = probed.massive
    dims = sorted(np.nonzero(m.relaxed)[0], key=lambda d: (not m.strict[d], -abs(m.value_mean[d])))
    return [_record(probed, int(d)) for d in dims]


def _record(probed: Probed, d: int) -> MassiveRecord:
    m, where = probed.massive, probed.where[d]
    hits = sum(where.kinds.values())
    removed = int(m.remover_sublayer[d])
    return MassiveRecord(
        dim=d,
        strict=bool(m.strict[d]),
        first_layer=int(m.first_layer[d]),
        last_layer=int(m.last_layer[d]),
        peak_layer=int(m.peak_layer[d]),
        value_mean=float(m.value_mean[d]),
        value_std=float(probed.tally.value.std[m.peak_layer[d], d]),
        ratio=float(m.ratio[d]),
        share_of_sequences=float(m.share_of_sequences[d]),
        positions=[
            {"position": p, "sequences": n} for p, n in where.positions.most_common(MAX_LISTED)
        ],
        tokens=[
            {"token": t, "kind": kind, "sequences": n}
            for (t, kind), n in where.tokens.most_common(MAX_LISTED)
        ],
        kinds={k: where.kinds[k] / hits for k in ("first", "delimiter", "other")},
        written_by=Writer(
            layer=int(m.writer_layer[d]),
            sublayer=SUBLAYERS[m.writer_sublayer[d]],
            value=float(m.writer_value[d]),
        ),
        removed_by=None
        if removed < 0
        else Writer(
            layer=int(m.remover_layer[d]),
            sublayer=SUBLAYERS[removed],
            value=float(m.remover_value[d]),
        ),
        trajectory=[None if np.isnan(v) else float(v) for v in m.trajectory[:, d]],
    )


def outlier_records(probed: Probed) -> list[OutlierFeature]:
    """One record for each dimension that is an outlier feature of any sequence, largest first."""
    outlier, magnitude = probed.tally.outlier, probed.tally.outlier_magnitude
    records = []
    for d in np.nonzero(outlier.count.any(0))[0].tolist():
        layers = np.nonzero(outlier.count[:, d])[0]
        records.append(
            OutlierFeature(
                dim=d,
                first_layer=int(layers[0]),
                last_layer=int(layers[-1]),
                share_of_tokens=float(outlier.mean[:, d].max()),
                share_of_sequences=float(outlier.count[:, d].max() / probed.tally.sequences),
                magnitude=float(magnitude.mean[:, d].max()),
            )
        )
    return sorted(records, key=lambda r: -r["magnitude"])
