"""JAX's own switches, which users set in the environment, and those that cannot be used."""

import os
from collections.abc import Mapping

from jax_massact.errors import ConfigError

# Switch -> why the commands cannot run under it.
_UNUSABLE = {
    "jax_disable_jit": "whole models are compiled, and their memory and layouts are the compiler's",
    "jax_debug_nans": "NaN stands for numbers that are not there; results and training say where "
    "others are not finite",
    "jax_debug_infs": "masks are infinite; results and training say where others are not finite",
}


def check_switches(environment: Mapping[str, str] = os.environ) -> None:
    """Raises ConfigError where a switch of JAX is on under which nothing here can run."""
    for name, why in _UNUSABLE.items():
        # As JAX reads them; a process that only waits for another need not import it.
        if environment.get(name.upper(), "").lower() in ("y", "yes", "t", "true", "on", "1"):
            raise ConfigError(f"{name.upper()} is on; expected: off, because {why}")


def missing_device(error: BaseException) -> ConfigError | None:
    """The text of an error by which JAX does not find the devices that were asked for.

    Returns:
      None where `error` is another one.
    """
    import jax

    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    # Where a platform's package is not installed at all, JAX has an assertion that fails.
    is_ours = isinstance(error, AssertionError) and not str(error)
    if not platforms or not (is_ours or str(error).startswith("Unable to initialize backend")):
        return None
    try:
        jax.devices()
    except (AssertionError, RuntimeError):
        name = {"cuda": "CUDA", "gpu": "GPU", "tpu": "TPU"}.get(platforms, platforms)
        return ConfigError(
            f"no {name} device here, and JAX_PLATFORMS is {platforms!r}; expected: a machine with "
            "one, and JAX's package for it (pip install 'jax_massact[cuda]' or [tpu]); or "
            "JAX_PLATFORMS=cpu"
        )
    return None
