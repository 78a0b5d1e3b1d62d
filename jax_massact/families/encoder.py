"""What the families of image encoders have in common, and what the file of each says about it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.families.decoder import read_depth
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Names, Place
from jax_massact.nn.block_config import ActivationKind
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

# Shapes of the tensors of a file, by name.
Shapes = Mapping[str, tuple[int, ...]]
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
OPENAI = {
    "mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711),
}
ACTIVATIONS: dict[str, ActivationKind] = {
    "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_tanh": "gelu_tanh", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoder:
    """One family of image encoders.

    Attributes:
      model_types: what `config.json` calls it; the first is its name.
      about: whose models these are, for people.
      defaults: the settings that a `config.json` may leave out, as in transformers.
      read: the fields that the settings and the shapes of the tensors state; the tensor of the
        head, if there is one, is added by `families.encoder_files`.
      names: where the parameters of a model lie, in a file with tensors of these shapes.
      pictures: how pictures are prepared where no file says it.
      normalization: mean and standard deviation of the channels, likewise.
      group: the setting that holds the encoder's settings, if they have a group of their own.
      renames: patterns in the names of tensors and what stands for them in `names`; in order.
      ignored: pattern of the tensors that are no part of the encoder.
      of_pool: pattern of those of a pooling head, left out where a classifier reads the mean.
    """

    model_types: tuple[str, ...]
    about: str
    defaults: Mapping[str, Any]
    read: Callable[[Settings, Shapes], Fields]
    names: Callable[[ModelConfig, Shapes], Names]
    pictures: Preprocessing
    normalization: Mapping[str, tuple[float, ...]]
    group: str = ""
    renames: tuple[tuple[str, str], ...] = ()
    ignored: str = r"(.*\.)?mask_token"
    of_pool: str = ""


def always(names: Names) -> Callable[[ModelConfig, Shapes], Names]:
    """The same names for every model of a family."""
    return lambda config, shapes: names


def pair(settings: Settings, name: str) -> tuple[int, int]:
    """A size in pixels: one number, or rows and columns."""
    value = settings.get(name)
    if isinstance(value, list) and len(value) == 2:
        each = {f"{name}[{i}]": v for i, v in enumerate(value)}
        rows, columns = (Settings(each, settings.file).size(key) for key in each)
        return rows, columns
    return settings.size(name), settings.size(name)


def read_encoder(settings: Settings) -> dict[str, Any]:
    """Fields that all of Hugging Face's encoders state in the same words."""
    width, heads = settings.size("hidden_size"), settings.size("num_attention_heads")
    if width % heads:
        raise settings.error("num_attention_heads", f"a divisor of hidden_size, which is {width}")
    size, (rows, columns) = pair(settings, "patch_size"), pair(settings, "image_size")
    if size[0] != size[1]:
        raise settings.error("patch_size", "square patches")
    patch, act = size[0], settings.one_of("hidden_act", tuple(ACTIVATIONS))
    grid = (max(rows // patch, 1), max(columns // patch, 1))
    bias = settings.flag("qkv_bias", True)
    return {
        "depth": read_depth(settings, "num_hidden_layers"),
        "width": width,
        "context_length": grid[0] * grid[1],
        "embed.vocab_size": 1,
        "embed.positions": "learned",
        "embed.patches.size": patch,
        "embed.patches.grid": grid,
        "embed.patches.channels": settings.size("num_channels", 3),
        "block.attention.heads": heads,
        "block.attention.kv_heads": heads,
        "block.attention.head_dim": width // heads,
        "block.attention.position": "none",
        "block.attention.causal": False,
        "block.attention.qkv_bias": bias,
        "block.attention.out_bias": True,
        "block.mlp.hidden": settings.size("intermediate_size", 4 * width),
        "block.mlp.activation": ACTIVATIONS[act],
        "block.mlp.gated": False,
        "block.mlp.bias": True,
        **in_all_norms(kind="layer", bias=True, eps=settings.number("layer_norm_eps")),
        "head.present": False,
        "head.pool": "cls",
    }


SIZES = {
    "num_channels": 3, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768,
    "hidden_act": "gelu", "layer_norm_eps": 1e-6, "image_size": 224, "patch_size": 16,
}  # fmt: skip


def attention_names(q: str, k: str, v: str, out: str) -> dict[str, Place]:
    """The projections of a block's attention, each a matrix of its own."""
    return {
        "attn.q": Place(f"{q}.weight", "(nh)d->dnh"),
        "attn.k": Place(f"{k}.weight", "(kh)d->dkh"),
        "attn.v": Place(f"{v}.weight", "(kh)d->dkh"),
        "attn.out": Place(f"{out}.weight", "d(nh)->nhd"),
    }


def mlp_names(up: str, down: str) -> dict[str, Place]:
    """The projections of an MLP."""
    return {
        "mlp.up": Place(f"{up}.weight", "fd->df"),
        "mlp.down": Place(f"{down}.weight", "df->fd"),
    }


def norm_names(attn: str, mlp: str) -> dict[str, Place]:
    """The norms of a block; their biases lie beside them."""
    return {
        "attn_norm.scale": Place(f"{attn}.weight", "d->d"),
        "mlp_norm.scale": Place(f"{mlp}.weight", "d->d"),
    }


# Of a convolution.
PATCHES = "dcab->(cab)d"
