"""Massive activations in a LLaMA of 42M parameters, in minutes.

Command:  massact train --config=configs/llama_30m.py:standard --workdir=runs/standard
Hardware: one GPU.
Time:     218 to 253 s on an H200 that two runs share (7,000 steps of 16,384 tokens), without
          start and compilation.
Shows:    in `standard` an activation of 1,792 to 2,432 at the first token, 1,270 to 1,895 times
          the median: strict in three seeds of three. In `kv_bias` 76, 92 and 167 times, no sinks,
          and nothing strict; int8 in the residual stream costs 0.12 nats in place of 4.19. In
          `sink` 336 to 1,076 times the median, on the sink token and the first one. docs/results.md
          has the other variants, what else was tried, and the corpus, which is not the one below.

SwiGLU writes it within 1,000 steps where GELU needs 3,000. The ratio grows while the learning
rate is high, and further as it falls to 0: the median falls faster than the largest. The
prediction at the first token, which nothing determines, would hold it back, and is left out of
the loss; a larger `eps` keeps what no head reads from growing.
"""

import ml_collections

from jax_massact.nn.variants import VARIANTS

WIDTH, LENGTH, HEAD_DIM = 512, 256, 64
ARGUMENTS = tuple(VARIANTS)


def get_config(attention: str) -> ml_collections.ConfigDict:
    """Settings of `massact train`; `attention` is a variant of attention."""
    heads = WIDTH // HEAD_DIM
    return ml_collections.ConfigDict(
        {
            "model": {
                "depth": 12, "width": WIDTH, "context_length": LENGTH, "dtype": "bfloat16",
                "embed": {"vocab_size": 8192, "positions": "none"},
                "block": {
                    "attention": {
                        "variant": attention, "heads": heads, "kv_heads": heads,
                        "head_dim": HEAD_DIM, "position": "rope",
                    },
                    "mlp": {"hidden": 1376, "activation": "silu", "gated": True},
                    "norm": {"kind": "rms", "eps": 1e-5},
                },
                "final_norm": {"kind": "rms", "eps": 1e-5},
                "head": {"tied": True},
            },
            "data": {
                "source": "tfds:imdb_reviews:train+unsupervised", "tokenizer": "bpe:8192",
                "same_first_token": True,
            },
            "optimizer": {
                "name": "adamw", "lr": 3e-3, "final_lr": 0.0,
                "schedule": "constant_then_decay", "warmup": 500, "decay_start": 5_000,
                "decay_end": 0, "beta1": 0.9, "beta2": 0.95, "eps": 1e-6,
                "weight_decay": 0.3, "clip": 1.0,
                # A token whose stream is one dimension has a key that moves by so much more.
                "extra_key_lr": WIDTH**0.5,
            },
            "watch": {"every": 50, "sequences": 16},
            "checkpoint": {"every": 0},
            "steps": 7_000,
            "batch_size": 64,
            "sequence_length": LENGTH,
            "loss_from": 1,
            "validate_every": 5000,
            "validation_batches": 16,
        }
    )
