"""The package's own names: imported when they are used, and not before."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import jax_massact as ma
from jax_massact import loading, saving


def test_the_names_that_the_stub_lists_are_what_their_modules_define():
    stub = ast.parse(Path(ma.__file__).with_suffix(".pyi").read_text())
    homes = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom)
             for alias in node.names}
    assert sorted(homes) == sorted(ma.__all__) and len(homes) > 25
    for name, module in homes.items():
        assert getattr(ma, name) is getattr(
            importlib.import_module(f"jax_massact.{module}"), name
        )
    assert (ma.load, ma.save) == (loading.load, saving.save)


def test_help_does_not_wait_for_jax():
    code = ("import sys; from jax_massact.cli import make_parser; make_parser(['--help'])"
            "; sys.exit('jax' in sys.modules)")
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
