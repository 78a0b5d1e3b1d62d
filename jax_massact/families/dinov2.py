"""DINOv2 (Oquab et al. 2023), without and with registers (Darcet et al. 2024)."""

from typing import Any

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.families.encoder import (
    IMAGENET,
    SIZES,
    Encoder,
    Shapes,
    mlp_names,
    norm_names,
    read_encoder,
)
from jax_massact.families.fields import Fields
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.families.vit import ATTENTION, EMBEDDINGS, NEW_NAMES
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

DEFAULTS = SIZES | {"patch_size": 14, "mlp_ratio": 4, "use_swiglu_ffn": False}
_SCALES = {
    "attn_gain": Place("layer_scale1.lambda1", "d->d"),
    "mlp_gain": Place("layer_scale2.lambda1", "d->d"),
}
# The gate's rows come first.
_GATED = {
    "mlp.gate": Place("mlp.weights_in.weight", "[f]d->df"),
    "mlp.up": Place("mlp.weights_in.weight", "[f]d->df"),
    "mlp.down": Place("mlp.weights_out.weight", "df->fd"),
}


# transformers 5 has them apart.
_APART = mlp_names("mlp.up_proj", "mlp.down_proj") | {
    "mlp.gate": Place("mlp.gate_proj.weight", "fd->df")
}


def names(config: ModelConfig, shapes: Shapes) -> Names:
    """Where the parameters lie."""
    mlp = mlp_names("mlp.fc1", "mlp.fc2")
    if config.block.mlp.gated:
        mlp = _APART if "encoder.layer.0.mlp.gate_proj.weight" in shapes else _GATED
    rows = {**norm_names("norm1", "norm2"), **ATTENTION, **mlp, **_SCALES}
    return EMBEDDINGS | in_blocks("encoder.layer.{l}.", rows)


def _read(settings: Settings, registers: int) -> dict[str, Any]:
    width = settings.size("hidden_size")
    hidden = int(width * settings.number("mlp_ratio"))
    gated = settings.flag("use_swiglu_ffn", False)
    if gated:
        # Two thirds of it, rounded up to a multiple of 8.
        hidden = (int(hidden * 2 / 3) + 7) // 8 * 8
    return read_encoder(settings) | {
        "block.mlp.hidden": hidden,
        "block.mlp.gated": gated,
        **({"block.mlp.activation": "silu"} if gated else {}),
        "block.layer_scale": True,
        "registers": registers,
        # Of the heads that transformers puts on it.
        "head.pool": "cls_mean",
    }


def read(settings: Settings, shapes: Shapes) -> Fields:
    """The fields of a DINOv2 without registers."""
    del shapes
    return _read(settings, 0)


def read_with_registers(settings: Settings, shapes: Shapes) -> Fields:
    """The fields of a DINOv2 with registers."""
    del shapes
    return _read(settings, settings.count("num_register_tokens")) | {
        "embed.patches.resample": "antialias"
    }


_RENAMES = ((r"^dinov2(_with_registers)?\.", ""), *NEW_NAMES)
_PICTURES = Preprocessing(edge=256, crop=224)
FAMILY = Encoder(
    model_types=("dinov2",), about="DINOv2", defaults=DEFAULTS, read=read, names=names,
    pictures=_PICTURES, normalization=IMAGENET, renames=_RENAMES,
)  # fmt: skip
REGISTERS = Encoder(
    model_types=("dinov2_with_registers",), about="DINOv2 with registers",
    defaults=DEFAULTS | {"num_register_tokens": 4}, read=read_with_registers, names=names,
    pictures=_PICTURES, normalization=IMAGENET, renames=_RENAMES,
)  # fmt: skip
