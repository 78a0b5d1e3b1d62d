"""Every family against transformers: odd small models, from folders and from GGUF files."""

import functools
import json
import tempfile
from pathlib import Path

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from parity import gguf_writer
from parity.family_cases import FAMILIES, TOKENS, VOCAB
from parity.random_weights import draw, tokens
from safetensors.numpy import save_file

from jax_massact.families.table import FAMILIES as TABLE
from jax_massact.loading import open_checkpoint
from jax_massact.nn.transformer import parameters
from jax_massact.saving import save
from jax_massact.weights.folder import open_folder

STORED = Path(__file__).parent / "families"
EACH = pytest.mark.parametrize("name", FAMILIES)
# Of the largest value.
WITHIN = 1e-4


class Case(dict):
    """A model as it is stored, with its numbers."""

    @functools.cached_property
    def arrays(self):
        return draw(self["tensors"], self["seed"])

    def folder(self, path: Path) -> Path:
        path.mkdir()
        (path / "config.json").write_text(json.dumps(self["config"]))
        save_file(self.arrays, path / "model.safetensors")
        return path


@functools.cache
def cases(name: str) -> list[Case]:
    with np.load(STORED / f"{name}.npz") as file:
        found = [Case(case) for case in json.loads(str(file["cases"]))]
        for i, case in enumerate(found):
            case |= {"logits": file[f"logits_{i}"], "hidden": file[f"hidden_{i}"]}
    return found


def forward(model, ids):
    """Logits and the residual stream."""
    logits, hidden = model(ids, tap=lambda acts: acts.resid_post)
    return logits[0], jnp.concatenate([model.embedded(ids), hidden[:, 0]])


numbers = in_numpy.jit(forward)
# Tiny models do not need optimizations.
compiled = jax.jit(forward, compiler_options={"xla_backend_optimization_level": 0})


def same(a, b):
    if a.config != b.config:
        return False
    a, b = parameters(a), parameters(b)
    return a.keys() == b.keys() and all(np.array_equal(x, b[name]) for name, x in a.items())


def check(models, stored, run=numbers):
    for model, case in zip(models, stored, strict=True):
        logits, hidden = run(model, tokens(TOKENS, VOCAB, case["seed"]))
        for what, values in (("logits", logits), ("hidden", hidden)):
            limit = WITHIN * np.abs(case[what]).max()
            np.testing.assert_allclose(
                values, case[what], rtol=0, atol=limit, err_msg=f"{what} of {case['name']}"
            )


def test_every_family_has_its_models():
    assert {family.model_type for family in TABLE} == FAMILIES.keys()
    in_gguf = {family.model_type for family in TABLE if family.gguf is not None}
    # Mixtral has LLaMA's name there, and OLMo 3 that of OLMo 2.
    assert in_gguf == gguf_writer.CONVERSIONS.keys() - {"mixtral", "olmo3"}
    for name, family in FAMILIES.items():
        assert [case["name"] for case in cases(name)] == list(family.cases), name
        assert all(case["config"] == family.config(case["name"]) for case in cases(name)), name
        assert len(family.cases) >= 12, name
        assert (STORED / f"{name}.npz").stat().st_size <= 200_000, name


@EACH
def test_same_numbers_as_transformers(tmp_path, name):
    stored = cases(name)
    opened = [open_checkpoint(case.folder(tmp_path / str(i))) for i, case in enumerate(stored)]
    assert {one.family for one in opened} == {name}
    models = [one.load_model() for one in opened]
    check(models, stored)
    check(models[:1], stored[:1], compiled)


@EACH
def test_a_folder_is_written_as_it_was_read(name):
    for case in (cases(name)[0], cases(name)[-1]):
        with tempfile.TemporaryDirectory() as folder:
            read = open_checkpoint(case.folder(Path(folder) / "read"))
            model = read.load_model()
            save(model, Path(folder) / "written")
            again = open_checkpoint(Path(folder) / "written")
            assert again.config == read.config
            theirs = parameters(again.load_model())
            for key, array in parameters(model).items():
                np.testing.assert_array_equal(array, theirs[key], err_msg=key)
            if again.family == name:
                found = open_folder(Path(folder) / "written")
                assert {n: list(t.shape) for n, t in found.items()} == case["tensors"]


@pytest.mark.parametrize("name", gguf_writer.CONVERSIONS)
def test_gguf_files_have_the_same_numbers(tmp_path, name):
    left_out = gguf_writer.UNSTATED.get(name, ())
    stored = [case for case in cases(name) if case["name"] not in left_out]
    assert len(stored) >= 6
    for i, case in enumerate(stored):
        path = gguf_writer.write(case["config"], case.arrays, tmp_path / f"{i}.gguf")
        model = open_checkpoint(path).load_model()
        # The folder's model has transformers' numbers, and so has one that equals it.
        if not same(model, open_checkpoint(case.folder(tmp_path / str(i))).load_model()):
            check([model], [case])
