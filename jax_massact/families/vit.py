"""ViT and DeiT (Dosovitskiy et al. 2021, Touvron et al. 2021), and the encoder of MAE (He et al.
2022)."""

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.families.encoder import (
    HALF,
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

# What transformers 5 calls the tensors, in the words of the files on the hub.
NEW_NAMES = (
    (r"^layers\.", "encoder.layer."),
    (r"\.attention\.([qkv])_proj\.", r".attention.attention.\1_proj."),
    (r"\.attention\.attention\.q_proj\.", ".attention.attention.query."),
    (r"\.attention\.attention\.k_proj\.", ".attention.attention.key."),
    (r"\.attention\.attention\.v_proj\.", ".attention.attention.value."),
    (r"\.attention\.o_proj\.", ".attention.output.dense."),
)
ATTENTION = attention_names(
    "attention.attention.query", "attention.attention.key", "attention.attention.value",
    "attention.output.dense",
)
EMBEDDINGS = {
    "patches": Place("embeddings.patch_embeddings.projection.weight", PATCHES),
    "cls": Place("embeddings.cls_token", "11d->d"),
    "cls_position": Place("embeddings.position_embeddings", "1[q]d->d"),
    "positions": Place("embeddings.position_embeddings", "1[p]d->pd"),
    "prefix": Place("embeddings.register_tokens", "1sd->sd"),
    "final_norm.scale": Place("layernorm.weight", "d->d"),
    "head": Place("classifier.weight", "vy->yv"),
}
NAMES = EMBEDDINGS | in_blocks("encoder.layer.{l}.", {
    **norm_names("layernorm_before", "layernorm_after"),
    **ATTENTION,
    **mlp_names("intermediate.dense", "output.dense"),
})  # fmt: skip


def read(settings: Settings, shapes: Shapes) -> Fields:
    """The fields of a ViT, or of MAE's encoder."""
    del shapes
    return read_encoder(settings)


_MLP = (
    (r"^(encoder\.layer\.\d+)\.mlp\.fc1\.", r"\1.intermediate.dense."),
    (r"^(encoder\.layer\.\d+)\.mlp\.fc2\.", r"\1.output.dense."),
)
_PREFIX = ((r"^vit\.", ""),)

FAMILY = Encoder(
    model_types=("vit",), about="ViT, DeiT", defaults=SIZES | {"layer_norm_eps": 1e-12},
    read=read, names=always(NAMES), normalization=HALF,
    pictures=Preprocessing(edge=224, crop=224, resize="squash", filter="bilinear"),
    renames=_PREFIX + NEW_NAMES + _MLP, ignored=r"(.*\.)?mask_token|pooler\..*|decoder\..*",
)  # fmt: skip
MAE = Encoder(
    model_types=("vit_mae",), about="the encoder of MAE", defaults=FAMILY.defaults, read=read,
    names=always(NAMES), pictures=Preprocessing(edge=256, crop=224), normalization=IMAGENET,
    renames=FAMILY.renames, ignored=r"(.*\.)?mask_token|decoder\..*",
)  # fmt: skip
