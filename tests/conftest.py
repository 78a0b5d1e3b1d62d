"""Settings that must stand before JAX starts its backends."""

import gc
import os
import sys
from importlib.metadata import version
from pathlib import Path

# The tests compile thousands of small programs and run each once or twice. Without LLVM's
# optimizations XLA compiles them in half the time, with its older emitters of fusions, which
# jax 0.10 still has, in a sixth, and in one piece rather than 32 in half of that. What the programs
# compute stays, to rounding; processes that the tests start inherit it. `XLA_FLAGS= pytest` runs
# the tests as users run the package.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if version("jaxlib").startswith("0.10."):
    QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", QUICK)

# What one worker, or a process that a test starts, has compiled serves all, and the next run.
COMPILED = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(COMPILED))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# Neither the next run nor the processes that the tests start need compile Python again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

import jax  # noqa: E402
import jaxtyping  # noqa: E402
import pytest  # noqa: E402

# One CPU becomes eight devices, so that meshes need no second process.
jax.config.update("jax_num_cpu_devices", 8)

# The shapes in annotations are checked, where functions of arrays are. Not where settings refuse
# wrong values in words of their own, nor in pytrees that `vmap` and `scan` take apart.
PARTS = (
    "attention", "block", "embed", "extra", "fused", "linear", "mlp", "norms", "positions",
    "transformer", "variants", "weigh",
)
jaxtyping.install_import_hook([f"jax_massact.nn.{part}" for part in PARTS], "beartype.beartype")


def pytest_collection_finish():
    """Imported modules stay, and the rest is collected seldom: a twentieth of all time."""
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


def pytest_runtest_teardown(item, nextitem):
    """Forgets compiled programs: thousands would fill a worker's memory.

    Modules of one folder share some, such as a training step.
    """
    if nextitem is None or nextitem.path.parent != item.path.parent:
        jax.clear_caches()


@pytest.fixture
def undrawn(monkeypatch):
    """Figures are empty files, where a test looks at none: `test_reports.py` draws them all."""
    from jax_massact.report import matplotlib_painter

    monkeypatch.setattr(matplotlib_painter, "draw", lambda chart: {"png": b"", "pdf": b""})


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """One for all tests of a worker; None where there is none."""
    import headless

    executable = headless.find()
    browser = executable and headless.Browser(executable, tmp_path_factory.mktemp("profile"))
    yield browser
    if browser:
        browser.close()


@pytest.fixture
def browser(chromium):
    """A headless browser without pages."""
    import headless

    if chromium is None:
        pytest.skip(f"no Chromium on the path (looked for {', '.join(headless.NAMES)})")
    yield chromium
    chromium.close_pages()
