"""The table of families. To add one, write its file, as `Family` says, and its row here."""

from jax_massact.families import (
    bloom,
    falcon,
    gemma,
    gemma2,
    gemma3,
    gpt2,
    gpt_neox,
    gpt_oss,
    llama,
    mistral,
    mixtral,
    mpt,
    olmo,
    olmo2,
    olmo3,
    opt,
    phi,
    phi3,
    qwen2,
    qwen2_moe,
    qwen3,
    qwen3_moe,
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
    olmo.FAMILY,
    olmo2.FAMILY,
    olmo3.FAMILY,
    mixtral.FAMILY,
    qwen3_moe.FAMILY,
    qwen2_moe.FAMILY,
    gpt_oss.FAMILY,
)
# The families that models trained by this package resemble.
TRAINED = (llama.FAMILY, mistral.FAMILY, qwen2.FAMILY, gpt2.FAMILY)
