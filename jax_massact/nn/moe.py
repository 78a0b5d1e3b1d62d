"""Mixtures of experts: every token goes through the MLPs of a few experts, and through no other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_massact.nn import sharded
from jax_massact.nn.block_config import ActivationKind, MLPConfig, MoEConfig, RouterKind
from jax_massact.nn.draw import Key, drawn, split
from jax_massact.nn.linear import project
from jax_massact.nn.mlp import MLP, Router, gated_units


def _softmax(logits: Float[Array, "B T E"], config: MoEConfig) -> Router:
    weights, experts = jax.lax.top_k(jax.nn.softmax(logits), config.active)
    if config.renormalize:
        weights = weights / weights.sum(-1, keepdims=True)
    return Router(experts, weights)


def _top_softmax(logits: Float[Array, "B T E"], config: MoEConfig) -> Router:
    logits, experts = jax.lax.top_k(logits, config.active)
    return Router(experts, jax.nn.softmax(logits))


SCORES: dict[RouterKind, Callable[[Float[Array, "B T E"], MoEConfig], Router]] = {
    "softmax": _softmax,
    "top_softmax": _top_softmax,
}


class Experts(nnx.Module):
    """The MLPs of all experts, stacked."""

    def __init__(self, config: MLPConfig, width: int, out_std: float, key: Key):
        D, F, E, bias = width, config.hidden, config.moe.experts, config.bias
        up, gate, down = split(key, 3)
        self.gate = drawn(gate, E, D, F)
        self.up = drawn(up, E, D, F)
        self.down = drawn(down, E, F, D, std=out_std)
        self.gate_bias = nnx.Param(jnp.zeros((E, F))) if bias else None
        self.up_bias = nnx.Param(jnp.zeros((E, F))) if bias else None
        self.down_bias = nnx.Param(jnp.zeros((E, D))) if bias else None


class MoE(nnx.Module):
    """The sum of a token's experts, each times its weight, and of a shared expert if there is one.

    Takes the place of `nn.mlp.MLP` in a block.
    """

    def __init__(self, config: MLPConfig, width: int, out_std: float, key: Key):
        router, experts, shared, gate = split(key, 4)
        moe = config.moe
        self.config, self.units = moe, config.hidden
        self.router = drawn(router, width, moe.experts)
        self.router_bias = nnx.Param(jnp.zeros(moe.experts)) if moe.router_bias else None
        self.experts = Experts(config, width, out_std, experts)
        # Of no bias, as in every published model.
        own = MLPConfig(hidden=moe.shared, activation=config.activation) if moe.shared else None
        self.shared = MLP(own, width, out_std, shared) if own else None
        self.shared_gate = drawn(gate, width) if own and moe.shared_gate else None

    def hidden(
        self, x: Float[Array, "B T D"], activation: ActivationKind
    ) -> tuple[Float[Array, "B T kF"], Router]:
        """The units of each token's experts one after another, then the shared ones."""
        logits = project(x, self.router, "de", self.router_bias).astype(jnp.float32)
        router = SCORES[self.config.score](logits, self.config)
        e = self.experts

        def local(x, experts, gate, up, gate_bias, up_bias):
            order, sizes, served = _by_expert(experts, gate.shape[0])
            rows = x.reshape(-1, x.shape[-1])[order // experts.shape[-1]]
            units = gated_units(
                activation,
                _grouped(rows, gate, sizes, gate_bias, served),
                _grouped(rows, up, sizes, up_bias, served),
            )
            return _in_order(units, order).reshape(*experts.shape, -1)

        operands = (x, router.experts, e.gate, e.up, e.gate_bias, e.up_bias)
        units = sharded.per_unit(local, operands, ("btd", "btk", "edf", "edf", "ef", "ef"))
        units = sharded.by_sequence(units).reshape(*x.shape[:2], -1)
        if self.shared is None:
            return units, router
        shared, _ = self.shared.hidden(x, activation)
        if self.shared_gate is not None:
            # A factor on what `down` reads is one on its result, as that has no bias.
            gate = project(x, self.shared_gate[...][:, None], "d1")
            shared = shared * jax.nn.sigmoid(gate)
        return jnp.concatenate([units, sharded.by_sequence(shared)], axis=-1), router

    def output(
        self, hidden: Float[Array, "B T kF"], router: Router | None
    ) -> Float[Array, "B T D"]:
        """Returns what the units add to the residual stream."""
        assert router is not None
        k, e = self.config.active, self.experts

        def local(units, experts, weights, down):
            order, sizes, served = _by_expert(experts, down.shape[0])
            rows = units.reshape(-1, units.shape[-1])[order]
            out = _in_order(_grouped(rows, down, sizes, None, served), order)
            out = out.reshape(*experts.shape, -1) * weights[..., None].astype(out.dtype)
            return out.sum(2)

        routed = sharded.by_sequence(hidden)[..., : k * self.units]
        routed = routed.reshape(*hidden.shape[:2], k, self.units)
        operands = (routed, router.experts, router.weights, e.down)
        out = sharded.per_unit(local, operands, ("btkf", "btk", "btk", "efd"), summed=True)
        if e.down_bias is not None:
            # Here, since each device would add it to its own part of the sum.
            one_hot = jax.nn.one_hot(router.experts, self.config.experts, dtype=out.dtype)
            shares = (one_hot * router.weights[..., None].astype(out.dtype)).sum(2)
            out = out + project(shares, e.down_bias, "ed")
        out = sharded.constrain(out, "btd")
        if self.shared is None:
            return out
        return out + self.shared.output(hidden[..., k * self.units :])


def _by_expert(
    experts: Int[Array, "B T k"], number: int
) -> tuple[Int[Array, " R"], Int[Array, " E"], Int[Array, " R"]]:
    """The order that puts the rows [B T k] of one expert together, how many rows each expert has,
    and whose each row is in that order."""
    flat = experts.reshape(-1)
    order = jnp.argsort(flat)
    return order, jnp.bincount(flat, length=number), flat[order]


def _in_order(rows: Float[Array, "R F"], order: Int[Array, " R"]) -> Float[Array, "R F"]:
    return rows[jnp.argsort(order)]


def _grouped(rows, weight, sizes, bias, served):
    """Each row times its expert's matrix: a matmul for each group of rows, none for the others."""
    y = jax.lax.ragged_dot(
        rows, weight.astype(rows.dtype), sizes,
        precision=jax.lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None,
    )
    return y if bias is None else y + bias.astype(rows.dtype)[served]
