"""Massive activations, attention sinks and outlier features in transformers, in JAX.

`import jax_massact as ma`, then `ma.load` a checkpoint and call the pure functions below on it.
"""

from jax_massact.config import Definition, ModelConfig, Threshold
from jax_massact.errors import ConfigError, DataError, ResourceError, UserError, WeightsError
from jax_massact.nn.block import Acts
from jax_massact.nn.decoder import Decoder
from jax_massact.nn.edits import Edits
from jax_massact.probe.attention import AttentionStats, attention_stats
from jax_massact.probe.fold import fold
from jax_massact.probe.loss import perplexity, token_losses
from jax_massact.probe.magnitudes import Magnitudes, magnitudes, residual_streams
from jax_massact.probe.massive import Massive, find_massive
from jax_massact.probe.mechanism import LayerMechanism, explain, massive_tokens, sink_rate
from jax_massact.weights.load import load
from jax_massact.weights.save import save

__all__ = [
    "Acts",
    "AttentionStats",
    "ConfigError",
    "DataError",
    "Decoder",
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
