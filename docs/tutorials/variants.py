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
# # Train three variants of attention
#
# Sun et al. (2024) train GPT-2 with explicit k' and v' and find no massive activations. Here the
# same comparison in small: two layers, a synthetic task in which attention sinks come within some
# hundred steps, three variants. It is `massact compare`; the function behind the command returns
# its exit code.

# %%
import json
import os
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from jax_massact.cli import main

os.environ["FORCE_COLOR"] = ""  # lines of text in place of moving progress bars
folder = Path(tempfile.mkdtemp())
steps = os.environ.get("MASSACT_TUTORIAL_STEPS", "300")
code = main([
    "compare", "--config=configs/gpt2_tiny.py", "--variants=standard,sink,kv_bias",
    f"--workdir={folder}", f"--config.steps={steps}", "--no-interventions",
])
print("exit code", code)

# %% [markdown]
# Every run left its measurements in `metrics.jsonl`, and the comparison is in `compare.json`. How
# much does the first token become a sink?

# %%
groups = json.loads((folder / "compare.json").read_text())["groups"]
figure, axes = plt.subplots(figsize=(6.4, 3.2), layout="constrained")
for group in groups:
    curves = group["runs"][0]["curves"]
    rate = np.array(curves["sink_rate"], float)
    axes.plot(curves["step"], rate, marker="o", label=Path(group["name"]).name)
axes.set(xlabel="step", ylabel="sink rate of the first token", ylim=(-0.03, 1.03))
axes.legend()
plt.show()

# %% [markdown]
# With k' and v' the first token is left alone: the extra key takes the attention that has nowhere
# to go. The loss tells whether that costs anything.

# %%
for group in groups:
    (run,) = group["runs"]
    print(f"{Path(group['name']).name:9} validation loss {run['validation_loss']:.4f}")
