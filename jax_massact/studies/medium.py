"""Medium-scale activations of a model: statistics, writers and interventions.

A section of `massact probe` and `massact fold`.
"""

import collections
import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jax_massact.errors import ConfigError
from jax_massact.measure.medium import MediumSums, Written, medium_tap, written_tap
from jax_massact.nn.edits import BandEdits
from jax_massact.nn.stream import BlockSource
from jax_massact.nn.transformer import Transformer, abstract, parameters
from jax_massact.results import MediumDim, MediumLayer, MediumResult, TokenCount, Writer
from jax_massact.settings import check_float, check_int
from jax_massact.studies.collector import kept
from jax_massact.studies.inputs import Inputs
from jax_massact.studies.passes import LOSSES, Batch, Job, Reading, Runner

FEATURE, TOKEN = 0.5, 0.02  # shares of tokens
KINDS = ("feature", "mixed", "token")
MOST_DIMS, MOST_WRITERS, MOST_TOKENS = 24, 3, 5


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MediumConfig:
    """Activations of medium scale, between ordinary and massive.

    Attributes:
      sequences: of the last so many sequences the perplexity is measured with these activations
        changed; the others give the statistics. 0: this section is left out.
      low, high: between which magnitudes an activation is of medium scale.
    """

    sequences: int = 0
    low: float = 100.0
    high: float = 1000.0

    def __post_init__(self) -> None:
        check_int("medium.sequences", self.sequences, 0, 1_000_000)
        check_float("medium.low", self.low, 0.0, open_low=True)
        check_float("medium.high", self.high, self.low, open_low=True)


def check_medium(medium: MediumConfig, sequences: int) -> None:
    """Raises ConfigError unless some sequences are left for the statistics."""
    if medium.sequences >= sequences:
        raise ConfigError(
            f"medium.sequences is {medium.sequences}; expected: fewer than sequences, which is "
            f"{sequences}: the others give the statistics"
        )


def measure_medium(
    runner: Runner, inputs: Inputs, config: MediumConfig, *, batch_size: int
) -> MediumResult | None:
    """The section; None where it is not asked for, or the text is too short to leave any for it."""
    if not config.sequences or config.sequences >= len(inputs):
        return None
    first = len(inputs) - config.sequences
    calibration, held_out = inputs[:first], inputs[first:]
    size = min(batch_size, len(calibration))
    sums = _sums(runner, calibration, config, size)
    number = len(calibration) * calibration.length
    depth = runner.model.config.depth
    # The last block feeds the final norm alone.
    counted = np.arange(depth)[:, None] < max(1, depth - 1)
    hits = sums.hits * counted
    share = sums.over / number
    kind = np.where(share > FEATURE, 0, np.where(share < TOKEN, 2, 1))
    kind = np.where(hits > 0, kind, -1)
    chosen = _chosen(kind, hits, sums.hit_square)
    tokens, named = _tokens(runner, calibration, chosen, config, size)
    written = _written(runner, calibration, chosen, tokens, size)
    total = hits.sum()
    dims = [
        _record(runner, sums, kind, hits, number, record, tokens[n], named[n],
                jax.tree.map(lambda x, n=n: x[:, n], written))
        for n, record in enumerate(chosen)
    ]
    return MediumResult(
        low=config.low,
        high=config.high,
        sequences=len(calibration),
        activations=int(total),
        kinds={name: float(hits[kind == k].sum() / max(total, 1)) for k, name in enumerate(KINDS)},
        dims=dims,
        layers=_layers(sums, kind, hits, number),
        held_out=len(held_out),
        perplexity=_interventions(runner, held_out, sums, counted[:, 0], config),
    )


def _taps(taps: Any, losses: Any, data: Any) -> Any:
    return taps


def _sums(runner: Runner, inputs: Inputs, config: MediumConfig, size: int) -> MediumSums:
    reading = Reading(lambda acts, keep: medium_tap(acts, keep, config.low, config.high), _taps)
    return _total(runner.run(reading, kept(inputs, size)))


