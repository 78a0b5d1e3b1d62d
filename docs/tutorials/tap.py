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
# # Write a tap
#
# A forward pass of this package never stores activations. What you want to know of a block you
# compute inside it: a *tap* is a function of one block's activations, and what it returns comes
# back stacked over layers.

# %%
import os

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import jax_massact as ma

NAME = os.environ.get("MASSACT_TUTORIAL_MODEL", "smollm2-135m")
model, tokenizer = ma.load(NAME)
tokens = tokenizer.encode("Once upon a time there was a princess in a tower.", bos=False)[None]

# %% [markdown]
# The activations of a block carry the names of the field: `resid_pre`, `attn_out`, `mlp_out`,
# `resid_post`, `q`, `k`, `v` and more, each [B, T, ...]. A tap for the norm of the stream at every
# token, and for the share of its energy that lies in its largest dimension:


# %%
def norm_and_share(acts: ma.Acts):
    energy = acts.resid_post.astype(jnp.float32) ** 2  # [B, T, D]
    total = energy.sum(-1)
    return jnp.sqrt(total), energy.max(-1) / total


@jax.jit
def measure(model, tokens):
    _, (norm, share) = model(tokens, tap=norm_and_share)
    return norm, share  # [L, B, T] each


norm, share = measure(model, tokens)
print("shapes", norm.shape, share.shape)
layer = model.config.depth // 2
print(f"layer {layer}: norms {np.round(norm[layer, 0, :6], 1)}")
print(f"layer {layer}: share of the largest dimension {np.round(share[layer, 0, :6], 3)}")

# %% [markdown]
# The logits were not used, so the compiler removed the head: a tap costs what it computes and
# nothing else. Because it is a function of arrays, it can be mapped over a batch and sharded like
# the rest of your program.

# %%
figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
axes.plot(share[:, 0, 0], marker="o", label="first token")
axes.plot(share[:, 0, 1:].mean(-1), marker="s", label="other tokens, mean")
axes.set(xlabel="layer", ylabel="share of the largest dimension", ylim=(0, 1.02))
axes.legend()
plt.show()

# %% [markdown]
# Who writes the largest number? What a sublayer adds to the stream is in `attn_out` and `mlp_out`.
# A tap can close over values of your own, such as the dimension to look at.


# %%
@jax.jit
def writers(model, tokens, dim):
    tap = lambda acts: (acts.attn_out[:, 0, dim], acts.mlp_out[:, 0, dim])
    return model(tokens, tap=tap)[1]


top = jax.jit(ma.magnitudes)(model, tokens).top
dim = int(top.dim[layer, 0, 0])
attention, mlp = (np.asarray(part)[:, 0] for part in writers(model, tokens, dim))
block = int(np.abs(mlp).argmax())
print(f"dim {dim}: the MLP of block {block} adds {mlp[block]:,.0f} at the first token,")
print(f"no attention adds more than {np.abs(attention).max():,.1f}")
