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
# # Intervene, and fold
#
# Does the model need its massive activations? Set them to zero and it breaks; set them to their
# mean and nothing happens: they are a constant, a bias. Then the constant can be written into the
# model as explicit keys and values, and the token that carried it can go.

# %%
import os

import jax
import numpy as np

import jax_massact as ma

NAME = os.environ.get("MASSACT_TUTORIAL_MODEL", "smollm2-135m")
model, tokenizer = ma.load(NAME)
text = "The history of the city of London goes back almost two thousand years."
tokens = tokenizer.encode(text, bos=False)[None]

# %% [markdown]
# First the place: where the largest activation is largest, and the block that first makes it so.

# %%
stats = jax.jit(ma.magnitudes)(model, tokens)
size = np.abs(stats.top.value)[:, 0, 0]  # [L]
peak = int(size.argmax())
position, dim = int(stats.top.position[peak, 0, 0]), int(stats.top.dim[peak, 0, 0])
layer = int(np.argmax(size > size[peak] / 2))
streams = jax.jit(ma.residual_streams)(model, tokens)
mean = float(streams[layer, 0, position, dim])
print(f"dim {dim} at token {position}, after block {layer}: {mean:,.0f}")

# %% [markdown]
# An intervention is data, not a code path: `Edits` are arrays, so that one compiled function serves
# every value.

# %%
perplexity = jax.jit(ma.perplexity)
where = np.arange(tokens.shape[1]) == position


def with_value(value):
    return perplexity(
        model, tokens, edits=ma.Edits.set_to(layer=layer, tokens=where, dim=dim, value=value)
    )


print(f"original       {perplexity(model, tokens):12,.2f}")
print(f"set to itself  {with_value(mean):12,.2f}")
print(f"set to half    {with_value(mean / 2):12,.2f}")
print(f"set to zero    {with_value(0.0):12,.2f}")

# %% [markdown]
# Behind a fixed first token, that token's keys and values are constants of the model. `fold` writes
# them as k' and v' (Sun et al. 2024, equation 3); the token is dropped and all other logits stay.

# %%
folded = ma.fold(model, first_token=int(tokens[0, 0]))
logits = jax.jit(lambda model, tokens: model(tokens)[0])
before, after = logits(model, tokens)[:, 1:], logits(folded, tokens[:, 1:])
error = float(np.abs(before - after).max() / np.abs(before).max())
print(f"attention is now {folded.config.block.attention.variant!r}")
print(f"largest difference of the logits: {error:.1e} of the largest logit")
largest = jax.jit(lambda model, tokens: abs(ma.magnitudes(model, tokens).top.value).max())
print(f"largest |h|: {largest(model, tokens):,.0f}, folded {largest(folded, tokens[:, 1:]):,.0f}")
