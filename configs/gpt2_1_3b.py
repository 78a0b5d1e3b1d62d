"""A GPT-2 of 1.3 billion parameters, with a choice of attention: the settings of GPT-3 XL.

Command:  massact train --config=configs/gpt2_1_3b.py:standard --workdir=DIR
          massact plan --config=configs/gpt2_1_3b.py:standard --devices=256 --device=h100
Hardware: made for 64 to 256 devices of 80 GB or more. Parameters are split over the 8 devices of a
          node, and the batch over all.
Time:     not run to the end; `massact plan` gives bounds. 50,700 tokens a second on one H100,
          94,800 on two (`mesh=fsdp=2`), 8 sequences on each.
Shows:    whether sink, kv_bias and the other variants keep massive activations away in a model of
          the size at which they are plain in published checkpoints.

Batch (about a million tokens) and learning rate are those of Brown et al. (2020, table 2.1) for
1.3 billion parameters; all else is as in gpt2_124m.py, with 16 heads of 128. Name a corpus with
--config.data.source: 100,000 steps are 105 billion tokens.
"""

import ml_collections

from jax_massact.nn.variants import VARIANTS

WIDTH, LENGTH = 2048, 2048
ARGUMENTS = tuple(VARIANTS)


def get_config(attention: str) -> ml_collections.ConfigDict:
    """Settings of `massact train`; `attention` is a variant of attention."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "depth": 24, "width": WIDTH, "context_length": LENGTH, "dtype": "bfloat16",
                "embed": {"vocab_size": 50304},
                "block": {
                    "attention": {
                        "variant": attention, "heads": 16, "kv_heads": 16, "head_dim": 128,
                    },
                    "mlp": {"hidden": 4 * WIDTH},
                },
            },
            "optimizer": {
                "name": "adamw", "lr": 2e-4, "final_lr": 2e-5, "schedule": "cosine",
                "warmup": 2000, "decay_end": 0, "beta1": 0.9, "beta2": 0.95,
                "weight_decay": 0.1, "clip": 1.0,
            },
            "mesh": "data=-1,fsdp=8",
            "steps": 100_000,
            "batch_size": 512,
            "sequence_length": LENGTH,
            "remat": True,
            "unroll": False,
        }
    )
