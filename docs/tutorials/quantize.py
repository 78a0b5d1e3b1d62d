# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Numbers of 8 bits
#
# "They can force us to use more bits": in a range that has room for a massive activation, all
# other activations of a sequence are rounded to a few numbers. Rounding is data, too, so that one
# compiled function serves every choice of blocks, sites and ranges.

# %%
import os

import jax
import numpy as np

import jax_massact as ma
from jax_massact.measure.loss import losses_of
from jax_massact.nn.rounding import FLOAT, INTEGER, Rounding, levels_of

NAME = os.environ.get("MASSACT_TUTORIAL_MODEL", "smollm2-135m")
model, tokenizer = ma.load(NAME)
text = "The history of the city of London goes back almost two thousand years."
tokens = tokenizer.encode(text, bos=False)[None]
depth, sites = model.config.depth, ("mlp_hidden", "resid_post")

# %% [markdown]
# What is rounded is an array [blocks, sites]: here the units that the down projection reads, and
# the residual stream behind each block. `kept` are tokens that stay in float.


# %%
def rounding(places, *, bits=8, per_token=False, kept=()):
    return Rounding(
        kind=np.where(places, INTEGER, FLOAT).astype(np.int32),
        largest=np.full(places.shape, levels_of(bits), np.float32),
        per_token=np.full(places.shape, per_token),
        limit=np.zeros(places.shape, np.float32),
        kept=np.isin(np.arange(tokens.shape[1]), kept)[None],
        sites=sites,
    )


@jax.jit
def perplexity(model, tokens, rounding):
    logits, _ = model(tokens, rounding=rounding)
    return jax.numpy.exp(losses_of(logits, tokens).mean())


none = np.zeros((depth, len(sites)), bool)
hidden, stream = none.copy(), none.copy()
hidden[:, 0], stream[:, 1] = True, True
exact = perplexity(model, tokens, rounding(none))
print(f"float                          {exact:12,.2f}")
for name, places in (("units of the MLPs", hidden), ("residual stream", stream)):
    for words, how in (("one range", {}), ("a range for each token", {"per_token": True}),
                       ("one range, token 0 in float", {"kept": (0,)})):
        print(f"{name}, {words}: {perplexity(model, tokens, rounding(places, **how)):,.2f}")

# %% [markdown]
# One block at a time shows where it comes from: the blocks that write the massive activation and
# take it away have it among their units.

# %%
ratio = np.zeros(depth)
for layer in range(depth):
    alone = none.copy()
    alone[layer, 0] = True
    ratio[layer] = perplexity(model, tokens, rounding(alone)) / exact
worst = np.argsort(-ratio)[:3]
print("blocks that lose most:", ", ".join(f"{layer} (x{ratio[layer]:.3f})" for layer in worst))

# %% [markdown]
# `massact quantize` does this on more text, with every format, and says what folding the first
# token saves.
