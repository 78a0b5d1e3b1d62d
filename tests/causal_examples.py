"""Fabricated results of studies of models: plain, empty, relaxed, lone and nasty.

Every layer has numbers of its own, so that a wrong layer or field shows.
"""

import copy

import numpy as np
import report_examples as examples

from jax_massact.measure.definition import Definition
from jax_massact.studies.changes import CHANGES
from jax_massact.studies.compare.rounding import KINDS as ROUNDED
from jax_massact.studies.compare.run import PER_LAYER, TRAINING, Comparison
from jax_massact.studies.explain.result import AttentionMap, ExplainResult
from jax_massact.studies.fold.result import FoldResult
from jax_massact.studies.frame import definition_info
from jax_massact.studies.interventions_result import InterveneResult
from jax_massact.studies.quantize.result import QuantizeResult

DEPTH, HEADS = 6, 2
NASTY = "</script><script>alert(1)</script>$x_1$[red]\ud800"
KINDS = ("strict", "none", "relaxed", "nasty", "single")
_BASES = {
    "strict": examples.strict_found, "none": examples.none_found, "relaxed": examples.relaxed_only,
    "nasty": examples.nasty, "single": examples.strict_found,
}


def _common(kind: str):
    base = _BASES[kind]()
    keys = ("schema", "warnings", "notices", "model", "data", "definition", "config", "seconds",
            "versions")
    result = {key: copy.deepcopy(base[key]) for key in keys}
    result["model"]["depth"] = DEPTH
    result["definition"] = definition_info(Definition())
    result["data"]["sequences"] = sequences = 1 if kind == "single" else 4
    if kind == "nasty":
        result["model"]["name"] = NASTY
    if kind == "none":
        return result, []
    record = examples.massive(
        7, 900.0, 1, 3, DEPTH, strict=kind != "relaxed", sequences=sequences,
        token=NASTY if kind == "nasty" else "<s>",
    )
    return result, [record]


def intervene_result(kind="strict", zero=5000.0, verdict="needed") -> InterveneResult:
    result, massive = _common(kind)
    perplexity = {"original": 15.7}
    targets, after = [], None
    if massive:
        perplexity |= {"zero": zero, "mean": 15.8, "fraction_0.5": 21.0, "control_zero": 15.69}
        targets = [{
            "layer": 1, "dim": 7, "strict": massive[0]["strict"], "activations": 8,
            "control_dim": 3, "control_activations": 9,
            "means": [{"kind": "first", "mean": 900.5, "std": 3.25, "count": 6},
                      {"kind": "delimiter", "mean": 850.25, "std": 2.5, "count": 5}],
        }]
        after = {
            "verdict": verdict, "dims": [7] if "rebuilt" in verdict else [],
            "massive": [examples.massive(8, 77.0, 2, 3, DEPTH, strict=False)],
            "trajectories": [{"dim": 7, "original": np.linspace(0, 900, DEPTH).tolist(),
                              "zero": np.linspace(0, 30, DEPTH).tolist()}],
        }
    single = kind == "single"
    data = {
        "source": NASTY if kind == "nasty" else "a text", "calibration_sequences": 8,
        "sequences": 1 if single else 8, "window": 512, "stride": 511, "scored_tokens": 4088,
        "bos": True, "bos_setting": "auto", "bos_token": "<s>",
    }
    loss = {n: {"mean": 2.75 + i / 8, "std": 0.0 if single else 0.22}
            for i, n in enumerate(perplexity)}
    return result | {
        "data": data, "massive": massive, "targets": targets, "perplexity": perplexity,
        "loss": loss, "after_zero": after,
    }