def _total(parts: Iterable[Any]) -> Any:
    """The sum of all, in float64."""
    total: Any = None
    for part in parts:
        part = jax.tree.map(np.float64, part)
        total = part if total is None else jax.tree.map(np.add, total, part)
    return total


def _chosen(kind, hits, squares) -> list[tuple[int, int, int]]:
    """(dimension, kind, peak layer) of what is described, most activations first."""
    found = []
    for k in range(len(KINDS)):
        own = np.where(kind == k, hits, 0)
        for d in np.nonzero(own.sum(0))[0].tolist():
            peak = int(np.where(kind[:, d] == k, squares[:, d], -1).argmax())
            found.append((own[:, d].sum(), (d, k, peak)))
    found.sort(key=lambda item: (-item[0], item[1]))
    return [record for _, record in found[:MOST_DIMS]]


def _tokens(
    runner: Runner, inputs: Inputs, chosen: list[tuple[int, int, int]], config: MediumConfig,
    size: int,
) -> tuple[Bool[np.ndarray, "N S T"], list[list[TokenCount]]]:
    """At which tokens each record's mean is taken: all, of kind token those of its activations at
    the peak; and the names of those."""
    tokens = np.ones((len(chosen), len(inputs), inputs.length), bool)
    named: list[list[TokenCount]] = [[] for _ in chosen]
    rare = [n for n, (_, k, _) in enumerate(chosen) if KINDS[k] == "token"]
    if not rare:
        return tokens, named
    dims = np.array([chosen[n][0] for n in rare])
    reading = Reading(lambda acts, data: acts.resid_post[..., dims], _taps)
    found = runner.run(reading, kept(inputs, size))
    for (rows, _, _), values in zip(inputs.batches(size), found, strict=True):
        columns = np.abs(np.float32(values))[:, : rows.stop - rows.start]
        for i, n in enumerate(rare):
            own = columns[chosen[n][2], :, :, i]
            tokens[n, rows] = (own > config.low) & (own < config.high)
    for n in rare:
        names: collections.Counter = collections.Counter()
        for s, t in zip(*np.nonzero(tokens[n]), strict=True):
            (ids,) = inputs.ids(slice(s, s + 1))
            names[inputs.name(ids[t]), inputs.kind_at(int(s), int(t))] += 1
        named[n] = [TokenCount(token=token, kind=kind, sequences=count)
                    for (token, kind), count in names.most_common(MOST_TOKENS)]
    return tokens, named


def _written(
    runner: Runner, inputs: Inputs, chosen: list[tuple[int, int, int]],
    tokens: Bool[np.ndarray, "N S T"], size: int,
) -> Written:
    """Means over those tokens, [L, N, ...]."""
    dims = np.array([d for d, _, _ in chosen], np.int32)

    def batches() -> Iterator[Batch]:
        for rows, ids, keep in inputs.batches(size):
            index = np.minimum(np.arange(rows.start, rows.start + size), rows.stop - 1)
            yield Batch(ids, (dims, tokens[:, index] & keep[:, None]))

    reading = Reading(lambda acts, data: written_tap(acts, *data), _taps)
    total = _total(runner.run(reading, batches()))
    number = np.maximum(tokens.sum((1, 2)), 1)
    return Written(total.attn / number, total.mlp / number, total.hidden / number[:, None])


