"""What the families that look like LLaMA have in common in Hugging Face's files."""

from collections.abc import Callable
from typing import Any

from jax_massact.families.fields import in_all_norms
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.families.rope import read_rope, rope_fields, write_rope
from jax_massact.nn.block_config import ActivationKind
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

_ACTIVATIONS: dict[str, ActivationKind] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}
_MAX_DEPTH = 10_000
_WRITTEN = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


def read_activation(settings: Settings, name: str) -> ActivationKind:
    """The activation that the setting `name` states."""
    return _ACTIVATIONS[settings.one_of(name, tuple(_ACTIVATIONS))]


def write_activation(config: ModelConfig) -> str:
    """Hugging Face's name of the MLP's activation."""
    return _WRITTEN.get(config.block.mlp.activation, "silu")


def read_depth(settings: Settings, name: str) -> int:
    """The number of blocks, of which lists of one entry each can be made."""
    depth = settings.size(name)
    if depth > _MAX_DEPTH:
        raise settings.error(name, f"at most {_MAX_DEPTH:,} blocks")
    return depth


FULL, SLIDING = "full_attention", "sliding_attention"


def read_layer_types(settings: Settings, default: list[str]) -> list[str]:
    """The kind of every layer's attention, as it is stated, or as the family has it."""
    types = settings.get("layer_types", default)
    known = isinstance(types, list) and len(types) == len(default)
    if not known or not set(map(str, types)) <= {FULL, SLIDING}:
        raise settings.error("layer_types", f"{len(default)} times {FULL!r} or {SLIDING!r}")
    return types


def read_decoder(
    settings: Settings, *, activation: str = "hidden_act", eps: str = "rms_norm_eps", **rope: Any
) -> dict[str, Any]:
    """Fields of a model with rotary positions, in the words of LLaMA.

    Args:
      activation, eps: what these settings are called.
      rope: of `read_rope`.

    Raises:
      WeightsError, ConfigError: a setting is not supported, or one is missing or wrong.
    """
    width, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    head_dim = settings.size("head_dim", max(width // heads, 1))
    context_length = settings.size("max_position_embeddings")
    return {
        "embed.vocab_size": settings.size("vocab_size"),
        "depth": read_depth(settings, "num_hidden_layers"),
        "width": width,
        "context_length": context_length,
        "block.attention.heads": heads,
        "block.attention.kv_heads": settings.size("num_key_value_heads", heads),
        "block.attention.head_dim": head_dim,
        **rope_fields(read_rope(settings, head_dim, context_length, **rope)),
        "block.mlp.hidden": settings.size("intermediate_size"),
        "block.mlp.activation": read_activation(settings, activation),
        **in_all_norms(eps=settings.number(eps)),
        "head.tied": settings.flag("tie_word_embeddings", False),
    }


def write_decoder(
    config: ModelConfig, *, activation: str = "hidden_act", eps: str = "rms_norm_eps"
) -> dict[str, Any]:
    """The inverse of `read_decoder`."""
    attention = config.block.attention
    turned = [kind.attention for kind in config.pattern if kind.attention.position == "rope"]
    return {
        "vocab_size": config.embed.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.block.mlp.hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        activation: write_activation(config),
        "max_position_embeddings": config.context_length,
        eps: config.block.norm.eps,
        **write_rope((turned or [attention])[0], config.context_length),
        "tie_word_embeddings": config.head.tied,
    }


NAMES = {
    "embed": Place("model.embed_tokens.weight", "vd->vd"),
    "final_norm.scale": Place("model.norm.weight", "d->d"),
    "head": Place("lm_head.weight", "vd->dv"),
    **in_blocks(
        "model.layers.{l}.",
        {
            "attn_norm.scale": Place("input_layernorm.weight", "d->d"),
            "attn.q": Place("self_attn.q_proj.weight", "(nh)d->dnh"),
            "attn.k": Place("self_attn.k_proj.weight", "(kh)d->dkh"),
            "attn.v": Place("self_attn.v_proj.weight", "(kh)d->dkh"),
            "attn.out": Place("self_attn.o_proj.weight", "d(nh)->nhd"),
            "mlp_norm.scale": Place("post_attention_layernorm.weight", "d->d"),
            "mlp.gate": Place("mlp.gate_proj.weight", "fd->df"),
            "mlp.up": Place("mlp.up_proj.weight", "fd->df"),
            "mlp.down": Place("mlp.down_proj.weight", "df->fd"),
        },
    ),
}


def own_names(config: ModelConfig) -> Names:
    """Places for what such a model has in this package alone."""
    del config
    return _OWN


_OWN = {
    "positions": Place("model.embed_positions.weight", "pd->pd"),
    "prefix": Place("model.front.weight", "sd->sd"),
}


def own_names_behind(model: str, blocks: str) -> Callable[[ModelConfig], Names]:
    """As `own_names`, for families that have no gate and call their parts otherwise.

    Args:
      model, blocks: how the names of the model's and of a block's tensors begin.
    """
    names = {
        "positions": Place(f"{model}embed_positions.weight", "pd->pd"),
        "prefix": Place(f"{model}front.weight", "sd->sd"),
        **in_blocks(blocks, {"mlp.gate": Place("mlp.gate_proj.weight", "fd->df")}),
    }
    return lambda config: names
