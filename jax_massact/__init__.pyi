from .data.preprocessing import Preprocessing
from .errors import (
    ConfigError,
    DataError,
    ResourceError,
    UserError,
    WeightsError,
)
from .loading import load, load_encoder, open
from .measure.attention import AttentionStats, attention_stats
from .measure.definition import Definition, Threshold
from .measure.fold import fold
from .measure.loss import perplexity, token_losses
from .measure.magnitudes import Magnitudes, magnitudes, residual_streams
from .measure.massive import Massive, find_massive
from .measure.mechanism import (
    LayerMechanism,
    explain,
    massive_tokens,
    sink_rate,
)
from .measure.quantize import round_weights, smooth
from .measure.registers import fix_registers, fold_registers, register_means
from .measure.super_weights import SuperWeights, super_weights
from .nn.acts import Acts
from .nn.config import ModelConfig
from .nn.edits import Edits
from .nn.rounding import Rounding
from .nn.stream import stream
from .nn.transformer import Transformer
from .saving import save

__version__: str

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
    "Preprocessing",
    "ResourceError",
    "Rounding",
    "SuperWeights",
    "Threshold",
    "UserError",
    "WeightsError",
    "attention_stats",
    "explain",
    "find_massive",
    "fix_registers",
    "fold",
    "fold_registers",
    "load",
    "load_encoder",
    "magnitudes",
    "massive_tokens",
    "open",
    "perplexity",
    "register_means",
    "residual_streams",
    "round_weights",
    "save",
    "sink_rate",
    "super_weights",
    "smooth",
    "stream",
    "token_losses",
]