def _record(
    runner: Runner, sums: MediumSums, kind, hits, number: int,
    record: tuple[int, int, int], tokens, named: list[TokenCount], written: Written,
) -> MediumDim:
    dim, k, peak = record
    layers = np.nonzero(kind[:, dim] == k)[0]
    mean, square = sums.value[:, dim] / number, sums.square[:, dim] / number
    constancy, spread = None, None
    if KINDS[k] == "token":
        n = hits[peak, dim]
        mean = sums.hit_value[:, dim] / np.maximum(hits[:, dim], 1)
        variance = sums.hit_square[peak, dim] / n - mean[peak] ** 2
        spread = float(math.sqrt(max(variance, 0.0)) / max(abs(mean[peak]), 1e-30))
    else:
        of_layers = (mean**2 / square)[layers]
        constancy = float(of_layers.min()), float(of_layers.max())
    sign = float(np.sign(mean[peak]))
    writers, unit, unit_share = _writers(runner.model, written, dim, peak, sign)
    return MediumDim(
        dim=dim,
        kind=KINDS[k],
        first_layer=int(layers[0]),
        last_layer=int(layers[-1]),
        peak_layer=peak,
        activations=int(hits[layers, dim].sum()),
        share=float(sums.over[peak, dim] / number),
        mean=float(mean[peak]),
        constancy=constancy,
        spread=spread,
        tokens=named,
        written_by=writers,
        unit=unit,
        unit_share=unit_share,
    )


def _writers(
    model: Transformer | BlockSource, written: Written, dim: int, peak: int, sign: float
) -> tuple[list[Writer], int | None, float | None]:
    """The sublayers up to the peak that add most along the sign, and the first MLP's unit."""
    parts = np.stack([written.attn[: peak + 1], written.mlp[: peak + 1]], axis=1)  # [l, 2]
    order = np.argsort(-(sign * parts).reshape(-1), kind="stable")[:MOST_WRITERS]
    found = [Writer(layer=int(i // 2), sublayer=("attn", "mlp")[i % 2],
                    value=float(parts.reshape(-1)[i])) for i in order]
    found = [writer for writer in found if writer["value"] * sign > 0]
    layer = next((w["layer"] for w in found if w["sublayer"] == "mlp"), None)
    down = "blocks.mlp.down"
    if layer is None or down not in parameters(abstract(model.config)):
        return found, None, None
    if isinstance(model, BlockSource):
        column = model.column(down, layer, dim)
    else:
        column = parameters(model)[down][layer, :, dim]
    given = written.hidden[layer] * np.float64(jax.device_get(column))
    unit = int(np.argmax(given * np.sign(given.sum())))
    return found, unit, float(given[unit] / given.sum())


def _layers(sums: MediumSums, kind, hits, number: int) -> list[MediumLayer]:
    stream = sums.square.sum(1)
    feature = kind == KINDS.index("feature")
    energy = np.where(feature, sums.square, 0).sum(1) / stream
    constant = np.where(feature, sums.value**2 / number, 0).sum(1) / stream
    rest = stream - sums.hit_square.sum(1)
    return [
        MediumLayer(
            layer=layer,
            activations=int(hits[layer].sum()),
            energy=float(energy[layer]),
            constant=float(constant[layer]),
            divided=math.sqrt(stream[layer] / rest[layer]) if rest[layer] > 0 else math.inf,
        )
        for layer in range(max(1, len(stream) - 1))
    ]


def _interventions(
    runner: Runner, inputs: Inputs, sums: MediumSums, layers: Bool[np.ndarray, " L"],
    config: MediumConfig,
) -> dict[str, float]:
    """Perplexities with the activations of medium scale changed in these blocks."""
    mean = sums.hit_value / np.maximum(sums.hits, 1)
    none, low = np.zeros_like(mean), config.low

    def edits(value: np.ndarray, limit: float = 0.0, *, on=True, ordinary=False) -> BandEdits:
        of = jnp.float32
        return BandEdits(
            jnp.asarray(layers & on), of(low), of(config.high), jnp.asarray(value, of), of(limit),
            jnp.asarray(ordinary),
        )

    changes = {
        "original": edits(none, on=False), "zero": edits(none), "mean": edits(np.asarray(mean)),
        "clip": edits(none, low), "control": edits(none, ordinary=True),
    }
    many = [Job(LOSSES, [Batch(tokens, edits=change) for _, tokens, _ in inputs.batches(1)])
            for change in changes.values()]
    losses = {
        name: np.mean([inputs.scored(x) for x in results])
        for name, results in zip(changes, runner.start(many), strict=True)
    }
    return {name: math.exp(loss) if loss < 709 else math.inf for name, loss in losses.items()}
