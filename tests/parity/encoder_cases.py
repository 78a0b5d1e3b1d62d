"""Small odd image encoders, as `config.json` files; a row says whose numbers it is compared with.

`make_encoder_fixtures.py` has transformers and timm compute them, `test_encoders.py` compares.
"""

from typing import Any, NamedTuple

Config = dict[str, Any]
# Of the square that positions are learned for: 4 x 4 patches.
SIDE, PATCH = 16, 4
NATIVE, WIDE, SMALL = (16, 16), (20, 28), (8, 12)


class Case(NamedTuple):
    """One model on one image.

    Attributes:
      oracle: the class of transformers, or `timm`.
      config: the `config.json`.
      size: rows and columns of the image.
      live: whether the tensors have the names of transformers' module rather than of its files.
      arguments: of timm's VisionTransformer.
    """

    oracle: str
    config: Config
    size: tuple[int, int] = WIDE
    live: bool = False
    arguments: Config | None = None


def encoder(model_type: str, **settings: Any) -> Config:
    return {
        "model_type": model_type, "hidden_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 3, "intermediate_size": 40, "image_size": SIDE, "patch_size": PATCH,
        "layer_norm_eps": 2.0**-10, **settings,
    }  # fmt: skip


_LABELS = {"id2label": {str(i): f"label {i}" for i in range(5)}}
_TEXT = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8,
    "vocab_size": 9, "max_position_embeddings": 4,
}


def _timm(arch: str, size: tuple[int, int] = WIDE, **arguments: Any) -> Case:
    heads = arguments.setdefault("num_heads", 2)
    plain = {"img_size": SIDE, "patch_size": PATCH, "embed_dim": 32, "depth": 2, "mlp_ratio": 1.5,
             "num_classes": 0, "dynamic_img_size": True}
    config = {"architecture": arch, "num_classes": arguments.get("num_classes", 0),
              "pretrained_cfg": {"input_size": [3, SIDE, SIDE]}, "model_args": {"num_heads": heads}}
    if "global_pool" in arguments:
        config["global_pool"] = arguments["global_pool"]
    return Case("timm", config, size, arguments=plain | arguments)


CASES: dict[str, dict[str, Case]] = {
    "vit": {
        "classifier": Case("ViTForImageClassification", encoder("vit", **_LABELS)),
        "new names": Case("ViTModel", encoder("vit", qkv_bias=False), live=True),
        "native": Case("ViTModel", encoder("vit", hidden_act="gelu_new", num_channels=1), NATIVE),
    },
    "vit_mae": {
        "encoder": Case("ViTMAEModel", encoder("vit_mae", mask_ratio=0.0), SMALL),
        "with its decoder": Case(
            "ViTMAEForPreTraining",
            encoder("vit_mae", mask_ratio=0.0, decoder_hidden_size=16, decoder_intermediate_size=16,
                    decoder_num_hidden_layers=1, decoder_num_attention_heads=2), NATIVE,
        ),
    },
    "dinov2": {
        "plain": Case("Dinov2Model", encoder("dinov2", mlp_ratio=2)),
        "classifier": Case("Dinov2ForImageClassification", encoder("dinov2", **_LABELS), SMALL),
        "gated": Case("Dinov2Model", encoder("dinov2", use_swiglu_ffn=True), NATIVE),
        "new names": Case("Dinov2Model", encoder("dinov2", use_swiglu_ffn=True), live=True),
    },
    "dinov2_with_registers": {
        "larger": Case("Dinov2WithRegistersModel", encoder("dinov2_with_registers")),
        "smaller": Case(
            "Dinov2WithRegistersForImageClassification",
            encoder("dinov2_with_registers", num_register_tokens=1, **_LABELS), SMALL,
        ),
    },
    "dinov3_vit": {
        "plain": Case("DINOv3ViTModel", encoder("dinov3_vit", num_register_tokens=2)),
        "gated, new names": Case(
            "DINOv3ViTModel",
            encoder("dinov3_vit", use_gated_mlp=True, key_bias=True, rope_theta=10.0), SMALL, True,
        ),
    },
    "clip_vision_model": {
        "plain": Case("CLIPVisionModel", encoder("clip_vision_model", hidden_act="gelu")),
        "projected": Case(
            "CLIPVisionModelWithProjection", encoder("clip_vision_model", projection_dim=7), SMALL
        ),
        "with text": Case(
            "CLIPModel",
            {"model_type": "clip", "text_config": _TEXT, "projection_dim": 7,
             "vision_config": encoder("clip_vision_model")}, NATIVE,
        ),
    },
    "siglip_vision_model": {
        "plain": Case("SiglipVisionModel", encoder("siglip_vision_model")),
        "classifier": Case(
            "SiglipForImageClassification",
            {"model_type": "siglip", "text_config": _TEXT, **_LABELS,
             "vision_config": encoder("siglip_vision_model", hidden_act="gelu")}, NATIVE,
        ),
    },
    "timm": {
        "deit3": _timm("deit3_small_patch16_224", no_embed_class=True, init_values=1e-6,
                       num_classes=5),
        "reg4": _timm("vit_small_patch14_reg4_dinov2", SMALL, reg_tokens=4, no_embed_class=True,
                      init_values=1e-5),
        "gated": _timm("vit_giant_patch14_dinov2", NATIVE, swiglu=True, init_values=1e-5),
        "clip": _timm("vit_base_patch16_clip_quickgelu_224", pre_norm=True, act_layer="quick_gelu",
                      eps=1e-5, num_classes=7),
        "map": _timm("vit_base_patch16_siglip_224", class_token=False, global_pool="map"),
        "mean": _timm("vit_base_patch16_224", SMALL, global_pool="avg", num_classes=5),
    },
}  # fmt: skip
