"""The only matmul of activations and weights."""

import jax
from flax import nnx

from jax_massact.nn import sharded


def project(
    x: jax.Array,
    weight: nnx.Param | jax.Array,
    letters: str,
    bias: nnx.Param | None = None,
    *,
    transposed: bool = False,
) -> jax.Array:
    """`x` times a weight, plus a bias, in the dtype of `x`.

    Args:
      x: [B T ...], whose last axes are the first ones of the weight.
      letters: the weight's kind in `mesh.LAYOUTS`, one letter an axis: `dnh` takes [B T D] to
        [B T N H].
      transposed: contract the last axes of the weight instead: `vd` takes [B T D] to [B T V].
    """
    w = sharded.gathered(weight[...].astype(x.dtype), letters)
    y = sharded.matmul(x, w, letters, transposed=transposed)
    return y if bias is None else y + sharded.broadcast(bias[...].astype(x.dtype), y)
