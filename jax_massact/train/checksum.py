"""A number for each array that says whether it is still the one that was saved."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

# Odd numbers with irregular bits: the golden ratio, and xxHash's primes (Collet 2012).
_SEEDS = (0x9E3779B1, 0x85EBCA77)


def checksums(arrays: dict[str, jax.Array]) -> dict[str, str]:
    """Of each array 64 bits as hexadecimal digits, whatever mesh it is spread over.

    Computed on the devices in one pass over their memory: each number's bits and its place go
    through a mixing function, and the results are summed modulo 2^32, twice. A sum of integers
    does not depend on their order, so neither on the mesh nor on the processes. One changed number
    always changes the sum, because for each place the function is one-to-one; many, or numbers
    that have changed places, but for a chance of about 2^-64.

    Args:
      arrays: of 1, 2 or 4 bytes a number. Every process has to call this.
    """
    # One after the other: where a mesh has more CPU devices than the machine has cores, programs
    # that each wait for all devices keep the threads from one another until XLA aborts.
    found = {name: jax.device_get(_checksum(array)) for name, array in arrays.items()}
    return {name: "".join(f"{int(word):08x}" for word in words) for name, words in found.items()}


# One small program for each shape, of which a state has a few: quicker to compile than one of all.
@jax.jit
def _checksum(x: jax.Array) -> tuple[UInt32[Array, ""], ...]:
    bits = _bits(x)
    place = jnp.zeros((), jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        index = jax.lax.broadcasted_iota(
            jnp.uint32, x.shape, axis, out_sharding=_sharding(x)
        )
        place = place + index * jnp.uint32(stride & 0xFFFFFFFF)
        stride *= x.shape[axis]
    return tuple(
        _mixed(bits ^ _mixed(place * jnp.uint32(2) + jnp.uint32(seed))).sum(dtype=jnp.uint32)
        for seed in _SEEDS
    )


def _bits(x: jax.Array) -> UInt32[Array, "..."]:
    if x.dtype == jnp.bool_:
        return x.astype(jnp.uint32)
    kind: Any = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    return jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)


def _sharding(x: jax.Array) -> Any:
    sharding = jax.typeof(x).sharding
    return None if sharding.mesh.empty else sharding


# Traced once for each shape, not four times.
@functools.partial(jax.jit, inline=True)
def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """The finalizer of MurmurHash3 (Appleby 2011): one-to-one, each bit depends on all."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
