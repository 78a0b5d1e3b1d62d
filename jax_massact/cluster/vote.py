"""Stopping all processes of a run after the same update."""

from collections import deque
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


class Vote:
    """Whether any process wants to stop: the same answer after the same update on all.

    In a run of several processes each update is followed by the sum of one number per device,
    whose result is read some updates later, so that nothing waits for it. With one process the
    answer is that of `stop` at once.

    Args:
      stop: whether this process wants to stop.
      mesh: the run's mesh.
      delay: number of further updates after which a vote is read.
    """

    def __init__(self, stop: Callable[[], bool], mesh: jax.sharding.Mesh, delay: int):
        self._stop, self._mesh, self._delay = stop, mesh, delay
        self._cast: deque[jax.Array] = deque()

    def __call__(self) -> bool:
        """Votes; every process has to call it after every update."""
        if jax.process_count() == 1:
            return self._stop()
        mine = np.full((1,), self._stop(), np.int32)
        sharding = NamedSharding(self._mesh, PartitionSpec(self._mesh.axis_names))
        votes = jax.make_array_from_callback((self._mesh.size,), sharding, lambda index: mine)
        self._cast.append(_total(votes))
        if len(self._cast) <= self._delay:
            return False
        return bool(jax.device_get(self._cast.popleft()))


@jax.jit
def _total(votes: jax.Array) -> jax.Array:
    return jnp.sum(votes)
