"""The table of families. To add one, write its file, as `Family` says, and its row here."""

from jax_massact.families import (
    bloom,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    llama,
    mistral,
    mpt,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
)

# A model is saved as the first of those that can state it.
FAMILIES = (
    llama.FAMILY,
    mistral.FAMILY,
    qwen2.FAMILY,
    gpt2.FAMILY,
    qwen3.FAMILY,
    gemma.FAMILY,
    gemma2.FAMILY,
    gemma3.FAMILY,
    gpt_neox.FAMILY,
    opt.FAMILY,
    phi3.FAMILY,
    phi.FAMILY,
    falcon.FAMILY,
    bloom.FAMILY,
    mpt.FAMILY,
)
