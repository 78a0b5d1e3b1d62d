"""The probe of an encoder of images: what is massive, and what becomes of each kind of token."""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, UInt8

from jax_massact.measure.definition import Definition
from jax_massact.measure.image_tokens import (
    MADS,
    MEDIANS,
    QUERIES,
    TokenStats,
    neighbour_cosine,
    outlier_patches,
    token_tap,
)
from jax_massact.measure.magnitudes import magnitudes_tap
from jax_massact.nn.transformer import Transformer
from jax_massact.results import SCHEMA_VERSION
from jax_massact.studies.collector import BatchProbe, Collector, reduce_batch
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
from jax_massact.studies.inputs import CLS, PATCH, REGISTER, ImageInputs
from jax_massact.studies.output import Outcome
from jax_massact.studies.probe.result import (
    ImageFindings,
    ImageLayer,
    OutlierPatch,
    ProbeResult,
)
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.studies.probe.super_weights import super_weight_records
from jax_massact.studies.records import massive_records, outlier_records, remarks

# Norms that the literature calls outliers: of DINOv2-L and g, and, smaller, of CLIP and others.
NORMS = (150.0, 75.0, 30.0)
LISTED, PICTURED = 64, 4


class ImageBatch(NamedTuple):
    """What one batch sends back from the device."""

    probe: BatchProbe
    tokens: TokenStats
    cosine: Float[Array, "B N"]


class PicturedImage(NamedTuple):
    """One picture for the page.

    Attributes:
      name: what it is called.
      pixels: as the model got it.
      norm: of its patches after every block.
      outlier: which of them are outliers.
      attention: of each token in front, or of the patches where there is none, to the patches.
    """

    name: str
    pixels: UInt8[np.ndarray, "Y X 3"]
    norm: Float[np.ndarray, "L rows columns"]
    outlier: Bool[np.ndarray, "L rows columns"]
    attention: Float[np.ndarray, "L F rows columns"]


def probe_images(
    model: Transformer,
    images: UInt8[Array, "B Y X C"],
    keep: Bool[Array, " B"],
    *,
    top_k: int = 5,
    definition: Definition | None = None,
) -> ImageBatch:
    """One batch's statistics. Pure."""

    def tap(acts):
        return magnitudes_tap(acts, top_k=top_k, definition=definition), token_tap(acts)

    stats, tokens = model.residual(images, tap=tap)[1]
    cosine = neighbour_cosine(model, images)
    return ImageBatch(reduce_batch(stats, keep, definition), tokens, cosine)


def run_images(
    prepared: PreparedImages, config: ProbeConfig, progress: Progress = silent
) -> Outcome:
    """As `run`, for an encoder of images.

    Returns:
      A `ProbeResult` with `images`, the activation map of the first picture, and some pictures.

    Raises:
      WeightsError: a weight cannot be read.
      DataError: a picture cannot be read.
    """
    watch = Stopwatch()
    inputs, definition = prepared.inputs, config.definition
    batch, side = min(config.batch_size, len(inputs)), inputs.prepare.crop
    step = functools.partial(probe_images, top_k=config.top_k, definition=definition)
    images = jax.ShapeDtypeStruct((batch, side, side, 3), jnp.uint8)
    keep = jax.ShapeDtypeStruct((batch,), jnp.bool_)
    compiled, model = compile_while_loading(
        prepared.checkpoint, config.dtype,
        lambda shapes: jax.jit(step).lower(shapes, images, keep).compile(),
    )
    loaded = watch.lap()
    collector, totals = Collector(definition, inputs), _Totals(inputs)
    for rows, pixels, kept in inputs.batches(batch):
        found: Any = jax.device_get(compiled(model, pixels, kept))
        collector.add(found.probe)
        totals.add(rows, pixels, found)
        progress(collector.sequences, len(inputs))
    probed = collector.probed()
    massive = massive_records(probed)
    result = ProbeResult(
        schema=SCHEMA_VERSION,
        **remarks(probed.layers),
        model=model_info(prepared, config.dtype, model),
        data=data_info(prepared, config),
        definition=definition_info(definition),
        layers=probed.layers,
        massive=massive,
        super_weights=super_weight_records(prepared, model, probed, massive),
        outlier_features=outlier_records(probed),
        prompt=probed.prompt,
        images=totals.findings(),
        config=dataclasses.asdict(config),
        seconds={"load_and_compile": loaded, "run": watch.lap()},
        versions=versions(),
    )
    return Outcome(result, (probed.map, totals.pictured))


