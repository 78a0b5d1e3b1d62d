"""Puts arrays where parameters live: on one device, or in shards on a mesh."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.mesh import parameter_sharding
from jax_massact.nn.config import DType
from jax_massact.nn.fused.vendor import platform
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
        self._name, self._dtype, self._mesh = name, jnp.dtype(dtype), mesh
        self._numbers = self._array = None
        if mesh is None and platform() == "cpu":
            # NumPy fills it where it lies, and nothing is compiled.
            self._numbers = _aligned_zeros(shape, self._dtype)
        elif self.is_stacked:
            layout = None
            if mesh is not None:
                layout = parameter_sharding(mesh, parameter(name).letters, shape, stacked=True)
            self._array = jnp.zeros(shape, self._dtype, device=layout)

    def put(self, block: np.ndarray, layer: int) -> None:
        """Writes the part of block `layer`, or the whole of a parameter outside the blocks."""
        if self._numbers is not None:
            self._numbers[layer if self.is_stacked else ...] = block
            return
        # Waiting keeps a fast reader from piling up arrays whose transfer is still to come.
        on_device = transfer(self._name, block, self._mesh).block_until_ready()
        if self._array is None:
            self._array = on_device.astype(self._dtype)
        else:
            self._array = _write(self._array, on_device, layer)

    @property
    def array(self) -> jax.Array | None:
        """The parameter, once all of it was put."""
        return self._array if self._numbers is None else jax.device_put(self._numbers)


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros at a multiple of 64 bytes, which JAX on a CPU takes as they lie, without a copy."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)


def transfer(name: str, block: np.ndarray, mesh: jax.sharding.Mesh | None) -> jax.Array:
    """A parameter of one block, or one outside the blocks, on its devices."""
    if mesh is None:
        return jnp.asarray(block)
    layout = parameter_sharding(mesh, parameter(name).letters, block.shape, stacked=False)
    # Each process and device is given its own slice and nothing else.
    return jax.make_array_from_callback(block.shape, layout, lambda index: block[index])


@functools.partial(jax.jit, donate_argnums=0)
def _write(stack: jax.Array, block: jax.Array, layer: int) -> jax.Array:
    return jax.lax.dynamic_update_index_in_dim(stack, block.astype(stack.dtype), layer, 0)
