"""`python -m jax_massact`: the same as `massact`."""

import sys

from jax_massact.cli import main

if __name__ == "__main__":
    sys.exit(main())
