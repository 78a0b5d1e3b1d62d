"""Massive activations and outlier features: what depends on what, and what k', v' write."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jax_massact.nn.acts import Acts
from jax_massact.nn.attention import weights
from jax_massact.nn.edits import Edits
from jax_massact.nn.transformer import Transformer, parameters
from jax_massact.results import MassiveRecord, OutlierFeature
from jax_massact.studies.collector import Found
from jax_massact.studies.fold.result import DirectPart, Followed, OutlierStudy
from jax_massact.studies.inputs import Inputs

MOST_DIMS = 16


def study_outliers(
    model: Transformer,
    folded: Transformer,
    whole: Inputs,
    inputs: Inputs,
    found: Sequence[Sequence[Found]],
    massive: Sequence[MassiveRecord],
    before: list[OutlierFeature],
    after: list[OutlierFeature],
) -> OutlierStudy:
    """Runs both models, and the original with one kind of activation set to zero.

    Args:
      model, whole: the original, and its sequences with the first token.
      folded, inputs: the same without it.
      found: what is massive in each sequence of `whole`.
      massive: of the original.
      before, after: the outlier features of both models.
    """
    dims = sorted({f["dim"] for f in before + after})[:MOST_DIMS]
    strict = [r for r in massive if r["strict"]]
    places = sorted({(r["dim"], r["first_layer"]) for r in strict})
    own = sorted({dim for dim, _ in places})
    first = {f["dim"]: f["first_layer"] for f in reversed(before)}
    none = Edits.set_to([0], np.zeros(whole.length, bool), [0], 0.0)
    streams = jax.jit(lambda model, tokens, edits: model.residual(
        tokens, tap=lambda acts: acts.resid_post.astype(jnp.float32), edits=edits)[1])
    direct = jax.jit(lambda model, tokens: model.residual(tokens, tap=_direct)[1])
    difference = largest = 0.0
    sums: dict[str, list[np.ndarray]] = {}

    def note(name: str, values: np.ndarray) -> None:
        sums.setdefault(name, []).append(values)

    for s in range(len(inputs)):
        tokens = whole.tokens[s : s + 1]
        at = massive_places(found[s], own, whole.length)
        others = np.logical_not(at.any(0))
        run = lambda edits, tokens=tokens: jax.device_get(streams(model, tokens, edits))[:, 0]
        plain = run(none)
        alone = jax.device_get(streams(folded, inputs.tokens[s : s + 1], None))[:, 0]
        difference = max(difference, float(np.abs(plain[:, 1:] - alone).max()))
        largest = max(largest, float(np.abs(alone).max()))
        note("direct", jax.device_get(direct(folded, inputs.tokens[s : s + 1]))[:, 0])
        mean = lambda x, others=others: x[:, others][:, :, dims].mean(1)
        note("outlier", mean(plain))
        note("mean", alone[:, :, dims].mean(1))
        if places and at.any():
            edits = _at(places, at[[own.index(dim) for dim, _ in places]])
            note("outlier_zeroed", mean(run(edits)))
            note("massive", _values(plain, own, at))
            if dims:
                edits = _at([(d, first.get(d, 0)) for d in dims], np.stack([others] * len(dims)))
                note("massive_zeroed", _values(run(edits), own, at))
    averages = {name: np.nanmean(np.stack(x).astype(np.float64), 0) for name, x in sums.items()}
    return OutlierStudy(
        before=before,
        after=after,
        stream_difference=difference / largest if largest else 0.0,
        outliers_without_massive=_followed(dims, averages, "outlier", "outlier_zeroed"),
        massive_without_outliers=_followed(own, averages, "massive", "massive_zeroed"),
        direct=_direct_parts(folded, dims, averages["mean"], averages["direct"], after),
    )


def massive_places(
    found: Sequence[Found], dims: Sequence[int], length: int
) -> Bool[np.ndarray, "N T"]:
    """At which tokens each dimension is massive after any block."""
    at = np.zeros((len(dims), length), bool)
    for hit in found:
        if hit.strict and hit.dim in dims:
            at[list(dims).index(hit.dim), hit.position] = True
    return at


def _at(places: Sequence[tuple[int, int]], tokens: Bool[np.ndarray, "E T"]) -> Edits:
    """Sets (dimension, block) to zero at these tokens."""
    layers, dims = [layer for _, layer in places], [dim for dim, _ in places]
    return Edits.set_to(layers, tokens, dims, 0.0)


def _values(stream: Float[np.ndarray, "L T D"], dims: Sequence[int], at) -> np.ndarray:
    """Mean of each dimension where it is massive [L, N]; NaN where it is nowhere."""
    return np.stack([stream[:, at[n], dim].mean(1) if at[n].any() else np.full(len(stream), np.nan)
                     for n, dim in enumerate(dims)], axis=1)


def _direct(acts: Acts) -> Float[Array, "B N H"]:
    """What the extra values give to each head, the mean over queries."""
    extra = acts.extra
    assert extra is not None and extra.value is not None
    found = weights(acts.q, acts.k, acts.mask, extra=extra, queries=jnp.arange(acts.q.shape[1]))
    given = jnp.einsum("bkgqr,rkh->bkgh", found.extra, extra.value.astype(jnp.float32),
                       precision=jax.lax.Precision.HIGHEST) / acts.q.shape[1]
    return given.reshape(given.shape[0], -1, given.shape[-1])


def _direct_parts(
    folded: Transformer, dims: Sequence[int], mean: Float[np.ndarray, "L N"],
    given: Float[np.ndarray, "L H V"], features: Sequence[OutlierFeature],
) -> list[DirectPart]:
    """How much of each outlier feature's mean attention to k' has written, without detours."""
    block = folded.config.block
    if block.norms != "in":  # what is added is normed: it does not add up
        return []
    out = np.float64(jax.device_get(parameters(folded)["blocks.attn.out"])[..., list(dims)])
    part = np.einsum("lnh,lnhd->ld", given, out) * block.residual_scale
    sums: Any = np.cumsum(part, 0)
    parts = []
    for feature in features:
        if feature["dim"] not in dims:
            continue
        n = dims.index(feature["dim"])
        span = slice(feature["first_layer"], feature["last_layer"] + 1)
        peak = feature["first_layer"] + int(np.abs(mean[span, n]).argmax())
        parts.append(DirectPart(dim=feature["dim"], layer=peak, mean=float(mean[peak, n]),
                                direct=float(sums[peak, n])))
    return parts


def _followed(
    dims: Sequence[int], averages: dict[str, np.ndarray], name: str, zeroed: str
) -> list[Followed]:
    if zeroed not in averages:
        return []
    return [
        Followed(dim=dim, original=averages[name][:, n].tolist(),
                 zeroed=averages[zeroed][:, n].tolist())
        for n, dim in enumerate(dims)
    ]
