"""What the file of a family says about it; the files have no other contact with the package."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax_massact.families.fields import Fields
from jax_massact.families.places import Names
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.gguf import GgufFile
from jax_massact.weights.settings import Settings


class Gguf(NamedTuple):
    """A family in GGUF files.

    Attributes:
      architecture: `general.architecture`.
      read: the fields that the metadata states; settings have the architecture in front.
      names: where the parameters of a model lie.
    """

    architecture: str
    read: Callable[[Settings, GgufFile], Fields]
    names: Callable[[ModelConfig], Names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of models.

    Attributes:
      model_type: Hugging Face's name.
      about: whose models these are, for people.
      architecture, base: Hugging Face's classes with and without a head.
      defaults: the settings that a `config.json` may leave out, as in transformers.
      read: the fields that a `config.json` states.
      write: the settings of a `config.json` that state a configuration as far as they can.
      names: where the parameters of a model lie in Hugging Face's files.
      own_names: where further ones lie that only models of this package have.
      gguf: the family in GGUF files; None: llama.cpp does not have it under a name of its own.
      bos: whether its models were trained with BOS in front of every sequence; None: some were.
    """

    model_type: str
    about: str
    architecture: str
    base: str
    defaults: Mapping[str, Any]
    read: Callable[[Settings], Fields]
    write: Callable[[ModelConfig], dict[str, Any]]
    names: Callable[[ModelConfig], Names]
    own_names: Callable[[ModelConfig], Names]
    gguf: Gguf | None
    bos: bool | None = None


def always(names: Names) -> Callable[[ModelConfig], Names]:
    """The same names for every model of a family."""
    return lambda config: names
