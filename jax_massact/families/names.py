"""The one table of names: which tensor of a file is which parameter, and how it is laid out there.

A layout is an einsum-like rule from the file's array to the parameter's, with the letters of
`ModelConfig` and c for one of several arrays stacked in one tensor: "(nh)d->dnh" splits the first
axis of a matrix into heads and moves the second in front. Only reshapes and transposes are
possible, so a parameter is the file's numbers and no others, and every row can be read backwards.

To support another family, add a row to `TABLES` (and to the configuration readers).
"""

import dataclasses
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jax_massact.nn.config import ModelConfig
from jax_massact.nn.variants import VARIANTS

Format = Literal["gguf", "huggingface"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a parameter lies in a file.

    Attributes:
      template: the tensor's name, with {l} for the number of the block.
      layout: from the file's array to the parameter's.
      part: index along c, for arrays that hold several parameters.
    """

    template: str
    layout: str
    part: int = 0

    def tensor(self, layer: int = 0) -> str:
        """The tensor's name for a block."""
        return self.template.replace("{l}", str(layer))

    @property
    def in_every_block(self) -> bool:
        return "{l}" in self.template

    def file_shape(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape that the file's array must have."""
        return tuple(math.prod(sizes[letter] for letter in axis) for axis in self._axes())

    def parameter(self, array: np.ndarray, sizes: Mapping[str, int]) -> np.ndarray:
        """A view of the file's array as the parameter (of one block)."""
        letters = "".join(self._axes())
        array = array.reshape([sizes[letter] for letter in letters])
        if "c" in letters:
            array = np.moveaxis(array, letters.index("c"), 0)[self.part]
            letters = letters.replace("c", "")
        return array.transpose([letters.index(letter) for letter in self.layout.split("->")[1]])

    def array(self, parts: Sequence[np.ndarray], sizes: Mapping[str, int]) -> np.ndarray:
        """The file's array of these parameters (of one block), in the order of c.

        The inverse of `parameter`.
        """
        letters, (_, axes) = "".join(self._axes()), self.layout.split("->")
        order = [axes.index(letter) for letter in letters if letter != "c"]
        moved = [part.transpose(order) for part in parts]
        whole = np.stack(moved, letters.index("c")) if "c" in letters else moved[0]
        return np.ascontiguousarray(whole.reshape(self.file_shape(sizes)))

    def _axes(self) -> list[str]:
        grouped = re.findall(r"\((\w+)\)|(\w)", self.layout.split("->")[0])
        return [group or letter for group, letter in grouped]


def letter_sizes(config: ModelConfig, stacked: int = 1) -> dict[str, int]:
    """The size of each letter of a layout; `stacked` is that of c."""
    return {
        "v": config.vocab_size,
        "d": config.width,
        "n": config.num_heads,
        "k": config.num_kv_heads,
        "h": config.head_dim,
        "f": config.mlp_dim,
        "p": config.context_length,
        "s": VARIANTS[config.attention].tokens_in_front,
        "c": stacked,
    }


def _blocks(prefix: str, rows: Mapping[str, Place]) -> dict[str, Place]:
    """Rows of parameters that every block has."""
    return {
        f"blocks.{name}": dataclasses.replace(place, template=prefix + place.template)
        for name, place in rows.items()
    }


# What no published model has and a model of this package may: under names of this package's own.
_VARIANTS = {
    "attn.variant.k": Place("variant.k", "kh->kh"),
    "attn.variant.v": Place("variant.v", "kh->kh"),
    "attn.variant.logit": Place("variant.logit", "n->n"),
    "attn.variant.gate": Place("variant.gate.weight", "nd->dn"),
}


def _llama_huggingface() -> dict[str, Place]:
    return {
        "embed": Place("model.embed_tokens.weight", "vd->vd"),
        "positions": Place("model.embed_positions.weight", "pd->pd"),
        "front": Place("model.front.weight", "sd->sd"),
        "final_norm.scale": Place("model.norm.weight", "d->d"),
        "final_norm.bias": Place("model.norm.bias", "d->d"),
        "head": Place("lm_head.weight", "vd->dv"),
        **_blocks(
            "model.layers.{l}.",
            {
                "attn_norm.scale": Place("input_layernorm.weight", "d->d"),
                "attn_norm.bias": Place("input_layernorm.bias", "d->d"),
                "attn.q": Place("self_attn.q_proj.weight", "(nh)d->dnh"),
                "attn.k": Place("self_attn.k_proj.weight", "(kh)d->dkh"),
                "attn.v": Place("self_attn.v_proj.weight", "(kh)d->dkh"),
                "attn.out": Place("self_attn.o_proj.weight", "d(nh)->nhd"),
                "attn.q_bias": Place("self_attn.q_proj.bias", "(nh)->nh"),
                "attn.k_bias": Place("self_attn.k_proj.bias", "(kh)->kh"),
                "attn.v_bias": Place("self_attn.v_proj.bias", "(kh)->kh"),
                "attn.out_bias": Place("self_attn.o_proj.bias", "d->d"),
                "mlp_norm.scale": Place("post_attention_layernorm.weight", "d->d"),
                "mlp_norm.bias": Place("post_attention_layernorm.bias", "d->d"),
                "mlp.gate": Place("mlp.gate_proj.weight", "fd->df"),
                "mlp.up": Place("mlp.up_proj.weight", "fd->df"),
                "mlp.down": Place("mlp.down_proj.weight", "df->fd"),
                "mlp.gate_bias": Place("mlp.gate_proj.bias", "f->f"),
                "mlp.up_bias": Place("mlp.up_proj.bias", "f->f"),
                "mlp.down_bias": Place("mlp.down_proj.bias", "d->d"),
                **_VARIANTS,
            },
        ),
    }


def _gpt2_huggingface() -> dict[str, Place]:
    # Conv1D: matrices stand the other way round than in a Linear.
    return {
        "embed": Place("transformer.wte.weight", "vd->vd"),
        "positions": Place("transformer.wpe.weight", "pd->pd"),
        "front": Place("transformer.front.weight", "sd->sd"),
        "final_norm.scale": Place("transformer.ln_f.weight", "d->d"),
        "final_norm.bias": Place("transformer.ln_f.bias", "d->d"),
        "head": Place("lm_head.weight", "vd->dv"),
        **_blocks(
            "transformer.h.{l}.",
            {
                "attn_norm.scale": Place("ln_1.weight", "d->d"),
                "attn_norm.bias": Place("ln_1.bias", "d->d"),
                "attn.q": Place("attn.c_attn.weight", "d(cnh)->dnh", 0),
                "attn.k": Place("attn.c_attn.weight", "d(cnh)->dnh", 1),
                "attn.v": Place("attn.c_attn.weight", "d(cnh)->dnh", 2),
                "attn.q_bias": Place("attn.c_attn.bias", "(cnh)->nh", 0),
                "attn.k_bias": Place("attn.c_attn.bias", "(cnh)->nh", 1),
                "attn.v_bias": Place("attn.c_attn.bias", "(cnh)->nh", 2),
                "attn.out": Place("attn.c_proj.weight", "(nh)d->nhd"),
                "attn.out_bias": Place("attn.c_proj.bias", "d->d"),
                "mlp_norm.scale": Place("ln_2.weight", "d->d"),
                "mlp_norm.bias": Place("ln_2.bias", "d->d"),
                "mlp.gate": Place("mlp.c_gate.weight", "df->df"),
                "mlp.gate_bias": Place("mlp.c_gate.bias", "f->f"),
                "mlp.up": Place("mlp.c_fc.weight", "df->df"),
                "mlp.up_bias": Place("mlp.c_fc.bias", "f->f"),
                "mlp.down": Place("mlp.c_proj.weight", "fd->fd"),
                "mlp.down_bias": Place("mlp.c_proj.bias", "d->d"),
                **_VARIANTS,
            },
        ),
    }


# GPT-2's one tensor for queries, keys and values takes as many key/value heads as query heads.
_GPT2_GROUPED = _blocks(
    "transformer.h.{l}.attn.",
    {
        "attn.q": Place("c_attn_q.weight", "d(nh)->dnh"),
        "attn.k": Place("c_attn_k.weight", "d(kh)->dkh"),
        "attn.v": Place("c_attn_v.weight", "d(kh)->dkh"),
        "attn.q_bias": Place("c_attn_q.bias", "(nh)->nh"),
        "attn.k_bias": Place("c_attn_k.bias", "(kh)->kh"),
        "attn.v_bias": Place("c_attn_v.bias", "(kh)->kh"),
    },
)


def _gguf(blocks: Mapping[str, Place]) -> dict[str, Place]:
    """What the families have in common under llama.cpp's names, and their own rows."""
    return {
        "embed": Place("token_embd.weight", "vd->vd"),
        "final_norm.scale": Place("output_norm.weight", "d->d"),
        "head": Place("output.weight", "vd->dv"),
        **_blocks(
            "blk.{l}.",
            {
                "attn_norm.scale": Place("attn_norm.weight", "d->d"),
                "attn.out": Place("attn_output.weight", "d(nh)->nhd"),
                "attn.out_bias": Place("attn_output.bias", "d->d"),
                "mlp_norm.scale": Place("ffn_norm.weight", "d->d"),
                "mlp.up": Place("ffn_up.weight", "fd->df"),
                "mlp.up_bias": Place("ffn_up.bias", "f->f"),
                "mlp.down": Place("ffn_down.weight", "df->fd"),
                "mlp.down_bias": Place("ffn_down.bias", "d->d"),
                **blocks,
            },
        ),
    }


def _llama_gguf() -> dict[str, Place]:
    return _gguf(
        {
            "attn.q": Place("attn_q.weight", "(nh)d->dnh"),
            "attn.k": Place("attn_k.weight", "(kh)d->dkh"),
            "attn.v": Place("attn_v.weight", "(kh)d->dkh"),
            "attn.q_bias": Place("attn_q.bias", "(nh)->nh"),
            "attn.k_bias": Place("attn_k.bias", "(kh)->kh"),
            "attn.v_bias": Place("attn_v.bias", "(kh)->kh"),
            "mlp.gate": Place("ffn_gate.weight", "fd->df"),
            "mlp.gate_bias": Place("ffn_gate.bias", "f->f"),
        }
    )


def _gpt2_gguf() -> dict[str, Place]:
    return {
        "positions": Place("position_embd.weight", "pd->pd"),
        "final_norm.bias": Place("output_norm.bias", "d->d"),
        **_gguf(
            {
                "attn_norm.bias": Place("attn_norm.bias", "d->d"),
                "attn.q": Place("attn_qkv.weight", "(cnh)d->dnh", 0),
                "attn.k": Place("attn_qkv.weight", "(cnh)d->dnh", 1),
                "attn.v": Place("attn_qkv.weight", "(cnh)d->dnh", 2),
                "attn.q_bias": Place("attn_qkv.bias", "(cnh)->nh", 0),
                "attn.k_bias": Place("attn_qkv.bias", "(cnh)->nh", 1),
                "attn.v_bias": Place("attn_qkv.bias", "(cnh)->nh", 2),
                "mlp_norm.bias": Place("ffn_norm.bias", "d->d"),
            }
        ),
    }


TABLES: dict[tuple[Format, str], dict[str, Place]] = {
    ("huggingface", "llama"): _llama_huggingface(),
    ("huggingface", "mistral"): _llama_huggingface(),
    ("huggingface", "qwen2"): _llama_huggingface(),
    ("huggingface", "gpt2"): _gpt2_huggingface(),
    ("gguf", "llama"): _llama_gguf(),
    ("gguf", "qwen2"): _llama_gguf(),
    ("gguf", "gpt2"): _gpt2_gguf(),
}

# Tensors that some files hold and that follow from the configuration: constants, not weights.
CONSTANTS = {
    "gguf": re.compile(r"rope_freqs\.weight"),
    "huggingface": re.compile(
        r"(.*\.)?rotary_emb\.inv_freq|(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)"
    ),
}


# What stands before every name but the head's; a model that was saved without its head lacks it.
_PREFIX = re.compile(r"^(model|transformer)\.")


def table_for(
    fmt: Format, config: ModelConfig, tensors: Collection[str] | None = None
) -> dict[str, Place]:
    """The rows for a model in a file that holds these tensors; None: in a file to be written."""
    table = TABLES[fmt, config.family]
    if (fmt, config.family) == ("huggingface", "gpt2") and config.num_kv_heads < config.num_heads:
        table = table | _GPT2_GROUPED
    bare = {
        name: dataclasses.replace(place, template=_PREFIX.sub("", place.template))
        for name, place in table.items()
    }
    if tensors is None or table["embed"].template in tensors:
        return table
    return bare if bare["embed"].template in tensors else table


def by_template(places: Mapping[str, Place]) -> list[dict[str, Place]]:
    """The places in groups that lie in the same tensor, in the order of c."""
    groups: dict[str, dict[str, Place]] = {}
    for name, place in sorted(places.items(), key=lambda item: item[1].part):
        groups.setdefault(place.template, {})[name] = place
    return list(groups.values())
