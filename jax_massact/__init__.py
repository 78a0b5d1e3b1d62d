"""Massive activations, attention sinks and outlier features in transformers, in JAX.

`import jax_massact as ma`, then `ma.load` a checkpoint and call the pure functions below on it.
"""

from jax_massact.errors import (
    ConfigError,
    DataError,
    ResourceError,
    UserError,
    WeightsError,
)
from jax_massact.load import load
from jax_massact.measure.attention import AttentionStats, attention_stats
from jax_massact.measure.definition import Definition, Threshold
from jax_massact.measure.fold import fold
from jax_massact.measure.loss import perplexity, token_losses
from jax_massact.measure.magnitudes import Magnitudes, magnitudes, residual_streams
from jax_massact.measure.massive import Massive, find_massive
from jax_massact.measure.mechanism import (
    LayerMechanism,
    explain,
    massive_tokens,
    sink_rate,
)
from jax_massact.nn.acts import Acts
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.edits import Edits
from jax_massact.nn.transformer import Transformer
from jax_massact.save import save

__all__ = [
    "Acts",
    "AttentionStats",
    "ConfigError",
    "DataError",
    "Transformer",
    "Definition",
    "Edits",
    "LayerMechanism",
    "Magnitudes",
    "Massive",
    "ModelConfig",
    "ResourceError",
    "Threshold",
    "UserError",
    "WeightsError",
    "attention_stats",
    "explain",
    "find_massive",
    "fold",
    "load",
    "magnitudes",
    "massive_tokens",
    "perplexity",
    "residual_streams",
    "save",
    "sink_rate",
    "token_losses",
]
