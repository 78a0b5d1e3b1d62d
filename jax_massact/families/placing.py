"""Puts arrays where parameters live: on one device, or in shards on a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.mesh import parameter_sharding
from jax_massact.nn.config import DType
from jax_massact.nn.parameters import is_stacked, parameter


class Destination:
    """One parameter on its devices, filled a block at a time.

    Args:
      name: as in `nn.transformer.parameters`.
      shape: whole, with the leading layer axis of a parameter that every block has.
      dtype: of the parameter.
      mesh: the devices; None: the default one.
    """

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: DType, mesh: jax.sharding.Mesh | None
    ):
        self.is_stacked = is_stacked(name)
        self._dtype = jnp.dtype(dtype)
        self._stack = self._block = None
        if mesh is not None:
            letters = parameter(name).letters
            block = shape[1:] if self.is_stacked else shape
            self._block = parameter_sharding(mesh, letters, block, stacked=False)
            self._stack = parameter_sharding(mesh, letters, shape, stacked=self.is_stacked)
        self.array = jnp.zeros(shape, self._dtype, device=self._stack) if self.is_stacked else None

    def put(self, block: np.ndarray, layer: int) -> None:
        """Writes the part of block `layer`, or the whole of a parameter outside the blocks."""
        # Waiting keeps a fast reader from piling up arrays whose transfer is still to come.
        on_device = self._transfer(block).block_until_ready()
        if self.array is None:
            self.array = on_device.astype(self._dtype)
        else:
            self.array = _write(self.array, on_device, layer)

    def _transfer(self, block: np.ndarray) -> jax.Array:
        if self._block is None:
            return jnp.asarray(block)
        # Each process and device is given its own slice and nothing else.
        return jax.make_array_from_callback(block.shape, self._block, lambda index: block[index])


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, block: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, block.astype(stack.dtype), layer, 0)
