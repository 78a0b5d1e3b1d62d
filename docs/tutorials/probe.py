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
# # Find massive activations
#
# Which numbers of the residual stream are thousands of times larger than the others, where do they
# stand, and since which layer? The command `massact probe` answers this for a whole text; here the
# same functions run on one sentence.

# %%
import os

import jax
import matplotlib.pyplot as plt
import numpy as np

import jax_massact as ma

# Any checkpoint does: a .gguf file, a Hugging Face folder or id, or a named resource.
NAME = os.environ.get("MASSACT_TUTORIAL_MODEL", "smollm2-135m")
model, tokenizer = ma.load(NAME)
text = "The history of the city of London goes back almost two thousand years."
tokens = tokenizer.encode(text, bos=False)[None]  # [B, T]
print(f"{model.config.depth} layers, width {model.config.width}, {tokens.size} tokens")

# %% [markdown]
# `magnitudes` is a pure function of a model and its tokens: under `jax.jit` it runs the model once
# and reduces every layer on the device. What comes back is small, with a leading layer axis.

# %%
stats = jax.jit(ma.magnitudes)(model, tokens)
top = stats.top  # value, position and dim, each [L, B, k], the largest magnitude first
for layer in np.linspace(0, model.config.depth - 1, 6).astype(int):
    value, position, dim = (int(part[layer, 0, 0]) for part in (top.value, top.position, top.dim))
    median = float(stats.median[layer, 0])
    print(f"layer {layer:2}: {value:7,} at token {position}, dim {dim}; median {median:.2f}")

# %% [markdown]
# The definition of Sun et al. (2024) asks for a magnitude above 100 and at least 1,000 times the
# median of its sequence. `find_massive` applies it, and says from which layer to which.

# %%
massive = jax.jit(ma.find_massive)(stats)
(dims,) = np.nonzero(massive.strict)
for dim in dims:
    first, last = int(massive.first_layer[dim]), int(massive.last_layer[dim])
    print(f"dim {dim} is massive after blocks {first} to {last}")
if not dims.size:
    print("nothing is massive by the strict definition")

# %% [markdown]
# The whole residual stream is there, too, where you want it. Its largest magnitudes by layer, on a
# logarithmic axis, show how suddenly one block writes them and another takes them away.

# %%
streams = np.abs(jax.jit(ma.residual_streams)(model, tokens))[:, 0]  # [L, T, D]
figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
axes.semilogy(streams.max((1, 2)), marker="o", label="largest")
axes.semilogy(np.median(streams, (1, 2)), marker="^", label="median")
axes.set(xlabel="layer", ylabel="|h|")
axes.legend()
plt.show()
