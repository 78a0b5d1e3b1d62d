"""Fabricated probe results that the report is tested with: plain, varied and nasty."""

import math

import numpy as np

from jax_massact.report import words
from jax_massact.results import (
    ActivationMap,
    LayerStats,
    MassiveRecord,
    OutlierFeature,
    TopEntry,
    Writer,
)
from jax_massact.studies.probe.result import ProbeResult, SuperWeight
from jax_massact.studies.records import remarks

WORDS = ["<|im_start|>", "Summer", " is", " warm", ".", " Winter", " is", " cold", ".", "\n"]
NASTY = [
    "<|im_start|>", "</script>", "<!--", "<script>alert(1)</script>", "&amp;", '"', "'", "$x_1$",
    "\n", "\n\n", "\t", " ", "   ", "Ġthe", "中文", "🙂", "\x00", "\x1b[31m", "\u202e", "\ud800",
    "[bold]", "\\u003c", "\ufeff", "</mark>", "<b>bold</b>", "%{x}", "\r",
]


def massive(
    dim: int, value: float, first: int, last: int, depth: int, *, strict: bool = True,
    removed: bool = True, sequences: int = 4, token: str = "<|im_start|>",
) -> MassiveRecord:
    found = range(first, last + 1)
    return MassiveRecord(
        dim=dim, strict=strict, first_layer=first, last_layer=last,
        peak_layer=first, value_mean=value, value_std=abs(value) / 50,
        value_sequences=sequences, ratio=abs(value) / 1.65,
        share_of_sequences=1.0,
        positions=[{"position": 0, "sequences": sequences}, {"position": 4, "sequences": 1}],
        tokens=[
            {"token": token, "kind": "first", "sequences": sequences},
            {"token": ".", "kind": "delimiter", "sequences": 1},
        ],
        kinds={"first": 0.8, "delimiter": 0.2, "other": 0.0},
        written_by=Writer(layer=first, sublayer="mlp", value=value * 0.99),
        removed_by=Writer(layer=last + 1, sublayer="mlp", value=-value * 0.98) if removed else None,
        trajectory=[value * (1 - 0.001 * (l - first)) if l in found else None
                    for l in range(depth)],
    )


def super_weight(record: MassiveRecord, **changes) -> SuperWeight:
    found = SuperWeight(
        layer=record["written_by"]["layer"], dim=record["dim"], column=1229, expert=None,
        tensor="blk.11.ffn_down.weight", weight=5.875, activation=2571.0, share=0.74,
        expert_share=1.0, sequence=0, position=0,
    )
    return SuperWeight(**(found | changes))


def layer_stats(layer: int, tops: list[float], median: float, token: str) -> LayerStats:
    return LayerStats(
        layer=layer,
        top=[
            TopEntry(value=-t if k else t, magnitude=t, magnitude_std=t / 30, position=0,
                     dim=507 - k, token=token, share=1.0)
            for k, t in enumerate(tops)
        ],
        median=median,
        quantile={"0.9": 3 * median, "0.99": 9 * median},
        kurtosis=tops[0] ** 1.1, max=tops[0] * 1.1,
        count_above={b: float(sum(t > int(b) for t in tops)) for b in ("10", "100", "1000")},
        dims_above={b: float(sum(t > int(b) for t in tops)) for b in ("10", "100", "1000")},
        tokens_above={b: float(any(t > int(b) for t in tops)) for b in ("10", "100", "1000")},
        strict=float(sum(t > 1000 * median and t > 100 for t in tops)),
        relaxed=float(sum(t > 100 * median and t > 20 for t in tops)),
        nonfinite=0,
    )


def result(
    records: list[MassiveRecord], *, depth: int = 30, width: int = 576,
    tokens: list[str] | None = None,
    outliers: list[OutlierFeature] | None = None, sequences: int = 4, name: str = "smollm2-135m",
) -> ProbeResult:
    tokens = WORDS * 6 if tokens is None else tokens
    layers = []
    for l in range(depth):
        ordinary = [12.0 + l, 9.0 + l, 8.0 + l, 7.0 + l]
        spikes = [abs(r["value_mean"]) for r in records if r["first_layer"] <= l <= r["last_layer"]]
        tops = sorted(spikes + ordinary, reverse=True)[:4]
        layers.append(layer_stats(l, tops, 0.5 + 0.1 * l, tokens[0]))
    return ProbeResult(
        schema=1,
        warnings=[],
        notices=[],
        model={
            "name": name, "source": "folder/SmolLM2-135M-Instruct.Q4_1.gguf", "family": "llama",
            "parameters": 134_515_008, "depth": depth, "width": width, "num_heads": 9,
            "num_kv_heads": 3, "head_dim": 64, "mlp_dim": 1536, "vocab_size": 49152,
            "dtype": "float32",
        },
        data={
            "source": "English prose", "sequences": sequences, "sequence_length": len(tokens),
            "bos": True, "bos_setting": "auto", "bos_token": tokens[0],
        },
        definition={
            "strict": {"magnitude": 100.0, "ratio": 1000.0},
            "relaxed": {"magnitude": 20.0, "ratio": 100.0},
            "outlier": {"magnitude": 6.0, "ratio": 6.0, "share": 0.25},
            "min_share": 0.5, "min_layers": 2,
        },
        layers=layers,
        massive=records,
        super_weights=[super_weight(r) for r in words.by_size(records, strict=True)],
        outlier_features=outliers or [],
        prompt={
            "tokens": tokens,
            "massive": [(p, r["dim"]) for r in records for p in (0, 4) if p < len(tokens)],
        },
        config={"model": "smollm2-135m", "data": {"sequences": sequences, "bos": "auto"}},
        seconds={"load": 0.31, "compile": 1.52, "run": 0.94},
        versions={"jax": "0.10.2", "jax_massact": "0.1.0"},
    )


