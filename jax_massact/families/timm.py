"""ViTs in the format of timm (Wightman 2019): sizes stand in the tensors, the rest in the name."""

import re
from typing import Any

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import WeightsError
from jax_massact.families.encoder import (
    HALF,
    PATCHES,
    Encoder,
    Shapes,
    mlp_names,
    norm_names,
)
from jax_massact.families.fields import Fields, in_all_norms
from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

_GATED = {
    "mlp.gate": Place("mlp.fc1.weight", "[f]d->df"),
    "mlp.up": Place("mlp.fc1.weight", "[f]d->df"),
    "mlp.down": Place("mlp.fc2.weight", "df->fd"),
}


def names(config: ModelConfig, shapes: Shapes) -> Names:
    """Where the parameters lie."""
    del shapes
    patches = config.embed.patches
    with_cls = patches is not None and patches.cls_position
    mlp = _GATED if config.block.mlp.gated else mlp_names("mlp.fc1", "mlp.fc2")
    final = "fc_norm" if config.head.pool == "mean_norm" else "norm"
    return {
        "patches": Place("patch_embed.proj.weight", PATCHES),
        "cls": Place("cls_token", "11d->d"),
        **({"cls_position": Place("pos_embed", "1[q]d->d")} if with_cls else {}),
        "positions": Place("pos_embed", "1[p]d->pd" if with_cls else "1pd->pd"),
        "prefix": Place("reg_token", "1sd->sd"),
        "embed_norm.scale": Place("norm_pre.weight", "d->d"),
        "final_norm.scale": Place(f"{final}.weight", "d->d"),
        "head": Place("head.weight", "vy->yv"),
        "pool.probe": Place("attn_pool.latent", "11d->d"),
        "pool.attn.q": Place("attn_pool.q.weight", "(nh)d->dnh"),
        "pool.attn.k": Place("attn_pool.kv.weight", "([1]nh)d->dnh"),
        "pool.attn.v": Place("attn_pool.kv.weight", "([1]nh)d->dnh"),
        "pool.attn.out": Place("attn_pool.proj.weight", "d(nh)->nhd"),
        "pool.norm.scale": Place("attn_pool.norm.weight", "d->d"),
        **{f"pool.{n}": p for n, p in mlp_names("attn_pool.mlp.fc1", "attn_pool.mlp.fc2").items()},
        **in_blocks("blocks.{l}.", {
            **norm_names("norm1", "norm2"),
            **{f"attn.{x}": Place("attn.qkv.weight", "([1]nh)d->dnh") for x in "qkv"},
            "attn.out": Place("attn.proj.weight", "d(nh)->nhd"),
            **mlp,
            "attn_gain": Place("ls1.gamma", "d->d"),
            "mlp_gain": Place("ls2.gamma", "d->d"),
        }),
    }  # fmt: skip


