"""GPT-2 124M exactly as Sun et al. (2024, section 4.3) train it, with a choice of attention.

Command:  massact train --config=configs/gpt2_124m.py:kv_bias --workdir=DIR
          massact train --config=configs/gpt2_124m.py:standard --workdir=DIR
Hardware: the authors' batch (480 x 1024 tokens) in 15 parts of 32 fits on one GPU of 80 GB; with
          several, --config.mesh.data=8 --config.accumulate=2.
Time:     50,000 steps are 24.6 billion tokens: 13 hours at 520,000 tokens/s, which is what one H200
          was measured to train in batches of 32 (2026-11-24). No run of this length was made.
Shows:    validation loss of 3.04 for standard, sink and kv_bias alike; massive activations in
          standard, on the sink token in sink, and none in kv_bias (their figures, on OpenWebText).
          Name a corpus of that size with --config.data.source.
"""

import ml_collections

from jax_massact.nn.variants import VARIANTS

ARGUMENTS = tuple(VARIANTS)


def get_config(attention: str) -> ml_collections.ConfigDict:
    """Settings of `massact train`; `attention` is a variant of attention."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "block": {"attention": {"variant": attention}},
                "embed": {"vocab_size": 50304},
                "dtype": "bfloat16",
            },
            "optimizer": {
                "name": "adamw", "lr": 6e-4, "final_lr": 6e-5, "schedule": "cosine",
                "warmup": 2000, "decay_end": 600_000, "beta1": 0.9, "beta2": 0.95,
                "weight_decay": 0.1, "clip": 1.0,
            },
            "steps": 50_000,
            "batch_size": 480,
            "accumulate": 15,
            "sequence_length": 1024,
        }
    )
