"""Measures Gemma 3 270M on a short text, with BOS: python docs/results/gemma3_270m.py

Writes gemma3-270m.json beside this file: the largest activation and the median after every block,
and the perplexity of the text where the largest activation of block 12, dimension 163 at BOS, is
changed. The named resource is downloaded (238 MB, Gemma Terms of Use).
"""

import json
from datetime import date
from pathlib import Path

import jax
import numpy as np

import jax_massact as ma
from jax_massact.studies.frame import versions

HERE = Path(__file__).parent
DIM, LAYER = 163, 12


def measure() -> dict:
    """All numbers."""
    model, tokenizer = ma.load("gemma3-270m")
    text = (HERE / "lighthouse.txt").read_text()
    tokens = tokenizer.encode(text, bos=True)[None]
    stats = jax.device_get(jax.jit(ma.magnitudes)(model, tokens))
    streams = np.asarray(jax.jit(ma.residual_streams)(model, tokens))[:, 0]
    depth, first = len(streams), np.arange(tokens.shape[1]) == 0
    value = streams[:, 0, DIM]
    # The activation of the same block whose magnitude is nearest to the median.
    position, dim = np.unravel_index(
        np.abs(np.abs(streams[LAYER]) - stats.median[LAYER, 0]).argmin(), streams[LAYER].shape
    )
    late = [LAYER] * (depth - 4)
    changes = {
        "original": (late, first, DIM, value[LAYER]),
        "zero after block 12": (late, first, DIM, 0.0),
        "zero after block 4": ([4] * len(late), first, DIM, 0.0),
        "zero from block 4 on": (list(range(4, depth)), first, DIM, 0.0),
        "an ordinary one to zero": (late, np.arange(tokens.shape[1]) == position, int(dim), 0.0),
    }
    perplexity = jax.jit(ma.perplexity)
    plain = {"original": float(perplexity(model, tokens))}
    changed = {
        "to its own value" if name == "original" else name: float(
            perplexity(model, tokens, edits=ma.Edits.set_to(*change[:3], change[3]))
        )
        for name, change in changes.items()
    }
    top = stats.top
    layers = [
        {
            "layer": l, "value": float(top.value[l, 0, 0]), "position": int(top.position[l, 0, 0]),
            "dim": int(top.dim[l, 0, 0]), "median": float(stats.median[l, 0]),
        }
        for l in range(depth)
    ]
    return {
        "tokens": tokens.shape[1], "layers": layers, "perplexity": plain | changed,
        "command": "python docs/results/gemma3_270m.py", "date": date.today().isoformat(),
        "hardware": "2 CPU cores (x86-64, a shared virtual machine)", "versions": versions(),
    }


if __name__ == "__main__":
    (HERE / "gemma3-270m.json").write_text(json.dumps(measure(), indent=2) + "\n")
