"""The key-value store of JAX's coordination service, which process 0 serves to all.

What processes tell each other outside of compiled computations goes through it: small JSON values,
no device and no mesh involved. JAX has no public way to it; JAX and Orbax use it for the same
purpose.
"""

from typing import Any


def client() -> Any:
    """The store's client; None in a run of one process."""
    from jax._src import distributed

    return distributed.global_state.client


def size() -> tuple[int, int]:
    """How many processes there are and which one this is, without waking the devices."""
    from jax._src import distributed

    return distributed.global_state.num_processes, distributed.global_state.process_id
