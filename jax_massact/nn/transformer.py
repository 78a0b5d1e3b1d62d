"""A decoder-only transformer whose one forward pass serves training, probing and intervention."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jax_massact import mesh
from jax_massact.nn.attention import choose_kernel
from jax_massact.nn.block import Acts, Block
from jax_massact.nn.config import INIT_STD, ModelConfig
from jax_massact.nn.edits import Edits, apply_edits
from jax_massact.nn.layers import Norm, rotary_angles
from jax_massact.nn.variants import VARIANTS

# Reduces one block's activations on the device; its results are stacked over layers.
Tap = Callable[[Acts], Any]


class Transformer(nnx.Module):
    """LLaMA, Mistral, Qwen2 or GPT-2, by configuration.

    A pytree: pass it to `jax.jit`, `jax.grad` and friends like any other argument. The blocks'
    parameters are stacked (leading axis L) and run by `jax.lax.scan`.

    Attributes:
      config: everything that is not a weight; static under `jax.jit`.
    """

    def __init__(self, config: ModelConfig, key: jax.Array):
        embed, positions, blocks, head, front = jax.random.split(key, 5)
        V, D = config.vocab_size, config.width
        self.config = config
        self.embed = nnx.Param(INIT_STD * jax.random.normal(embed, (V, D)))
        self.positions = (
            nnx.Param(INIT_STD * jax.random.normal(positions, (config.context_length, D)))
            if config.position == "learned"
            else None
        )
        in_front = VARIANTS[config.attention].tokens_in_front
        self.front = (
            nnx.Param(INIT_STD * jax.random.normal(front, (in_front, D))) if in_front else None
        )
        # One block's initialiser over L keys: every parameter gets a leading layer axis.
        self.blocks = jax.vmap(lambda k: Block(config, k))(jax.random.split(blocks, config.depth))
        self.final_norm = Norm(config)
        self.head = (
            None if config.tied_head else nnx.Param(INIT_STD * jax.random.normal(head, (D, V)))
        )

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        *,
        tap: Tap | None = None,
        edits: Edits | None = None,
        unroll: int = 1,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T V"], Any]:
        """Next-token logits, and what `tap` returned for every layer.

        Args:
          tokens: ids in [0, V); T at most `config.context_length`.
          tap: called with each block's `Acts`, gradient stopped; a pytree whose arrays come back
            with a leading layer axis. With a sink token in front, that is token 0 of the `Acts`
            (and of `edits`). Under `jax.jit`, logits that the caller does not use are never
            computed.
          edits: changes to the residual stream after chosen blocks.
          unroll: blocks per step of the scan; 1 compiles fastest.
          remat: keep only the residual stream between blocks for the gradient, and compute the
            rest again (Chen et al. 2016): less memory for a third more computation.

        Returns:
          (logits in the compute dtype, the stacked results of `tap` or None).

        Raises:
          ValueError: the shape or dtype of `tokens` is not one that the model can take.
        """
        x, taps = self.residual(tokens, tap=tap, edits=edits, unroll=unroll, remat=remat)
        return self.logits(x), taps

    def residual(
        self,
        tokens: Int[Array, "B T"],
        *,
        tap: Tap | None = None,
        edits: Edits | None = None,
        unroll: int = 1,
        remat: bool = False,
    ) -> tuple[Float[Array, "B T D"], Any]:
        """As `__call__`, but the residual stream after the last block in place of the logits."""
        self._check(tokens)
        config = self.config
        x = self.embedded(tokens)
        S, in_front = x.shape[1], x.shape[1] - tokens.shape[1]
        x = self._even(x)
        angles = (
            rotary_angles(
                config.rope, config.head_dim, config.first_position + jnp.arange(x.shape[1])
            )
            if config.position == "rope"
            else None
        )

        def body(x, layer):
            index, block = layer
            x, acts = block(x, angles)
            if edits is not None:
                x = apply_edits(x, edits, index)
                acts = acts._replace(resid_post=x)
            out = None if tap is None else tap(jax.lax.stop_gradient(acts.first(S)))
            return x, out

        layers = (jnp.arange(config.depth), self.blocks)
        if remat:
            # Inside a scan nothing can merge the two computations: no need to prevent it.
            body = jax.checkpoint(body, prevent_cse=unroll > 1)
        x, taps = jax.lax.scan(body, x, layers, unroll=unroll)
        return x[:, in_front:S], taps

    def _even(self, x: Float[Array, "B S D"]) -> Float[Array, "B S+1 D"]:
        """`x`, with a token behind all others where flash attention would pad an odd length.

        It changes nothing before it, and one token in all activations costs less than to copy
        queries, keys, values and results in every block. Only learned tokens in front make a
        length odd that was chosen not to be.
        """
        if self.front is None or x.shape[1] % 2 == 0:
            return x
        config = self.config
        q = jax.ShapeDtypeStruct((*x.shape[:2], config.num_heads, config.head_dim), x.dtype)
        if choose_kernel(config.implementation, q, config.sliding_window) is None:
            return x
        return jnp.concatenate([x, x[:, -1:]], axis=1)

    def embedded(self, tokens: Int[Array, "B T"]) -> Float[Array, "B S D"]:
        """The residual stream before the first block; the tokens are the last T of S."""
        tokens = mesh.constrain(tokens, "act_bt")
        table = mesh.gathered(self.embed[...], "embed_vd")
        x = mesh.take_rows(table, tokens, out="act_btd").astype(self.config.dtype)
        if self.positions is not None:
            first, T = self.config.first_position, tokens.shape[1]
            rows = mesh.gathered(self.positions[...], "positions_pd")[first : first + T]
            x = x + mesh.broadcast(rows.astype(x.dtype), x)
        if self.front is None:
            return x
        # After the positions: it has none of its own.
        front = mesh.gathered(self.front[...].astype(x.dtype), "positions_pd")
        shape = (x.shape[0], *front.shape)
        front = mesh.constrain(jnp.broadcast_to(front, shape), "act_btd")
        return jnp.concatenate([front, x], axis=1)

    def logits(self, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Logits from the residual stream after the last block."""
        x = self.final_norm(x)
        if self.head is None:
            table = mesh.gathered(self.embed[...].astype(x.dtype), "embed_vd")
            return mesh.einsum("btd,vd->btv", x, table, out="act_btv")
        table = mesh.gathered(self.head[...].astype(x.dtype), "head_dv")
        return mesh.einsum("btd,dv->btv", x, table, out="act_btv")

    def _check(self, tokens: jax.Array) -> None:
        if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
            raise ValueError(
                f"tokens have shape {tokens.shape} and dtype {tokens.dtype}; expected integer ids "
                "[sequences, tokens]"
            )
        limit = self.config.context_length - self.config.first_position
        if not 0 < tokens.shape[1] <= limit:
            raise ValueError(
                f"a sequence of {tokens.shape[1]} tokens; this model takes from 1 to {limit}"
            )


