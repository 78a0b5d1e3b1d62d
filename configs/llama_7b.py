"""LLaMA 7B with a choice of attention.

Command:  massact train --config=configs/llama_7b.py:standard --workdir=DIR
          massact plan --config=configs/llama_7b.py:standard --devices=256 --device=h100
Hardware: made for 256 devices of 80 GB or more. Parameters are split over 32 devices, and the batch
          over all.
Time:     not run. `massact plan` gives bounds.
Shows:    whether sink, kv_bias and the other variants keep massive activations away where the
          published model has its strongest, in a model that is trained from the start.

Shape, batch (4 million tokens), learning rate and its schedule are those of Touvron et al. (2023,
"LLaMA: Open and Efficient Foundation Language Models", table 2 and section 2.3). Name a corpus with
--config.data.source: 238,000 steps are a trillion tokens.
"""

import ml_collections

from jax_massact.nn.variants import VARIANTS

WIDTH, LENGTH = 4096, 2048
ARGUMENTS = tuple(VARIANTS)


def get_config(attention: str) -> ml_collections.ConfigDict:
    """Settings of `massact train`; `attention` is a variant of attention."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "depth": 32, "width": WIDTH, "context_length": LENGTH, "dtype": "bfloat16",
                "embed": {"vocab_size": 32_000, "positions": "none"},
                "block": {
                    "attention": {
                        "variant": attention, "heads": 32, "kv_heads": 32, "head_dim": 128,
                        "position": "rope",
                    },
                    "mlp": {"hidden": 11_008, "activation": "silu", "gated": True},
                    "norm": {"kind": "rms", "eps": 1e-6},
                },
                "final_norm": {"kind": "rms", "eps": 1e-6},
                "head": {"tied": False},
            },
            "optimizer": {
                "name": "adamw", "lr": 3e-4, "final_lr": 3e-5, "schedule": "cosine",
                "warmup": 2000, "decay_end": 0, "beta1": 0.9, "beta2": 0.95,
                "weight_decay": 0.1, "clip": 1.0,
            },
            "mesh": "data=-1,fsdp=32",
            "steps": 238_000,
            "batch_size": 2048,
            "accumulate": 2,
            "sequence_length": LENGTH,
            "remat": True,
            "unroll": False,
        }
    )
