"""Massive activations, attention sinks and outlier features in transformers, in JAX.

`import jax_massact as ma`, then `ma.load` a checkpoint and call the pure functions of this package
on it. Each name is imported when it is first used: `__init__.pyi` says from where.
"""

import lazy_loader

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