# Parameter name -> its kind in `mesh.LAYOUTS`.
PARAMETER_KINDS = {
    "embed": "embed_vd",
    "positions": "positions_pd",
    "head": "head_dv",
    "attn.q": "qkv_dnh",
    "attn.k": "qkv_dnh",
    "attn.v": "qkv_dnh",
    "attn.out": "out_nhd",
    "attn.q_bias": "bias_nh",
    "attn.k_bias": "bias_nh",
    "attn.v_bias": "bias_nh",
    "attn.out_bias": "vector_d",
    "attn.variant.k": "bias_nh",
    "attn.variant.v": "bias_nh",
    "attn.variant.logit": "bias_n",
    "attn.variant.gate": "gate_dn",
    "front": "positions_pd",
    "mlp.up": "up_df",
    "mlp.gate": "up_df",
    "mlp.down": "down_fd",
    "mlp.up_bias": "bias_f",
    "mlp.gate_bias": "bias_f",
    "mlp.down_bias": "vector_d",
}


def parameter_kind(name: str) -> str:
    """The kind of the parameter `name` (as in `parameters`), for `mesh.parameter_sharding`."""
    return PARAMETER_KINDS.get(name.removeprefix("blocks."), "vector_d")


def _names(model: Transformer) -> list[str]:
    paths, _ = zip(*jax.tree_util.tree_flatten_with_path(model)[0], strict=True)
    return [".".join(key.name for key in path if key.name != "value") for path in paths]


def abstract(config: ModelConfig) -> Transformer:
    """A decoder of shapes: `jax.ShapeDtypeStruct` in place of every array, no memory used."""
    return jax.eval_shape(lambda key: Transformer(config, key), jax.random.key(0))


def parameters(model: Transformer) -> dict[str, Any]:
    """Every parameter by its dotted name, e.g. `blocks.attn.q` (stacked over layers)."""
    return dict(zip(_names(model), jax.tree.leaves(model), strict=True))


def from_parameters(config: ModelConfig, arrays: Mapping[str, Any]) -> Transformer:
    """The decoder that has exactly these parameters; the inverse of `parameters`.

    Raises:
      ValueError: a parameter is missing, unknown or mis-shaped.
    """
    model = abstract(config)
    wanted = parameters(model)
    if wanted.keys() != arrays.keys():
        missing = sorted(wanted.keys() - arrays.keys())
        extra = sorted(arrays.keys() - wanted.keys())
        raise ValueError(f"missing parameters: {missing}; unknown parameters: {extra}")
    for name, leaf in wanted.items():
        if arrays[name].shape != leaf.shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}; expected {leaf.shape}")
    return jax.tree.unflatten(jax.tree.structure(model), [arrays[name] for name in wanted])