def read(settings: Settings, shapes: Shapes) -> Fields:
    """The fields of a ViT of timm.

    Heads, epsilon and activation are those of timm's function of this name: 64 numbers a head but
    for a few, 1e-6 but for CLIP, and GELU but where the name says QuickGELU. As timm has it, CLIP's
    weights without "quickgelu" in the name run with GELU, whatever they were trained with.
    """
    arch = str(settings.get("architecture", ""))
    if "dinov3" in arch or not arch.startswith(("vit_", "deit", "flexivit_")):
        raise settings.error("architecture", "a plain ViT; of DINOv3, Hugging Face's folder")
    args = settings.get("model_args", {})
    width, _, patch, _ = _shape(settings, shapes, "patch_embed.proj.weight", 4)
    depth = len({n.split(".")[1] for n in shapes if n.startswith("blocks.")})
    up, _ = _shape(settings, shapes, "blocks.0.mlp.fc1.weight", 2)
    _, hidden = _shape(settings, shapes, "blocks.0.mlp.fc2.weight", 2)
    clip, cls = "clip" in arch and "siglip" not in arch, "cls_token" in shapes
    heads = args.get("num_heads", _heads(arch, width))
    if type(heads) is not int or heads < 1 or width % heads:
        raise settings.error("architecture", f"one whose heads share {width} numbers")
    positions = _shape(settings, shapes, "pos_embed", 3)[1]
    rows = int(positions**0.5)
    grid = (rows, rows) if rows * rows == positions else None
    with_cls = grid is None and cls
    if grid is None:
        rows = int((positions - cls) ** 0.5)
        grid = (rows, rows)
    if grid[0] * grid[1] + with_cls != positions:
        raise settings.error("architecture", f"a square of positions; pos_embed has {positions}")
    pooled = settings.get("global_pool", "map" if "attn_pool.latent" in shapes else "token")
    pools = {"token": "cls", "map": "map", "avg": "mean", "": "cls" if cls else "mean"}
    pool = "mean_norm" if "fc_norm.weight" in shapes else pools.get(pooled, "")
    if not pool:
        raise settings.error("global_pool", f"one of {', '.join(filter(None, pools))}")
    return {
        "depth": depth,
        "width": width,
        "context_length": grid[0] * grid[1],
        "registers": shapes["reg_token"][1] if "reg_token" in shapes else 0,
        "embed.vocab_size": 1,
        "embed.positions": "learned",
        "embed.norm": "norm_pre.weight" in shapes,
        "embed.patches.size": patch,
        "embed.patches.grid": grid,
        "embed.patches.channels": shapes["patch_embed.proj.weight"][1],
        "embed.patches.bias": "patch_embed.proj.bias" in shapes,
        "embed.patches.cls": cls,
        "embed.patches.cls_position": with_cls,
        "embed.patches.resample": "antialias",
        "block.attention.heads": heads,
        "block.attention.kv_heads": heads,
        "block.attention.head_dim": width // heads,
        "block.attention.position": "none",
        "block.attention.causal": False,
        "block.attention.qkv_bias": "blocks.0.attn.qkv.bias" in shapes,
        "block.attention.out_bias": "blocks.0.attn.proj.bias" in shapes,
        "block.layer_scale": "blocks.0.ls1.gamma" in shapes,
        "block.mlp.hidden": hidden,
        "block.mlp.gated": up == 2 * hidden,
        "block.mlp.activation": _activation(arch, args, gated=up == 2 * hidden),
        "block.mlp.bias": True,
        **in_all_norms(kind="layer", bias=True, eps=1e-5 if clip else 1e-6),
        "head.present": False,
        "head.pool": pool,
    }


def _shape(settings: Settings, shapes: Shapes, name: str, axes: int) -> tuple[int, ...]:
    shape = shapes.get(name, ())
    if len(shape) != axes:
        raise WeightsError(
            f"{settings.file}: the file of weights has no tensor {name!r} of {axes} axes; "
            "expected: a ViT of timm"
        )
    return shape


def _heads(arch: str, width: int) -> int:
    """timm's numbers of heads: those whose heads are not of 64 numbers have a name of their own."""
    sixteen = re.search(r"_(huge|so400m|giantopt|gigantic)_", arch) or width == 1408
    return 16 if sixteen else width // 64


def _activation(arch: str, args: Any, *, gated: bool) -> str:
    if gated:
        return "silu"
    named = {"quick_gelu": "quick_gelu", "gelu_tanh": "gelu_tanh", "gelu": "gelu"}
    if args.get("act_layer") in named:
        return named[args["act_layer"]]
    if "quickgelu" in arch:
        return "quick_gelu"
    # Of SigLIP's models, timm has the tanh approximation in these.
    tanh = r"vit_(base_patch32|large_patch16|so400m_patch16|giantopt_patch16)_siglip_(gap_)?(\d+)"
    found = re.fullmatch(tanh, arch)
    large = found is not None and found[1] == "large_patch16"
    return "gelu_tanh" if found and (not large or found[3] == "512") else "gelu"


FAMILY = Encoder(
    model_types=("timm",), about="ViTs of timm, with DeiT-III, CLIP, DINOv2, MAE and SigLIP",
    defaults={}, read=read, names=names, normalization=HALF,
    pictures=Preprocessing(edge=248, crop=224), ignored=r"mask_token|.*\.position_ids",
)  # fmt: skip
