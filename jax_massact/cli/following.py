"""Which study goes on from one that has ended."""

from jax_massact.cli.table import COMMANDS, load
from jax_massact.errors import ConfigError
from jax_massact.nn.config import ModelConfig

# In which order a person asks: what is there, is it needed, by what, is it a constant, its price.
ORDER = ("probe", "intervene", "explain", "fold", "quantize")
ORDER_OF_IMAGES = ("probe", "intervene", "registers", "fold")


def following(name: str, model: ModelConfig) -> str | None:
    """The study that goes on from this one, of those that take the model; None: there is none."""
    order = ORDER if model.embed.patches is None else ORDER_OF_IMAGES
    for after in order[order.index(name) + 1 :] if name in order else ():
        try:
            load(COMMANDS[after].settings)().check(model)
        except ConfigError:
            continue
        return after
    return None
