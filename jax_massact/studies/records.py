"""What was found in a run as plain records: massive activations, outlier features, remarks."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from jax_massact.measure.massive import SUBLAYERS
from jax_massact.report import words
from jax_massact.results import LayerStats, MassiveRecord, OutlierFeature, Remarks, Writer
from jax_massact.studies.collector import Probed

MAX_LISTED = 16
FLOAT16_MAX = 65_504.0


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
        value_sequences=int(m.value_count[d]),
        ratio=float(m.ratio[d]),
        share_of_sequences=float(m.share_of_sequences[d]),
        positions=[
            {"position": p, "sequences": n} for p, n in where.positions.most_common(MAX_LISTED)
        ],
        tokens=[
            {"token": t, "kind": kind, "sequences": n}
            for (t, kind), n in where.tokens.most_common(MAX_LISTED)
        ],
        kinds={k: where.kinds[k] / hits for k in probed.kinds},
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


def remarks(
    layers: Sequence[LayerStats], numbers: Mapping[str, float] | None = None
) -> Remarks:
    """What stands before the findings.

    Args:
      layers: of the unchanged model.
      numbers: what else has to be finite, by its name.
    """
    warnings, notices = [], []
    bad = [layer for layer in layers if layer["nonfinite"] or not math.isfinite(layer["max"])]
    if bad:
        total = words.count(sum(layer["nonfinite"] for layer in bad), "activation")
        warnings.append(
            f"{total} NaN or infinite, first at layer {bad[0]['layer']}: the numbers of this "
            "report cannot be trusted. Try dtype float32, or check the checkpoint."
        )
    names = [name for name, value in (numbers or {}).items() if not math.isfinite(value)]
    if names:
        verb = "is" if len(names) == 1 else "are"
        warnings.append(f"Not finite {verb} the {' and the '.join(names)}: there is no verdict.")
    if not bad and layers:
        largest = max(layers, key=lambda layer: layer["max"])
        if largest["max"] > FLOAT16_MAX:
            notices.append(
                f"an activation of magnitude {words.number(largest['max'])} after block "
                f"{largest['layer']} is beyond float16, which ends at 65,504: inference in float16 "
                "overflows"
            )
    return Remarks(warnings=warnings, notices=notices)
