"""The image encoders of CLIP (Radford et al. 2021) and SigLIP (Zhai et al. 2023)."""

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.families.encoder import (
    HALF,
    OPENAI,
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

_NAMES = {
    "patches": Place("embeddings.patch_embedding.weight", PATCHES),
    "final_norm.scale": Place("post_layernorm.weight", "d->d"),
    **in_blocks("encoder.layers.{l}.", {
        **norm_names("layer_norm1", "layer_norm2"),
        **attention_names(*(f"self_attn.{x}_proj" for x in ("q", "k", "v", "out"))),
        **mlp_names("mlp.fc1", "mlp.fc2"),
    }),
}  # fmt: skip
CLIP_NAMES = _NAMES | {
    "cls": Place("embeddings.class_embedding", "d->d"),
    "cls_position": Place("embeddings.position_embedding.weight", "[q]d->d"),
    "positions": Place("embeddings.position_embedding.weight", "[p]d->pd"),
    "embed_norm.scale": Place("pre_layrnorm.weight", "d->d"),
    "head": Place("visual_projection.weight", "vy->yv"),
}
SIGLIP_NAMES = _NAMES | {
    "positions": Place("embeddings.position_embedding.weight", "pd->pd"),
    "head": Place("classifier.weight", "vy->yv"),
    "pool.probe": Place("head.probe", "11d->d"),
    **{f"pool.attn.{x}": Place("head.attention.in_proj_weight", "([1]nh)d->dnh") for x in "qkv"},
    "pool.attn.out": Place("head.attention.out_proj.weight", "d(nh)->nhd"),
    "pool.norm.scale": Place("head.layernorm.weight", "d->d"),
    **{f"pool.{name}": place for name, place in mlp_names("head.mlp.fc1", "head.mlp.fc2").items()},
}


def read_clip(settings: Settings, shapes: Shapes) -> Fields:
    """The fields of a CLIP's image encoder."""
    del shapes
    return read_encoder(settings) | {"embed.norm": True, "embed.patches.bias": False}


def read_siglip(settings: Settings, shapes: Shapes) -> Fields:
    """The fields of a SigLIP's image encoder; a classifier reads the mean of the patches."""
    has_pool = "head.probe" in shapes and "classifier.weight" not in shapes
    return read_encoder(settings) | {
        "embed.patches.cls": False,
        "embed.patches.cls_position": False,
        "head.pool": "map" if has_pool else "mean",
    }


_RENAMES = ((r"^vision_model\.", ""),)
_TEXT = r"text_model\..*|text_projection\..*|logit_scale|logit_bias|(.*\.)?position_ids"
CLIP = Encoder(
    model_types=("clip_vision_model", "clip"), about="the image encoder of CLIP",
    defaults=SIZES | {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "patch_size": 32,
                      "intermediate_size": 3072},
    read=read_clip, names=always(CLIP_NAMES), pictures=Preprocessing(edge=224, crop=224),
    normalization=OPENAI, group="vision_config", renames=_RENAMES, ignored=_TEXT,
)  # fmt: skip
SIGLIP = Encoder(
    model_types=("siglip_vision_model", "siglip"), about="the image encoder of SigLIP",
    defaults=SIZES | {"hidden_act": "gelu_pytorch_tanh", "intermediate_size": 3072},
    read=read_siglip, names=always(SIGLIP_NAMES),
    pictures=Preprocessing(edge=224, crop=224, resize="squash"), normalization=HALF,
    group="vision_config", renames=_RENAMES, ignored=_TEXT,
    of_pool=r"head\.(probe|attention|layernorm|mlp).*",
)  # fmt: skip
