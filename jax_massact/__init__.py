"""Massive activations, attention sinks and outlier features in transformers, in JAX.

`import jax_massact as ma`, then `ma.load` a checkpoint and call the pure functions below on it.
"""

from jax_massact.config import Definition, ModelConfig, Threshold
from jax_massact.errors import ConfigError, DataError, ResourceError, UserError, WeightsError
from jax_massact.nn.block import Acts
from jax_massact.nn.decoder import Decoder
from jax_massact.nn.edits import Edits
from jax_massact.probe.magnitudes import Magnitudes, magnitudes, residual_streams
from jax_massact.probe.massive import Massive, find_massive
from jax_massact.weights.load import load

__all__ = [
    "Acts",
    "ConfigError",
    "DataError",
    "Decoder",
    "Definition",
    "Edits",
    "Magnitudes",
    "Massive",
    "ModelConfig",
    "ResourceError",
    "Threshold",
    "UserError",
    "WeightsError",
    "find_massive",
    "load",
    "magnitudes",
    "residual_streams",
]
