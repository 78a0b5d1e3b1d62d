"""One row for every parameter: how it is laid out, whether it decays, what Muon makes of it.

A parameter without a row is an error wherever one of these facts is needed, never a default.
"""

from typing import NamedTuple


class Parameter(NamedTuple):
    """The facts about one parameter.

    Attributes:
      letters: its axes, a kind of `mesh.LAYOUTS`; inside blocks there is a leading layer axis.
      decays: whether it is subject to weight decay. The authors decay what they store with two or
        more dimensions: every matrix, the embeddings, the sink token, and k' and v'.
      inputs: how many of its first axes are the rows of the one matrix that Muon orthogonalizes;
        0: not a matrix inside the blocks, AdamW serves it.
      rotary: whether its last axis H is turned by rotary positions or multiplied with what is.
      extra_key: whether it alone makes an extra key's logits, without an input (k', a logit).
    """

    letters: str
    decays: bool
    inputs: int = 0
    rotary: bool = False
    extra_key: bool = False


PARAMETERS = {
    "embed": Parameter("vd", True),
    "patches": Parameter("xd", True),
    "patches_bias": Parameter("d", False),
    "cls": Parameter("d", True),
    "cls_position": Parameter("d", True),
    "embed_norm.scale": Parameter("d", False),
    "embed_norm.bias": Parameter("d", False),
    "positions": Parameter("pd", True),
    "prefix": Parameter("rd", True),
    "final_norm.scale": Parameter("d", False),
    "final_norm.bias": Parameter("d", False),
    "head": Parameter("dv", True),
    "head_bias": Parameter("v", False),
    **{
        f"{norm}.alpha": Parameter("", False)
        for norm in ("embed_norm", "final_norm", "blocks.attn_norm", "blocks.mlp_norm",
                     "blocks.attn_out_norm", "blocks.mlp_out_norm")
    },
    "blocks.attn.q": Parameter("dnh", True, inputs=1, rotary=True),
    "blocks.attn.k": Parameter("dnh", True, inputs=1, rotary=True),
    "blocks.attn.v": Parameter("dnh", True, inputs=1),
    "blocks.attn.out": Parameter("nhd", True, inputs=2),
    "blocks.attn.q_bias": Parameter("nh", False, rotary=True),
    "blocks.attn.k_bias": Parameter("nh", False, rotary=True),
    "blocks.attn.v_bias": Parameter("nh", False),
    "blocks.attn.out_bias": Parameter("d", False),
    **{
        f"blocks.attn.{x}_norm.{name}": Parameter(letters, False, rotary=True)
        for x in ("q", "k") for name, letters in (("scale", "h"), ("scales", "nh"))
    },
    "blocks.attn.variant.k": Parameter("rnh", True, rotary=True, extra_key=True),
    "blocks.attn.variant.v": Parameter("rnh", True),
    "blocks.attn.variant.v_bias": Parameter("nh", True),
    "blocks.attn.variant.logit": Parameter("n", False, extra_key=True),
    "blocks.attn.variant.gate": Parameter("dn", True),
    **{
        f"blocks.{norm}.{name}": Parameter("d", False)
        for norm in ("attn_norm", "mlp_norm", "attn_out_norm", "mlp_out_norm")
        for name in ("scale", "bias")
    },
    "blocks.attn_gain": Parameter("d", False),
    "blocks.mlp_gain": Parameter("d", False),
    "blocks.mlp.up": Parameter("df", True, inputs=1),
    "blocks.mlp.gate": Parameter("df", True, inputs=1),
    "blocks.mlp.down": Parameter("fd", True, inputs=1),
    "blocks.mlp.up_bias": Parameter("f", False),
    "blocks.mlp.gate_bias": Parameter("f", False),
    "blocks.mlp.down_bias": Parameter("d", False),
    # Matrices of a mixture: AdamW serves them.
    "blocks.mlp.router": Parameter("de", True),
    "blocks.mlp.router_bias": Parameter("e", False),
    "blocks.mlp.experts.up": Parameter("edf", True),
    "blocks.mlp.experts.gate": Parameter("edf", True),
    "blocks.mlp.experts.down": Parameter("efd", True),
    "blocks.mlp.experts.up_bias": Parameter("ef", False),
    "blocks.mlp.experts.gate_bias": Parameter("ef", False),
    "blocks.mlp.experts.down_bias": Parameter("ed", False),
    "blocks.mlp.shared.up": Parameter("du", True),
    "blocks.mlp.shared.gate": Parameter("du", True),
    "blocks.mlp.shared.down": Parameter("ud", True),
    "blocks.mlp.shared_gate": Parameter("d", True),
}
# The pooling head of SigLIP has the parameters of an attention and of an MLP, outside the blocks.
PARAMETERS |= {
    "pool.probe": Parameter("d", True),
    "pool.norm.scale": Parameter("d", False),
    "pool.norm.bias": Parameter("d", False),
    **{
        f"pool.{name}": PARAMETERS[f"blocks.{name}"]._replace(inputs=0)
        for name in (
            *(f"attn.{x}{bias}" for x in ("q", "k", "v", "out") for bias in ("", "_bias")),
            "mlp.up", "mlp.down", "mlp.up_bias", "mlp.down_bias",
        )
    },
}


def parameter(name: str) -> Parameter:
    """The row of the parameter `name`, as in `nn.transformer.parameters`.

    Raises:
      KeyError: there is none.
    """
    if name not in PARAMETERS:
        raise KeyError(
            f"parameter {name!r} has no row in nn.parameters.PARAMETERS; expected: its layout, "
            "whether it decays, and what Muon makes of it"
        )
    return PARAMETERS[name]


def is_stacked(name: str) -> bool:
    """Whether it is a parameter of every block, with a leading layer axis."""
    return name.startswith("blocks.")
