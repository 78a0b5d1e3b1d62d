"""What the figures and the charts of the page share: colours, and which part of a map to show.

The colours are Okabe and Ito's, which colour-blind readers can tell apart.
"""

import math

import numpy as np

from jax_massact.report import words
from jax_massact.results import ActivationMap, LayerStats, MassiveRecord
from jax_massact.studies.probe.result import ProbeResult

BLUE, ORANGE, GREEN, PINK = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
AMBER, GREY = "#E69F00", "#6b7280"
PALETTE = (BLUE, ORANGE, GREEN, PINK, AMBER, "#56B4E9", "#000000", "#8c8c00")
TOPS = (ORANGE, AMBER, PINK)  # top-1, top-2, top-3
MAX_NAMES, MIN_HEIGHT = 4, 0.05  # spikes of a map that get a name: how many, share of the tallest
LAYER_AXIS = "layer (residual stream after the block, from 0)"


def map_layer(result: ProbeResult) -> int:
    """The layer to picture: the strongest record's peak, else the largest top-1 over median."""
    if records := words.strongest(result):
        return records[0]["peak_layer"]

    def ratio(layer: LayerStats) -> float:
        top, median = (layer["top"][0]["magnitude"] if layer["top"] else 0.0), layer["median"]
        return top / median if median > 0 and math.isfinite(top) else 0.0

    return max(result["layers"], key=ratio)["layer"]


def spikes(result: ProbeResult, tokens: int) -> list[tuple[int, MassiveRecord]]:
    """Position and record of each massive activation of the map, the largest dimension first.

    Where several dimensions share a bin, the first of them at a layer is the one that shows there:
    only it may have its name on the bin.
    """
    records = {r["dim"]: r for r in result["massive"]}

    def size(place: tuple[int, MassiveRecord]) -> float:
        value = abs(place[1]["value_mean"])
        return value if math.isfinite(value) else -1.0

    places = [
        (position, records[dim])
        for position, dim in result["prompt"]["massive"]
        if position < tokens and dim in records
    ]
    return sorted(places, key=size, reverse=True)


def map_bin(activation_map: ActivationMap, dim: int) -> int:
    """The bin of the map that holds dimension `dim`."""
    return int(np.searchsorted(activation_map.first_dim, dim, side="right")) - 1