def explain_result(kind="strict") -> tuple[ExplainResult, AttentionMap]:
    result, massive = _common(kind)
    some, single = bool(massive), kind == "single"
    spread = lambda mean: {"mean": mean, "std": 0.0 if single else 0.02}

    def vector(start: float) -> dict:
        return {
            "norm_massive": 10 * start if some else None, "norm_other": start,
            "cosine_massive": 1 - start / 1000 if some and not single else None,
            "cosine_other": None if single else start / 1000,
            "dims_massive": 1 + start / 100 if some else None, "dims_other": start + 40,
        }

    def update(l: int, share: float) -> dict:
        return {
            "cosine": spread(0.9 - l / 100), "deviation": spread(0.4 + l / 100),
            "cosine_pooled": 0.8125 - l / 1000, "deviation_pooled": 0.6125 + l / 1000,
            "share": spread(share),
        }

    layers = [
        {
            "layer": l,
            "attention": {
                "sink_rate": spread(0.1 * l), "first": [0.05 * l, 0.15 * l],
                "massive": [0.1 * l, 0.15 * l] if some else None, "extra": None,
                "logit_massive": [3.0 + l, 4.0 + l] if some else None,
                "logit_other": [-1.0 - l] * HEADS,
            },
            "stream": vector(100 + l), "normed": vector(20 + l), "keys": vector(30 + l),
            "values": vector(40 + l),
            "value_drain": 0.25 + l / 100 if some else None,
            "massive_update": update(l, 0.2 + l / 100) if some else None,
            "other_update": update(l + 20, 0.8 - l / 100) if some else None,
        }
        for l in range(DEPTH)
    ]
    places = []
    for bos in (False, True):
        records = copy.deepcopy(massive)
        for record in records:
            record["value_mean"], record["value_std"] = (923.0, 1.5) if bos else (811.0, 44.5)
        places.append({"bos": bos, "sequences": 100, "sequence_length": 256, "massive": records})
    tokens = ["<s>", NASTY if kind == "nasty" else "the"] * 15
    weight = np.tril(np.random.default_rng(0).random((DEPTH, 30, 30), np.float32))
    weight /= weight.sum(-1, keepdims=True)
    picture = AttentionMap(weight, tokens, [some, False, some, *[False] * 27])
    return result | {
        "massive": massive, "massive_tokens": 1.5 if some else 0.0, "sink_epsilon": 0.3,
        "sink_length": 64, "sink_rate": spread(0.75), "layers": layers, "locations": places,
    }, picture


def quantize_result(kind="strict") -> QuantizeResult:
    """Two kinds of rounding of three variants, one block at a time, ranges at two sites."""
    result, massive = _common(kind)
    single = kind == "single"
    variants = ("original", "folded", "kept")
    rows = [
        {
            "variant": variant, "sites": sites, "format": format, "granularity": "tensor",
            "range": "minmax", "bits": bits, "weights": None, "perplexity": 15.5 * ratio,
            "loss": {"mean": 2.75, "std": 0.0 if single else 0.22}, "ratio": ratio,
            "stderr": None if single else 0.015,
        }
        for i, variant in enumerate(variants)
        for sites, format, bits, ratio in (
            ("linear", "float", None, 1.0), ("linear", "int8", 8, 1.95 / (1 + i)),
            ("residual", "fp8", 8, 1.083 + i / 100), ("residual", "int8", 8, 25_813.0 / 10**i),
        )
    ]
    ranges = [
        {
            "site": site, "layer": layer, "top": 900.0 + layer, "top_position": layer,
            "top_token": NASTY if kind == "nasty" else "<s>", "top_without": 7.25 + layer,
            "token_ratio": 413.0 if layer else None, "bits_lost": 7.0 if layer else None,
            "sqnr": 0.5 if layer else None, "sqnr_without": 19.75, "zero_share": 0.98,
            "columns": 9.5, "columns_without": 2.25,
        }
        for site in ("mlp_hidden", "resid_post") for layer in range(DEPTH)
    ]
    change = [0.01, 0.11, 0.075, 0.0, 0.14, -0.002]
    single_data = intervene_result(kind)["data"]
    writer, remover = (massive[0][key] if massive else None for key in ("written_by", "removed_by"))
    return result | {
        "data": single_data, "massive": massive, "rows": rows, "ranges": ranges,
        "first_token": NASTY if kind == "nasty" else "<s>", "kept_tokens": 1.0,
        "sensitivity": [
            {"variant": "original", "site": "mlp_hidden", "layer": layer, "loss_change": x,
             "stderr": None if single else 0.002} for layer, x in enumerate(change)
        ],
        "bits": [
            {"variant": "original", "sites": "linear", "bits": 13, "ratio": 1.05},
            {"variant": "original", "sites": "residual", "bits": None, "ratio": None},
            {"variant": "folded", "sites": "linear", "bits": 10, "ratio": 1.03},
            {"variant": "folded", "sites": "residual", "bits": 12, "ratio": 1.09},
        ],
        "verdict": {
            "writer": writer, "remover": remover, "sensitive": [4, 1, 2],
            "others": [2] if massive else [4, 1, 2], "bits_saved": {"linear": 3},
        },
    }