def activation_map(probe: ProbeResult, *, bins: int = 128) -> ActivationMap:
    """Noise of the size of each layer's median, with the records' spikes on top."""
    depth, width = probe["model"]["depth"], probe["model"]["width"]
    tokens = probe["prompt"]["tokens"][:64]
    bins = min(bins, width)
    first_dim = np.linspace(0, width, bins, endpoint=False).astype(int)
    noise = np.abs(np.random.default_rng(0).normal(size=(depth, len(tokens), bins)))
    magnitude = noise * np.array([l["median"] for l in probe["layers"]])[:, None, None] * 3
    for position, dim in probe["prompt"]["massive"]:
        record = next(r for r in probe["massive"] if r["dim"] == dim)
        column = int(np.searchsorted(first_dim, dim, side="right")) - 1
        for l, value in enumerate(record["trajectory"]):
            if value is not None:
                magnitude[l, position, column] = abs(value) / (1 + position)
    return ActivationMap(magnitude.astype(np.float32), first_dim, tokens)


def strict_found() -> ProbeResult:
    """SmolLM2 as it is: one huge dimension, and a smaller one of the other sign."""
    second = massive(308, -1840.5, 12, 29, 30, removed=False)
    second["share_of_sequences"] = 0.75
    return result([second, massive(507, 24926.0, 11, 28, 30)])


def none_found() -> ProbeResult:
    return result([])


def relaxed_only() -> ProbeResult:
    record = massive(77, 95.3, 3, 7, 12, strict=False)
    record["written_by"] = Writer(layer=-1, sublayer="embedding", value=90.0)
    features = [
        OutlierFeature(dim=d, first_layer=1, last_layer=10, share_of_tokens=0.93,
                       share_of_sequences=1.0, magnitude=31.4)
        for d in (13, 42)
    ]
    return result([record], depth=12, outliers=features)


def nasty() -> ProbeResult:
    """Tokens, names and settings that break a page, a terminal or a font that trusts them."""
    tokens = NASTY * 2
    records = [massive(5, 3000.0, 1, 4, 6, token=tokens[1]),
               massive(9, 900.0, 1, 4, 6, token="[bold]中")]
    probe = result(records, depth=6, width=64, tokens=tokens, name="<b>$x$</b></title>[red]Ġ\ud800")
    probe["prompt"]["massive"] = [(p, r["dim"]) for r in records for p in range(0, 20, 2)]
    probe["super_weights"][0] |= {"expert": 3, "expert_share": 0.91, "tensor": "<i>[red]"}
    probe["data"]["source"] = "</style><img src=x onerror=alert(1)>[/]"
    probe["config"]["note"] = "</script><script>console.error('escaped')</script>"
    return probe


def smallest() -> ProbeResult:
    """One layer, one token, one sequence, one dimension."""
    record = massive(0, 500.0, 0, 0, 1, removed=False, sequences=1)
    return result([record], depth=1, width=1, tokens=["<s>"], sequences=1)


def broken_numbers() -> ProbeResult:
    """A model that overflows from layer 4 on."""
    probe = strict_found()
    for layer in probe["layers"][4:]:
        layer["nonfinite"] = 100
        layer["median"] = layer["kurtosis"] = layer["max"] = math.nan
        for entry in layer["top"]:
            entry["value"] = entry["magnitude"] = entry["magnitude_std"] = math.inf
    probe["massive"][0]["value_mean"] = math.nan
    probe["massive"][1]["value_std"] = math.nan
    probe["massive"][1]["trajectory"][12] = math.nan
    return probe | remarks(probe["layers"])


EXAMPLES = {
    f.__name__: f for f in (strict_found, none_found, relaxed_only, nasty, smallest, broken_numbers)
}
BY_KIND = {"strict": strict_found, "none": none_found, "relaxed": relaxed_only, "nasty": nasty,
           "single": smallest}