class _Totals:
    """Running sums over pictures; what it holds does not grow with their number."""

    def __init__(self, inputs: ImageInputs) -> None:
        self.inputs = inputs
        kind = np.array([inputs.kind_of(position) for position in range(inputs.length)])
        self.kinds = {k: kind == k for k in inputs.kinds if (kind == k).any()}
        self.sums: dict[str, Any] = {}
        self.listed: list[list[OutlierPatch]] = []
        self.pictured: list[PicturedImage] = []
        self.count = 0

    def add(self, rows: slice, pixels: np.ndarray, batch: ImageBatch) -> None:
        """Adds a batch, already on the host."""
        n, front = rows.stop - rows.start, self.inputs.front
        tokens = jax.tree.map(lambda x: np.float64(x[:, :n]), batch.tokens)
        patches, cosine = tokens.norm[..., front:], np.asarray(batch.cosine[:n], np.float64)
        median = np.median(patches, -1, keepdims=True)
        outlier = outlier_patches(patches, np)
        std = patches.mean(-1, keepdims=True) + 3 * patches.std(-1, keepdims=True)
        sums = {
            **{f"above {t:g}": (patches > t).sum(-1) for t in NORMS},
            "mean + 3 std": (patches > std).sum(-1),
            "outliers": outlier.sum(-1),
            "cosine of outliers": (cosine * outlier).sum(-1),
            "cosine": np.broadcast_to(cosine.sum(-1), median.shape[:2]),
            "ratio": (patches.max(-1) / np.maximum(median[..., 0], np.finfo(float).tiny)),
            **self._norms(tokens.norm),
            **self._shares(tokens, outlier),
        }
        for name, x in sums.items():
            self.sums[name] = self.sums.get(name, 0) + np.float64(x).sum(1)
        self.count += n
        self._list(rows, patches, outlier, cosine)
        grid = self.inputs.grid
        for b in range(min(n, PICTURED - len(self.pictured))):
            maps = tokens.front[:, b, :, front:] if front else tokens.patches[:, b, None]
            self.pictured.append(PicturedImage(
                str(self.inputs.pictures.names[rows.start + b]), pixels[b],
                patches[:, b].reshape(-1, *grid), outlier[:, b].reshape(-1, *grid),
                maps.reshape(*maps.shape[:2], *grid),
            ))

    def _norms(self, norm: np.ndarray) -> dict[str, np.ndarray]:
        """Median and maximum over the tokens of each kind of each picture [L B]."""
        found = {}
        for kind, mask in self.kinds.items():
            found[f"median {kind}"] = np.median(norm[..., mask], -1)
            found[f"max {kind}"] = norm[..., mask].max(-1)
        return found

    def _shares(self, tokens: TokenStats, outlier: np.ndarray) -> dict[str, np.ndarray]:
        """The attention that each kind of token pays to each kind [L B]."""
        front, found = self.inputs.front, {}
        queries = {PATCH: (tokens.patches, tokens.extra[..., -1])}
        cls = self.inputs.cls
        for kind, part in ((CLS, slice(0, cls)), (REGISTER, slice(int(cls), front))):
            if kind in self.kinds:
                queries[kind] = tokens.front[:, :, part].mean(2), tokens.extra[..., part].mean(-1)
        for kind, (keys, extra) in queries.items():
            for to, mask in self.kinds.items():
                found[f"attention {kind} {to}"] = keys[..., mask].sum(-1)
            found[f"attention {kind} outlier"] = (keys[..., front:] * outlier).sum(-1)
            found[f"attention {kind} extra"] = extra
        return found

    def _list(
        self, rows: slice, norm: np.ndarray, outlier: np.ndarray, cosine: np.ndarray
    ) -> None:
        if not self.listed:
            self.listed = [[] for _ in norm]
        names, columns = list(self.inputs.pictures.names)[rows], self.inputs.grid[1]
        for layer, b, i in np.argwhere(outlier):
            self.listed[layer].append(OutlierPatch(
                image=names[b], row=int(i // columns), column=int(i % columns),
                norm=float(norm[layer, b, i]), cosine=float(cosine[b, i]),
            ))
        largest = lambda patch: -patch["norm"]
        self.listed = [sorted(patches, key=largest)[:LISTED] for patches in self.listed]

    def findings(self) -> ImageFindings:
        """The means over all pictures."""
        n, (rows, columns) = self.count, self.inputs.grid
        mean = {name: x / n for name, x in self.sums.items()}
        # Where outliers stand out most; the layer of the largest ratio where there are none.
        number = self.sums["outliers"]
        ratio = np.where(number > 0, mean["ratio"], 0) if number.any() else mean["ratio"]
        layer = int(np.argmax(ratio))
        patches = rows * columns
        outliers = float(number[layer])
        ordinary = n * patches - outliers
        cosine = self.sums["cosine of outliers"][layer]
        return ImageFindings(
            image_size=[self.inputs.prepare.crop] * 2,
            grid=[rows, columns],
            cls=self.inputs.cls,
            registers=self.inputs.registers,
            layers=[self._layer(mean, l) for l in range(len(number))],
            attention_queries=min(patches, QUERIES),
            rule={"mads": MADS, "medians": MEDIANS},
            outlier_layer=layer,
            outlier_share=outliers / (n * patches),
            outlier_cosine=float(cosine / outliers) if outliers else None,
            other_cosine=float((self.sums["cosine"][layer] - cosine) / ordinary),
            outliers=self.listed[layer],
        )

    def _layer(self, mean: dict[str, np.ndarray], layer: int) -> ImageLayer:
        at = lambda name: float(mean[name][layer])
        to = (*self.kinds, "outlier", "extra")
        return ImageLayer(
            layer=layer,
            norm={k: {"median": at(f"median {k}"), "max": at(f"max {k}")} for k in self.kinds},
            patches_above={
                **{f"{t:g}": at(f"above {t:g}") for t in NORMS}, "mean + 3 std": at("mean + 3 std"),
                "outliers": at("outliers"),
            },
            attention={
                k: {other: at(f"attention {k} {other}") for other in to} for k in self.kinds
            },
        )
