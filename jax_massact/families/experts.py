"""What families with mixtures of experts have in common."""

from collections.abc import Callable
from typing import Any

from jax_massact.families.places import Names, Place, in_blocks
from jax_massact.nn.block_config import MoEConfig
from jax_massact.nn.config import ModelConfig
from jax_massact.weights.settings import Settings

_MOE = "block.mlp.moe."
_DENSE = tuple(f"blocks.mlp.{name}" for name in ("gate", "up", "down"))


def fields(moe: MoEConfig) -> dict[str, Any]:
    """The fields of a mixture."""
    return {f"{_MOE}{name}": getattr(moe, name) for name in MoEConfig.__dataclass_fields__}


def instead(names: Names, rows: Names) -> dict[str, Place]:
    """Names of a dense family with these rows in place of its MLP."""
    return {name: place for name, place in names.items() if name not in _DENSE} | dict(rows)


def names_of(block: str, gate: str, up: str, down: str, router: str) -> dict[str, Place]:
    """Where router and experts lie, each expert in tensors of its own ({e})."""
    return in_blocks(block, {
        "mlp.router": Place(router, "ed->de"),
        "mlp.experts.gate": Place(gate, "efd->edf"),
        "mlp.experts.up": Place(up, "efd->edf"),
        "mlp.experts.down": Place(down, "edf->efd"),
    })  # fmt: skip


GGUF_ROWS = names_of(
    "blk.{l}.", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight",
    "ffn_gate_inp.weight",
)  # fmt: skip
# Settings of GGUF files that families with experts know.
GGUF_KNOWN = ("expert_count",)


def read_gguf(settings: Settings, *, renormalize: bool) -> dict[str, Any]:
    """The fields of a mixture that a GGUF file states."""
    width = "expert_feed_forward_length"
    own = {"block.mlp.hidden": settings.size(width)} if settings.has(width) else {}
    return own | fields(MoEConfig(
        experts=settings.size("expert_count"),
        active=settings.size("expert_used_count"),
        renormalize=renormalize,
    ))


def dense_or(dense: Names, mixture: Names) -> Callable[[ModelConfig], Names]:
    """Names of a format that one family has with and without experts."""
    return lambda config: mixture if config.block.mlp.moe.experts else dense


def check_every_layer(settings: Settings) -> None:
    """Raises WeightsError where some layers have no experts."""
    settings.one_of("decoder_sparse_step", (1,), 1)
    if settings.get("mlp_only_layers", []) != []:
        raise settings.error("mlp_only_layers", "[]: experts in every layer")
