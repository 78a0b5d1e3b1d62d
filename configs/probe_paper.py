"""The paper's location study: 100 sequences of the longest length that a laptop does in minutes.

Command:  massact probe smollm2-135m --config=configs/probe_paper.py --workdir=DIR
          massact probe smollm2-135m --config=configs/probe_paper.py:bos --workdir=DIR
Hardware: 2 CPU cores.
Time:     about a minute.
Shows:    which dimensions carry massive activations in 100 sequences, how constant their values
          are (mean and standard deviation), and on which tokens they sit, without or with BOS.
"""

import ml_collections


def get_config(variant: str = "auto") -> ml_collections.ConfigDict:
    """Settings of `massact probe`; `variant` is `auto`, `bos` or `no_bos`."""
    choices = {"auto": "auto", "bos": "true", "no_bos": "false"}
    if variant not in choices:
        raise ValueError(f"variant is {variant!r}; expected: {', '.join(choices)}")
    config = ml_collections.ConfigDict()
    config.sequences = 100
    config.sequence_length = 512
    config.bos = choices[variant]
    return config
