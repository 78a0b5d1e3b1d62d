"""The effect of attention variants in half a minute on a laptop: sinks on Bigram-Backcopy.

Command:  massact compare --config=configs/gpt2_tiny.py --seeds=3 --workdir=DIR
          massact train --config=configs/gpt2_tiny.py:kv_bias --workdir=DIR
Hardware: 2 CPU cores.
Time:     two and a half minutes for the nine runs of the first command on a machine that was shared
          (11 to 14 seconds a run, and 1.4 to 3.4 for its interventions); ten where others kept both
          cores busy.
Shows:    standard attention makes the first token a sink within 250 steps. With k' and v' it does
          not: the extra key takes that attention. A learned sink token takes it in most seeds, and
          the first token is a sink beside it. Sink rate after 600 steps, 3 seeds: standard 1.0
          +- 0, sink 0.79 +- 0.36 (1.0, 0.38 and 1.0), kv_bias 0 +- 0; of the sink token 0, 1 and 1,
          of the extra key 1.0 +- 0. Validation loss 1.6016 +- 0.0006, 1.6018 +- 0.0004 and 1.6014
          +- 0.0006; on the same batches, sink is 0.0002 +- 0.0002 above standard and kv_bias 0.0002
          +- 0.0001 below (docs/results/compare-gpt2-tiny.json).
          It does not show massive activations: at this size the ratio of the largest magnitude to
          the median is about 12 in all three, so that there is nothing to intervene on.

Muon is used because k' is a vector: at this width one step of Adam moves the key of a token, a
matrix times a normalized stream, many times as far as k', the first token wins the race, and the
lower layer keeps its sink even with k' in most seeds. Muon's steps are of about equal size in both.
"""

import ml_collections

from jax_massact.nn.variants import VARIANTS

WIDTH, LENGTH = 64, 64
ARGUMENTS = tuple(VARIANTS)


def get_config(attention: str) -> ml_collections.ConfigDict:
    """Settings of `massact train`; `attention` is a variant of attention."""
    return ml_collections.ConfigDict(
        {
            "model": {
                "depth": 2, "width": WIDTH, "context_length": LENGTH, "dtype": "float32",
                "embed": {"vocab_size": 257},
                "block": {
                    "attention": {
                        "variant": attention, "heads": 1, "kv_heads": 1, "head_dim": WIDTH,
                    },
                    "mlp": {"hidden": 4 * WIDTH},
                },
            },
            "data": {"source": "bigram-backcopy"},
            "optimizer": {
                "name": "muon", "lr": 1e-2, "final_lr": 1e-3, "warmup": 50, "decay_end": 0,
                "weight_decay": 0.0,
            },
            "watch": {"every": 50, "sequences": 16, "sink_tokens": LENGTH},
            "checkpoint": {"every": 300},
            "steps": 600,
            "batch_size": 32,
            "sequence_length": LENGTH,
            "validate_every": 200,
        }
    )
