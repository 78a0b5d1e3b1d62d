"""Settings that must stand before JAX starts its backends."""

import os
from importlib.metadata import version

# The tests compile thousands of small programs and run each once or twice. Without LLVM's
# optimizations XLA compiles them in half the time, and with its older emitters of fusions, which
# jax 0.10 still has, in a sixth. What the programs compute stays, to rounding; processes that
# the tests start inherit it. `XLA_FLAGS= pytest` runs the tests as users run the package.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)

import jax  # noqa: E402
import jaxtyping  # noqa: E402

# One CPU becomes eight devices, so that meshes need no second process.
jax.config.update("jax_num_cpu_devices", 8)

# The shapes in annotations are checked, where functions of arrays are. Not where settings refuse
# wrong values in words of their own, nor in pytrees that `vmap` and `scan` take apart.
PARTS = (
    "attention", "block", "embed", "extra", "fused", "linear", "mlp", "norms", "positions",
    "transformer", "variants", "weigh",
)
jaxtyping.install_import_hook([f"jax_massact.nn.{part}" for part in PARTS], "beartype.beartype")
