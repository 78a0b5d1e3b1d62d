"""Image encoders as this package writes them: every setting under its own name.

Other programs refuse the `model_type`, which no other package has.
"""

import json
from typing import Any

from jax_massact.data.preprocessing import Preprocessing
from jax_massact.families.encoder import HALF, Encoder, Shapes, always, attention_names, mlp_names
from jax_massact.families.fields import Fields, flat
from jax_massact.families.own import GROUP
from jax_massact.families.places import Place, in_blocks
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

MODEL_TYPE = f"{GROUP}-encoder"
PREPROCESSOR = "preprocessor_config.json"
_ATTENTION = attention_names("attn.q", "attn.k", "attn.v", "attn.out")
_MLP = mlp_names("mlp.up", "mlp.down") | {"mlp.gate": Place("mlp.gate.weight", "fd->df")}
_NORMS = ("attn_norm", "attn_out_norm", "mlp_norm", "mlp_out_norm")
_HEAD_NORMS = {
    f"attn.{x}_norm.{name}": Place(f"attn.{x}_norm.{name}", f"{letters}->{letters}")
    for x, heads in (("q", "nh"), ("k", "kh"))
    for name, letters in (("scale", "h"), ("scales", heads))
}
NAMES = {
    "patches": Place("patches.weight", "dcab->(cab)d"),
    "cls": Place("cls", "d->d"),
    "cls_position": Place("cls_position", "d->d"),
    "positions": Place("positions", "pd->pd"),
    "prefix": Place("registers", "sd->sd"),
    "embed_norm.scale": Place("embed_norm.weight", "d->d"),
    "final_norm.scale": Place("norm.weight", "d->d"),
    "head": Place("head.weight", "vy->yv"),
    "pool.probe": Place("pool.probe", "d->d"),
    "pool.norm.scale": Place("pool.norm.weight", "d->d"),
    **{
        f"pool.{name}": Place(f"pool.{place.template}", place.layout)
        for name, place in (_ATTENTION | mlp_names("mlp.up", "mlp.down")).items()
    },
    **in_blocks("blocks.{l}.", {
        **{f"{norm}.scale": Place(f"{norm}.weight", "d->d") for norm in _NORMS},
        **_ATTENTION, **_MLP, **_HEAD_NORMS,
        "attn_gain": Place("attn_gain", "d->d"),
        "mlp_gain": Place("mlp_gain", "d->d"),
    }),
}  # fmt: skip


def read(settings: Settings, shapes: Shapes) -> Fields:
    """The fields that the group of a `config.json` states."""
    del shapes
    values = settings.get(GROUP)
    if not isinstance(values, dict):
        raise settings.error(GROUP, "a group of settings")
    return values


def write(config: ModelConfig) -> dict[str, Any]:
    """The whole `config.json` of an encoder."""
    settings = flat(config) | {"dtype": "float32", "block.attention.implementation": None}
    return {"model_type": MODEL_TYPE, GROUP: settings}


def rule_of(config: ModelConfig) -> Preprocessing | None:
    """How pictures are prepared for an encoder that this package trains; None: it takes text."""
    patches = config.embed.patches
    if patches is None:
        return None
    side = patches.size * patches.grid[0]
    return Preprocessing(edge=side, crop=side)


def picture_files(pictures: Preprocessing) -> dict[str, str]:
    """The file that says how pictures are prepared, in Hugging Face's words."""
    edge, crop = pictures.edge, pictures.crop
    both = pictures.resize == "squash"
    size = {"height": edge, "width": edge} if both else {"shortest_edge": edge}
    settings = {
        "do_resize": True, "size": size, "resample": pictures.filter, "do_center_crop": True,
        "crop_size": {"height": crop, "width": crop},
    }
    return {PREPROCESSOR: json.dumps(settings, indent=2) + "\n"}


FAMILY = Encoder(
    model_types=(MODEL_TYPE,), about="image encoders of this package", defaults={}, read=read,
    names=always(NAMES), pictures=Preprocessing(edge=256, crop=224), normalization=HALF,
)  # fmt: skip
