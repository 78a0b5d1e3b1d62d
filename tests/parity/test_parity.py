"""Files of every kind against transformers, whose numbers are stored in `fixtures/`.

Logits may be off by 1e-4, unscaled. The residual stream is a running sum whose rounding grows with
it (up to 37 here), so it may be off by 1e-5 of its largest value.
"""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_massact.loading import open_checkpoint

FIXTURES = Path(__file__).parent / "fixtures"
FOLDERS = sorted(path.parent for path in FIXTURES.glob("*/config.json"))
GGUFS = sorted((FIXTURES / "gguf").glob("*.gguf"))


def reference_of(source: Path) -> dict[str, np.ndarray]:
    if source.is_dir():
        path = source / "reference.npz"
    else:
        own = source.with_suffix(".npz")
        path = own if own.exists() else FIXTURES / source.stem / "reference.npz"
    return dict(np.load(path))


@jax.jit
def run(model, tokens):
    return model(tokens, tap=lambda acts: acts.resid_post)


def test_every_case_is_there():
    assert len(FOLDERS) == 9 and len(GGUFS) == 5


@pytest.mark.parametrize("source", FOLDERS + GGUFS, ids=lambda path: path.name)
def test_same_numbers_as_transformers(source):
    reference = reference_of(source)
    model = open_checkpoint(source).load_model()
    logits, hidden = run(model, reference["tokens"])
    embedded = model.embedded(reference["tokens"])
    hidden = np.concatenate([embedded[None], hidden])
    np.testing.assert_allclose(logits, reference["logits"], rtol=0, atol=1e-4)
    limit = 1e-5 * np.abs(reference["hidden"]).max()
    np.testing.assert_allclose(hidden, reference["hidden"], rtol=0, atol=limit)


@pytest.mark.parametrize("name", ["llama2", "qwen2", "gpt2"])
def test_bfloat16_stays_near_float32(name):
    reference = reference_of(FIXTURES / name)
    model = open_checkpoint(FIXTURES / name).load_model("bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(model)} == {jnp.dtype("bfloat16")}
    logits, hidden = run(model, reference["tokens"])
    assert logits.dtype == hidden.dtype == jnp.bfloat16
    error = np.asarray(logits, np.float32) - reference["logits"]
    # bfloat16 keeps 8 bits: each of some ten roundings in a row is off by up to 0.4 %.
    relative = np.sqrt(np.mean(error**2) / np.mean(reference["logits"] ** 2))
    assert 1e-4 < relative < 0.04
