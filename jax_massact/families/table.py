"""The table of families. To add one, write its file and its row; `Family` says what both hold."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from jax_massact.families import decoder, gguf, gpt2, llama, mistral, qwen2
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
      names: where its parameters lie.
    """

    architecture: str
    read: Callable[[Settings, GgufFile], Fields]
    names: Names


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of models.

    Attributes:
      model_type: Hugging Face's name.
      architecture, base: Hugging Face's classes with and without a head.
      defaults: the settings that a `config.json` may leave out, as in transformers.
      read: the fields that a `config.json` states.
      write: the settings of a `config.json` that state a configuration as far as they can.
      names: where the parameters of its models lie in Hugging Face's files.
      own_names: where further ones lie that only models of this package have.
      gguf: the family in GGUF files; None: llama.cpp does not have it under a name of its own.
    """

    model_type: str
    architecture: str
    base: str
    defaults: Mapping[str, Any]
    read: Callable[[Settings], Fields]
    write: Callable[[ModelConfig], dict[str, Any]]
    names: Names
    own_names: Callable[[ModelConfig], Names]
    gguf: Gguf | None


# A model is saved as the first of those that can state it.
FAMILIES = (
    Family(
        model_type="llama", architecture="LlamaForCausalLM", base="LlamaModel",
        defaults=llama.DEFAULTS, read=llama.read, write=llama.write,
        names=decoder.NAMES, own_names=decoder.own_names,
        gguf=Gguf("llama", gguf.read_decoder, llama.GGUF_NAMES),
    ),
    Family(
        model_type="mistral", architecture="MistralForCausalLM", base="MistralModel",
        defaults=mistral.DEFAULTS, read=mistral.read, write=mistral.write,
        names=decoder.NAMES, own_names=decoder.own_names,
        gguf=None,
    ),
    Family(
        model_type="qwen2", architecture="Qwen2ForCausalLM", base="Qwen2Model",
        defaults=qwen2.DEFAULTS, read=qwen2.read, write=qwen2.write,
        names=decoder.NAMES, own_names=decoder.own_names,
        gguf=Gguf("qwen2", qwen2.read_gguf, gguf.NAMES),
    ),
    Family(
        model_type="gpt2", architecture="GPT2LMHeadModel", base="GPT2Model",
        defaults=gpt2.DEFAULTS, read=gpt2.read, write=gpt2.write,
        names=gpt2.NAMES, own_names=gpt2.own_names,
        gguf=Gguf("gpt2", gpt2.read_gguf, gpt2.GGUF_NAMES),
    ),
)  # fmt: skip
