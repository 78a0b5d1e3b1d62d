"""OLMo 3 (2025): OLMo 2 with three blocks that have a window before each that has none; positions
are stretched in the latter alone."""

from typing import Any

from jax_massact.families import decoder, gemma2, olmo2
from jax_massact.families.decoder import FULL, SLIDING, read_layer_types
from jax_massact.families.family import Family, always
from jax_massact.families.fields import Fields
from jax_massact.families.gemma3 import layers_of
from jax_massact.families.rope import read_rope, write_scaling
from jax_massact.nn.block_config import RopeConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

DEFAULTS = olmo2.DEFAULTS | {"sliding_window": 4096}
_BASE = 5e5


def read(settings: Settings) -> Fields:
    """The fields that a `config.json` states."""
    depth = decoder.read_depth(settings, "num_hidden_layers")
    usual = [SLIDING if (layer + 1) % olmo2.PERIOD else FULL for layer in range(depth)]
    types = read_layer_types(settings, usual)
    fields = olmo2.read(settings, base=_BASE, layers=FULL)
    sizes = fields["block.attention.head_dim"], fields["context_length"]
    full = read_rope(settings, *sizes, base=_BASE, layers=FULL)
    local = RopeConfig(base=full.base)
    if isinstance(settings.get("rope_parameters"), dict):
        own = {n: v for n, v in settings.values.items() if n != "rope_scaling"}
        local = read_rope(Settings(own, settings.file), *sizes, base=_BASE, layers=SLIDING)
    return {**fields, **layers_of(types, settings.size("sliding_window"), full, local)}


def write(config: ModelConfig) -> dict[str, Any]:
    """The settings of a `config.json`."""
    kinds = {kind.attention.window is None: kind.attention for kind in config.pattern}
    full = kinds.get(True)
    scaling = None if full is None else write_scaling(full, config.context_length)
    return olmo2.write(config) | gemma2.write_windows(config) | {"rope_scaling": scaling}


FAMILY = Family(
    model_type="olmo3", about="OLMo 3", architecture="Olmo3ForCausalLM", base="Olmo3Model",
    defaults=DEFAULTS, read=read, write=write, names=always(olmo2.NAMES),
    own_names=decoder.own_names, gguf=None,
    bos=False,
)  # fmt: skip
