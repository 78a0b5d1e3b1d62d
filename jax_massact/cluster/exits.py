"""Exit codes of errors: what a launcher that starts a run again can act on."""

import jax

from jax_massact.cluster import store
from jax_massact.cluster.processes import FAILURE, TEMPFAIL, USER_ERROR
from jax_massact.errors import UserError


def exit_code(error: BaseException) -> int:
    """The exit code of a process that ends with `error`."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILURE
    if isinstance(error, KeyboardInterrupt):
        return 130
    if is_loss(error):
        return TEMPFAIL
    return USER_ERROR if isinstance(error, UserError) else FAILURE


def is_loss(error: BaseException) -> bool:
    """Whether `error` is what a computation reports when another process is gone.

    True only in a run of several processes, and not where the computation itself is at fault: too
    little memory, or an operation that the device does not have.
    """
    own = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "NOT_FOUND")
    # JAX 0.12 raises what collectives on CPUs report when a program is started as a ValueError.
    of_collective = isinstance(error, ValueError) and ": Gloo " in str(error)
    return (
        (of_collective or isinstance(error, jax.errors.JaxRuntimeError))
        and store.client() is not None
        and not str(error).startswith(own)
    )
