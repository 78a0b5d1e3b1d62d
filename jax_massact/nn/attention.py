"""Attention as one softmax over the keys, with an optional extra key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_massact import mesh
from jax_massact.errors import ConfigError
from jax_massact.nn.config import ImplementationKind
from jax_massact.nn.extra import Extra, extra_logits
from jax_massact.nn.flash import flash_attend
from jax_massact.nn.kernels import Cudnn, FlashKernel, Splash

# Queries are taken in blocks of at least this many, so that no [N, T, T] array is ever whole and
# keys that a block cannot see are not multiplied.
QUERY_BLOCK = 128
MAX_BLOCKS = 16


# By name, in the order of preference.
KERNELS: dict[str, FlashKernel] = {"cudnn": Cudnn(), "splash": Splash()}


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    *,
    window: int | None = None,
    extra: Extra | None = None,
    reach: int | None = None,
    implementation: ImplementationKind | None = None,
) -> Float[Array, "B T N H"]:
    """Causal softmax(q k^T / sqrt(H)) v, each group of N/K query heads sharing a key/value head.

    Args:
      window: a query sees its own token and the `window - 1` before it; None: all before it.
      extra: one more key that every query sees.
      reach: only the first `reach` queries see the extra key; None: all.
      implementation: `cudnn` (NVIDIA GPUs, 16 bit) or `splash` (TPU): flash attention, which can be
        differentiated once and in reverse mode only; `xla`: any device, dtype and derivative;
        None: the first of these that can compute it.

    Raises:
      ConfigError: the implementation that is named cannot compute this, and why.
    """
    kernel = choose_kernel(implementation, jax.ShapeDtypeStruct(q.shape, q.dtype), window)

    def local(q, k, v, *fields):
        local_extra = None if extra is None else Extra(*fields)
        if kernel is not None:
            return flash_attend(
                kernel, q, k, v, window=window, extra=local_extra, reach=reach
            )
        blocks = [
            _attend_block(q, k, v, start, stop, window, local_extra, reach)
            for start, stop in query_blocks(q.shape[1])
        ]
        return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)

    return mesh.per_head(
        local,
        (q, k, v, *(extra or Extra())),
        ("act_btnh", "act_btnh", "act_btnh", "bias_nh", "bias_n", "bias_nh"),
        out="act_btnh",
    )


def choose_kernel(
    implementation: ImplementationKind | None, q: jax.ShapeDtypeStruct, window: int | None
) -> FlashKernel | None:
    """The flash kernel for such queries [B T N H]; None: XLA.

    Raises:
      ConfigError: the one that is named cannot compute this.
    """
    if implementation == "xla":
        return None
    if implementation is None:
        return next((kernel for kernel in KERNELS.values() if not kernel.unfit(q, window)), None)
    kernel = KERNELS[implementation]
    reason = kernel.unfit(q, window)
    if reason:
        raise ConfigError(f"implementation {implementation!r} cannot compute this: {reason}")
    return kernel


def query_blocks(length: int) -> list[tuple[int, int]]:
    """The (start, stop) of each block of queries of a sequence."""
    size = max(QUERY_BLOCK, -(-length // MAX_BLOCKS))
    return [(s, min(s + size, length)) for s in range(0, length, size)]


def block_logits(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    start: int,
    stop: int,
    window: int | None,
) -> tuple[Float[Array, "B K G Q S"], int]:
    """Float32 logits of queries [start, stop), -inf where a key is not seen.

    Returns the logits over the keys [first, stop) and `first`.
    """
    first = 0 if window is None else max(0, start - window + 1)
    behind = jnp.arange(start, stop)[:, None] - jnp.arange(first, stop)
    return causal_logits(q[:, start:stop], k[:, first:stop], behind, window), first


def causal_logits(
    q: Float[Array, "B Q N H"],
    k: Float[Array, "B S K H"],
    behind: Int[Array, "Q S"],
    window: int | None,
) -> Float[Array, "B K G Q S"]:
    """Float32 logits q.k / sqrt(H), -inf where a key is not seen; head n = k * G + g.

    Args:
      behind: how many tokens each key is behind each query.
    """
    B, Q, N, H = q.shape
    K = k.shape[2]
    precision = jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None
    logits = jnp.einsum(
        "btkgh,bskh->bkgts",
        (q * H**-0.5).reshape(B, Q, K, N // K, H),
        k,
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    seen = behind >= 0 if window is None else (behind >= 0) & (behind < window)
    return jnp.where(seen, logits, -jnp.inf)


def _attend_block(q, k, v, start, stop, window, extra, reach):
    logits, first = block_logits(q, k, start, stop, window)
    B, K, G, Q, _ = logits.shape
    peak = logits.max(-1, keepdims=True)
    logit = None
    if extra is not None:
        index = jnp.arange(start, stop)
        logit = extra_logits(q[:, start:stop], K, extra, index, reach)
        peak = jnp.maximum(peak, logit)
    peak = jax.lax.stop_gradient(peak)
    weights = jnp.exp(logits - peak)
    total = weights.sum(-1, keepdims=True)
    if logit is not None:
        weight = jnp.exp(logit - peak)
        total = total + weight
    precision = jax.lax.Precision.HIGHEST if v.dtype == jnp.float32 else None
    out = jnp.einsum(
        "bkgts,bskh->bkgth",
        weights.astype(v.dtype),
        v[:, first:stop],
        precision=precision,
        preferred_element_type=jnp.float32,
    )
    if extra is not None and extra.value is not None:
        out = out + weight * extra.value.astype(jnp.float32)[None, :, None, None, :]
    out = (out / total).astype(q.dtype)
    return out.transpose(0, 3, 1, 2, 4).reshape(B, Q, K * G, -1)
