"""DINOv3 (Siméoni et al. 2025): rotary positions of patches, registers, keys without a bias."""

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.families.encoder import (
    IMAGENET,
    PATCHES,
    SIZES,
    Encoder,
    Shapes,
    always,
    attention_names,
    mlp_names,
    norm_names,
    read_encoder,
)
from jax_massact.families.fields import Fields
from jax_massact.families.places import Place, in_blocks
from jax_massact.weights.settings import Settings

NAMES = {
    "patches": Place("embeddings.patch_embeddings.weight", PATCHES),
    "cls": Place("embeddings.cls_token", "11d->d"),
    "prefix": Place("embeddings.register_tokens", "1sd->sd"),
    "final_norm.scale": Place("norm.weight", "d->d"),
    "head": Place("classifier.weight", "vy->yv"),
    **in_blocks("layer.{l}.", {
        **norm_names("norm1", "norm2"),
        **attention_names(*(f"attention.{x}_proj" for x in "qkvo")),
        **mlp_names("mlp.up_proj", "mlp.down_proj"),
        "mlp.gate": Place("mlp.gate_proj.weight", "fd->df"),
        "attn_gain": Place("layer_scale1.lambda1", "d->d"),
        "mlp_gain": Place("layer_scale2.lambda1", "d->d"),
    }),
}  # fmt: skip


def read(settings: Settings, shapes: Shapes) -> Fields:
    """The fields of a DINOv3 ViT."""
    del shapes
    query = settings.flag("query_bias", True)
    settings.one_of("value_bias", (query,), True)
    return read_encoder(settings) | {
        "embed.positions": "none",
        "embed.patches.cls_position": False,
        "registers": settings.count("num_register_tokens"),
        "block.attention.position": "rope_2d",
        "block.attention.rope.base": settings.number("rope_theta"),
        "block.attention.qkv_bias": query,
        "block.attention.key_bias": settings.flag("key_bias", False),
        "block.attention.out_bias": settings.flag("proj_bias", True),
        "block.mlp.bias": settings.flag("mlp_bias", True),
        "block.mlp.gated": settings.flag("use_gated_mlp", False),
        "block.layer_scale": True,
    }


FAMILY = Encoder(
    model_types=("dinov3_vit",), about="DINOv3 ViT",
    defaults=SIZES | {
        "layer_norm_eps": 1e-5, "hidden_size": 384, "num_attention_heads": 6,
        "intermediate_size": 1536, "rope_theta": 100.0, "num_register_tokens": 0,
    },
    read=read, names=always(NAMES), normalization=IMAGENET,
    pictures=Preprocessing(edge=224, crop=224, resize="squash", filter="bilinear"),
    renames=((r"^(dinov3_vit|model)\.", ""), (r"^model\.", "")),
)  # fmt: skip
