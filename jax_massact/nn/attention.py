"""Attention: the only softmax over keys, for the forward pass and for taps alike."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_massact.errors import ConfigError
from jax_massact.nn import sharded
from jax_massact.nn.acts import Mask
from jax_massact.nn.block_config import ImplementationKind
from jax_massact.nn.extra import Extra
from jax_massact.nn.fused.flash import flash_attend
from jax_massact.nn.fused.vendor import KERNELS, FlashKernel

# From the weights of some queries [B K G Q S], and the queries, to rounded weights.
Rounded = Callable[[jax.Array, jax.Array], jax.Array]
# Queries are taken in blocks of about this many, so that keys that a block cannot see are not
# multiplied; and of a longer block so many at a time, so that no [N, T, T] array is ever whole.
QUERY_BLOCK = 128
MAX_BLOCKS = 16


class Weights(NamedTuple):
    """Attention of some queries, in float32; head n = k * G + g.

    Attributes:
      keys: weight of each key.
      extra: weight of each extra key; None without any.
      logits: scaled logits, -inf where a key is not seen.
    """

    keys: Float[Array, "B K G Q S"]
    extra: Float[Array, "B K G Q R"] | None
    logits: Float[Array, "B K G Q S"]

    def rounded(self, rounded: Rounded, queries: Int[Array, " Q"]) -> "Weights":
        """Real and extra keys of a query are rounded together, as the one softmax that they are."""
        if self.extra is None:
            return self._replace(keys=rounded(self.keys, queries))
        S = self.keys.shape[-1]
        both = rounded(jnp.concatenate([self.keys, self.extra], -1), queries)
        return self._replace(keys=both[..., :S], extra=both[..., S:])

    def mix(self, v: Float[Array, "B S K H"], extra: Extra | None) -> Float[Array, "B Q N H"]:
        """The weighted sum of values, in float32."""
        precision = jax.lax.Precision.HIGHEST if v.dtype == jnp.float32 else None
        out = jnp.einsum(
            "bkgqs,bskh->bqkgh", self.keys.astype(v.dtype), v,
            precision=precision, preferred_element_type=jnp.float32,
        )
        if extra is not None and extra.value is not None:
            value = extra.value.astype(jnp.float32)
            out = out + jnp.einsum(
                "bkgqr,rkh->bqkgh", self.extra, value, precision=jax.lax.Precision.HIGHEST
            )
        return out.reshape(*out.shape[:2], -1, out.shape[-1])


def weights(
    q: Float[Array, "B Q N H"],
    k: Float[Array, "B S K H"],
    mask: Mask,
    *,
    extra: Extra | None = None,
    queries: Int[Array, " Q"],
    first_key: int = 0,
    slopes: Float[Array, " N"] | None = None,
) -> Weights:
    """The weights of some queries for some keys and all extra keys.

    Args:
      queries: index of each query in its sequence.
      first_key: index of the first key; later ones follow.
      slopes: those of `mask` that belong to these heads; None: all.
    """
    K, S = k.shape[2], k.shape[1]
    logits = _logits(q, k, "bskh->bkgqs", mask)
    keys = first_key + jnp.arange(S)
    behind = queries[:, None] - keys
    if mask.slopes is not None:
        slopes = jnp.asarray(mask.slopes, jnp.float32) if slopes is None else slopes
        logits = logits - _alibi(slopes.reshape(K, -1, 1, 1), queries[:, None], keys, mask)
    seen = behind >= 0 if mask.causal else jnp.ones_like(behind, bool)
    if mask.window is not None:
        seen &= jnp.abs(behind) < mask.window
    logits = jnp.where(seen, logits, -jnp.inf)
    weighed = mask.weigh(logits, None if extra is None else _extra(q, K, extra, mask, queries))
    return Weights(*weighed, logits)


def _logits(q, k, keys: str, mask: Mask) -> jax.Array:
    """Float32 logits of queries in groups that share a key/value head, before masking."""
    B, Q, N, H = q.shape
    K = k.shape[-2]
    logits = jnp.einsum(
        f"bqkgh,{keys}",
        (q * mask.scale).reshape(B, Q, K, N // K, H),
        k.astype(q.dtype),
        precision=jax.lax.Precision.HIGHEST if q.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )
    return logits if mask.softcap is None else mask.softcap * jnp.tanh(logits / mask.softcap)


def _alibi(slopes, queries: Int[Array, "Q 1"], keys: Int[Array, " S"], mask: Mask):
    """What ALiBi takes from logits, float32 [K G Q S]; slopes have the shape [K G 1 1]."""
    if mask.rounded_from is None:
        return slopes * jnp.abs(queries - keys)
    # XLA may leave out a conversion to bfloat16 and back, but not this.
    rounded = functools.partial(jax.lax.reduce_precision, exponent_bits=8, mantissa_bits=7)

    def at(index):
        position = (mask.rounded_from + index).astype(jnp.float32)
        return rounded(rounded(slopes) * rounded(position))

    return mask.scale * jnp.abs(at(queries) - at(keys))


def _extra(q, K: int, extra: Extra, mask: Mask, queries) -> Float[Array, "B K G Q R"]:
    """Float32 logits for the extra keys, -inf where one is not seen."""
    B, Q, N, _ = q.shape
    R = extra.number
    logits = jnp.zeros((B, K, N // K, Q, R), jnp.float32)
    if extra.key is not None:
        logits = _logits(q, extra.key, "rkh->bkgqr", mask)
    if extra.logit is not None:
        learned = extra.logit.astype(jnp.float32).T
        logits = logits + learned.reshape(K, N // K, 1, R)
    if mask.reach is not None:
        logits = jnp.where(queries[:, None] < mask.reach + jnp.arange(R), logits, -jnp.inf)
    return logits


def attend(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    mask: Mask,
    *,
    extra: Extra | None = None,
    implementation: ImplementationKind | None = None,
    rounded: Rounded | None = None,
) -> Float[Array, "B T N H"]:
    """The weighted sum of values, each group of N/K query heads sharing a key/value head.

    Args:
      extra: more keys and values.
      implementation: `cudnn` (NVIDIA GPUs, 16 bit) or `splash` (TPU): flash attention, which can be
        differentiated once and in reverse mode only; `xla`: any device, dtype and derivative;
        None: the first of these that can compute it.
      rounded: simulated quantization of the weights, which XLA alone can compute.

    Raises:
      ConfigError: the implementation that is named cannot compute this, and why.
    """
    chosen = implementation if rounded is None else "xla"
    kernel = choose_kernel(chosen, jax.ShapeDtypeStruct(q.shape, q.dtype), mask)

    def local(q, k, v, slopes, *fields):
        own = None if extra is None else Extra(*fields)
        if kernel is not None:
            return flash_attend(kernel, q, k, v, mask, own)
        blocks = [
            _attend_block(q, k, v, start, stop, mask, own, slopes, rounded)
            for start, stop in query_blocks(q.shape[1])
        ]
        return blocks[0] if len(blocks) == 1 else jnp.concatenate(blocks, axis=1)

    return per_head(local, (q, k, v), mask, extra)


def per_head(
    local: Callable[..., jax.Array],
    operands: tuple[jax.Array, ...],
    mask: Mask,
    extra: Extra | None,
) -> Float[Array, "B T N H"]:
    """Runs `local(*operands, slopes, *extra)` where each device has its own sequences and heads."""
    slopes = None if mask.slopes is None else jnp.asarray(mask.slopes, jnp.float32)
    return sharded.per_head(
        local,
        (*operands, slopes, *(extra or Extra())),
        (*("btnh",) * len(operands), "n", "rnh", "rn", "rnh"),
        out="btnh",
    )


def choose_kernel(
    implementation: ImplementationKind | None, q: jax.ShapeDtypeStruct, mask: Mask
) -> FlashKernel | None:
    """The flash kernel for such queries [B T N H]; None: XLA.

    Raises:
      ConfigError: the one that is named cannot compute this.
    """
    if implementation == "xla":
        return None
    if implementation is None:
        return next((kernel for kernel in KERNELS.values() if not kernel.unfit(q, mask)), None)
    kernel = KERNELS[implementation]
    reason = kernel.unfit(q, mask)
    if reason:
        raise ConfigError(f"implementation {implementation!r} cannot compute this: {reason}")
    return kernel


def query_blocks(length: int) -> list[tuple[int, int]]:
    """The (start, stop) of each block of queries of a sequence, all of about one size.

    XLA (jax 0.11) compiles no block of a single query, such as the last of 257, for a GPU in
    float32.
    """
    number = -(-length // max(QUERY_BLOCK, -(-length // MAX_BLOCKS)))
    size = -(-length // max(1, number))
    return [(s, min(s + size, length)) for s in range(0, length, size)]


def _attend_block(
    q, k, v, start: int, stop: int, mask: Mask, extra: Extra | None, slopes, rounded
):
    first = 0 if mask.window is None else max(0, start - mask.window + 1)
    last = stop if mask.causal else k.shape[1]
    keys, values = k[:, first:last], v[:, first:last]

    def some(q, queries):
        found = weights(
            q, keys, mask, extra=extra, queries=queries, first_key=first, slopes=slopes,
        )
        if rounded is not None:
            found = found.rounded(rounded, queries)
        return found.mix(values, extra).astype(q.dtype)

    number = -(-(stop - start) // QUERY_BLOCK)
    if number == 1:
        return some(q[:, start:stop], jnp.arange(start, stop))
    # Of a long sequence one after the other, so that memory does not grow with its square.
    size = -(-(stop - start) // number)
    wide = ((0, 0), (0, number * size - (stop - start)), (0, 0), (0, 0))
    parts = jnp.pad(q[:, start:stop], wide).reshape(q.shape[0], number, size, *q.shape[2:])
    queries = start + jnp.arange(number * size).reshape(number, size)
    found = jax.lax.map(lambda part: some(*part), (parts.swapaxes(0, 1), queries))
    return found.swapaxes(0, 1).reshape(q.shape[0], -1, *q.shape[2:])[:, : stop - start]