def fold_result(kind="strict", unchanged=True) -> FoldResult:
    result, massive = _common(kind)
    return result | {
        "first_token": NASTY if kind == "nasty" else "<s>", "first_token_id": 1,
        "logit_difference": 4e-6 if unchanged else 0.3, "allowed_difference": 1e-4,
        "unchanged": unchanged, "perplexity_original": 15.5, "perplexity_folded": 15.6,
        "massive_before": massive, "massive_after": [], "largest_before": 900.0,
        "largest_after": 30.0, "saved_to": "model", "massive_sequences_after": 0,
        "massive_first_after": 0,
        "loads_in": {"programs": ["jax_massact"], "lost": ["variant=kv_bias"]},
    }


def compare_result(kind="strict") -> Comparison:
    """Two variants of three layers; of `single` one run, of `none` nothing massive."""
    common, _ = _common(kind)
    rng = np.random.default_rng(0)

    def run(seed: int, name: str) -> dict:
        found = intervene_result(kind)
        curve = lambda n: [None, *(10 * rng.random(n - 1) + 1).tolist()]
        return {
            "folder": f"runs/{name}/{seed}", "seed": seed, "parameters": 1000, "steps": 40,
            "tokens": 640, "validation_loss": 3.5 + seed / 8,
            "validation_std": 0.25, "validation_losses": [3.25, 3.75],
            "layers": {key: curve(3) for key in PER_LAYER},
            "emergence": {"top1": None, "ratio": 20, "kurtosis": None, "sink_rate": 40},
            "curves": {key: curve(3) for key in PER_LAYER} | {"step": [0, 20, 40]},
            "losses": {"step": [20, 40], "loss": [4.0, 3.5]}, "seconds": 2.0,
            "validated_on": {"text": "a", "tokenizer": "b", "shape of the batches": "2 x 4 x 16"},
            "tokens_per_second": 320.0, "device": f"cpu {name}", "versions": {"jax": "0.10.2"},
            "training": {key: curve(5) for key in TRAINING} | {"step": [1, 10, 20, 30, 40]},
            "interventions": found,
            "rounded": None if kind == "none" else {"float": 3.5, "w8a8": 3.625,
                                                    "w8a8_residual": 4.5, "fp8": 3.5625},
        }

    def group(name: str, first: bool) -> dict:
        runs = [run(seed, name) for seed in range(1 if kind == "single" else 2)]
        numbers = ("validation_loss", *PER_LAYER)
        change = None if kind == "none" else 0.125
        return {
            "name": name, "runs": runs, "mean": dict.fromkeys(numbers, 3.5),
            "std": dict.fromkeys(numbers, None if kind == "single" else 0.1),
            "difference": None if first else {
                "mean": 0.25, "error": 0.0625, "low": -0.5, "high": 1.0,
                "by_seed": {str(run["seed"]): 0.25 for run in runs},
            },
            "loss_change": {c: [change] * len(runs) for c in CHANGES},
            "rounding_change": {c: [change and run["rounded"][c] - 3.5 for run in runs]
                                for c in ROUNDED},
        }

    names = (NASTY, "runs/[q4]") if kind == "nasty" else ("standard", "runs/kv_bias")
    return {
        "schema": 4, "warnings": [], "notices": [], "sink_epsilon": 0.3, "sink_tokens": 64,
        "definition": common["definition"],
        "groups": [group(name, i == 0) for i, name in enumerate(names)],
    }
