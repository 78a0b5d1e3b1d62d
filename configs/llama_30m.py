"""Massive activations in a LLaMA of 42M parameters, in minutes.

Command:  massact train --config=configs/llama_30m.py:standard --workdir=runs/standard
Hardware: one GPU.
Time:     216 to 219 s on an H200 (12,000 steps of 16,384 tokens), with start and compilation.
Shows:    in `standard` an activation of 1,408 to 1,960 at the first token, 792 to 1,226 times the
          median: strict in two runs of four, by chance. Perplexity rises by 11 to 142 % where it is
          set to zero, and by nothing where it is set to its mean. In `kv_bias` 95 to 103 times, no
          sinks, 0.02 to 3.6 %; int8 in the residual stream costs 0.14 nats in place of 3.35. In
          `sink` (one seed) 2,283 times the median, on the sink token. docs/results.md says what
          else was tried, and with which corpus, which was another than the one below.

SwiGLU writes it within 1,000 steps where GELU needs 3,000. The ratio grows while the learning
rate is high, and further as it falls to 0: the median falls faster than the largest.
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
                "schedule": "constant_then_decay", "warmup": 500, "decay_start": 8_500,
                "decay_end": 0, "beta1": 0.9, "beta2": 0.95,
                "weight_decay": 0.2, "clip": 1.0,
                # A token whose stream is one dimension has a key that moves by so much more.
                "extra_key_lr": WIDTH**0.5,
            },
            "watch": {"every": 50, "sequences": 16},
            "checkpoint": {"every": 0},
            "steps": 12_000,
            "batch_size": 64,
            "sequence_length": LENGTH,
            "validate_every": 5000,
            "validation_batches": 16,
        }
    )
