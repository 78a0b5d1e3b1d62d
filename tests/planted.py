"""Models in which massive activations and outlier features are put by hand, and where."""

import numpy as np
from tiny_models import CONFIGS, put, varied

from jax_massact.nn.config import ModelConfig
from jax_massact.nn.transformer import (
    Transformer,
    abstract,
    from_parameters,
    parameters,
)

# One head, so that attention can be written down; token 0 is marked by its position.
CONFIG = varied(
    CONFIGS["gpt2"], depth=6, heads=1, kv_heads=1, first_position=0, tied=False
)
MARK = 14  # +4 at the first token, -4 at all others
DIM, WRITER, REMOVER, VALUE = 3, 1, 4, 500.0
# Here token BOS is marked, by its embedding.
LLAMA_CONFIG = varied(CONFIGS["llama"], depth=6)
BOS = 1


class Plant:
    """The parameters of a quiet model, to be written into."""

    def __init__(self, config: ModelConfig = CONFIG, seed: int = 0):
        rng = np.random.default_rng(seed)
        shapes = parameters(abstract(config))
        self.config = config
        self.p = {n: 0.02 * rng.standard_normal(x.shape) for n, x in shapes.items()}
        for name in self.p:
            if name.endswith("scale"):
                self.p[name][:] = 1.0
        if config.embed.positions == "learned":
            self.p["positions"][:, MARK] = -4.0
            self.p["positions"][0, MARK] = 4.0
            self.p["embed"][:, MARK] = 0.0
        else:
            self.p["embed"][:, MARK] = -4.0
            self.p["embed"][BOS, MARK] = 4.0

    def mlp(self, layer: int, unit: int, reads: int, dim: int, value: float, gain: float = 10.0):
        """Block `layer` adds about `value` to `dim` where the normed `reads` is large."""
        names = ("up", "gate", "up_bias", "down")
        p = {n: self.p[f"blocks.mlp.{n}"][layer] for n in names if f"blocks.mlp.{n}" in self.p}
        p["up"][:, unit] = 0.0
        p["up"][reads, unit] = gain
        if "gate" in p:
            p["gate"][:, unit] = p["up"][:, unit]
        else:
            p["up_bias"][unit] = -gain
        p["down"][unit] = 0.0
        p["down"][unit, dim] = value
        return self

    def louder(self, factor: float = 5.0):
        """Attention that matters: queries, keys and values far from 0."""
        for name in ("q", "k", "v", "out"):
            self.p[f"blocks.attn.{name}"] *= factor
        return self

    def build(self) -> Transformer:
        arrays = {n: put(x, np.float32) for n, x in self.p.items()}
        return from_parameters(self.config, arrays)


def llama_written_and_removed(value: float = VALUE, seed: int = 0) -> Plant:
    """As `written_and_removed`, at the token BOS of a LLaMA."""
    plant = Plant(LLAMA_CONFIG, seed)
    # The mark is 4 deviations, and so is the value later: silu(40) * 40.
    plant.mlp(WRITER, 5, MARK, DIM, value / 1600)
    plant.mlp(REMOVER, 6, DIM, DIM, -value / 1600)
    return plant


def written_and_removed(
    value: float = VALUE, seed: int = 0, config: ModelConfig = CONFIG
) -> Plant:
    """About `value` in DIM at the first token, after block WRITER and until block REMOVER."""
    plant = Plant(config, seed)
    # The mark is sqrt(15) deviations from the mean of its token, and so is the value itself later:
    # gelu(10 (sqrt(15) - 1)).
    unit = 10 * (np.sqrt(15) - 1)
    plant.mlp(WRITER, 5, MARK, DIM, value / unit)
    plant.mlp(REMOVER, 6, DIM, DIM, -value / unit)
    return plant
