"""Settings that must stand before JAX starts its backends."""

import jax

# One CPU becomes eight devices, so that meshes need no second process.
jax.config.update("jax_num_cpu_devices", 8)
