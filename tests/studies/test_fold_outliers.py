"""Massive activations against outlier features, on a planted model that has one of each."""

import in_numpy
import jax.numpy as jnp
import numpy as np
import pytest
from planted import BOS, DIM, REMOVER, WRITER, llama_written_and_removed

import jax_massact as ma
from jax_massact.nn.transformer import from_parameters, parameters
from jax_massact.studies.collector import Found
from jax_massact.studies.fold.outliers import _direct, _direct_parts, study_outliers
from jax_massact.studies.inputs import Inputs

FEATURE, T = 5, 12


@pytest.fixture(scope="module")
def models():
    plant = llama_written_and_removed().louder()
    plant.p["embed"][:, FEATURE] = 30.0
    plant.p["embed"][BOS, FEATURE] = 0.0
    model = plant.build()
    return model, ma.fold(model, BOS)


@pytest.fixture(scope="module")
def texts():
    tokens = np.random.default_rng(0).integers(2, 60, (2, T)).astype(np.int32)
    names = lambda ids: [f"t{i}" for i in ids]
    front = np.full((2, 1), BOS, np.int32)
    return Inputs(np.concatenate([front, tokens], 1), names), Inputs(tokens, names)


def feature(first, last):
    return {"dim": FEATURE, "first_layer": first, "last_layer": last, "share_of_tokens": 1.0,
            "share_of_sequences": 1.0, "magnitude": 30.0}


def test_each_is_followed_with_the_other_set_to_zero(models, texts):
    model, folded = models
    whole, own = texts
    found = [[Found(WRITER, 0, DIM, 500.0, True)]] * 2
    massive = [{"dim": DIM, "first_layer": WRITER, "strict": True}]
    outliers = [feature(0, 5)]
    study = study_outliers(model, folded, whole, own, found, massive, outliers, outliers)
    assert study["stream_difference"] < 1e-5
    streams = np.asarray(ma.residual_streams(model, whole.tokens))
    (followed,) = study["outliers_without_massive"]
    np.testing.assert_allclose(followed["original"], streams[:, :, 1:, FEATURE].mean((1, 2)),
                               rtol=1e-4)
    edits = ma.Edits.set_to(WRITER, np.arange(T + 1) == 0, DIM, 0.0)
    zeroed = np.asarray(ma.residual_streams(model, whole.tokens, edits=edits))
    np.testing.assert_allclose(followed["zeroed"], zeroed[:, :, 1:, FEATURE].mean((1, 2)),
                               rtol=1e-4)
    (followed,) = study["massive_without_outliers"]
    assert followed["dim"] == DIM
    np.testing.assert_allclose(followed["original"], streams[:, :, 0, DIM].mean(1), rtol=1e-4)
    # Set to zero at the other tokens alone, which the first one does not see.
    np.testing.assert_allclose(followed["zeroed"], followed["original"], rtol=1e-4)
    assert abs(followed["original"][WRITER]) > 400 and abs(followed["original"][REMOVER]) < 100


def test_the_direct_part_is_what_attention_loses_without_the_value(models, texts):
    """In the first block nothing else depends on v'."""
    _, folded = models
    tokens = texts[1].tokens
    params = parameters(folded)
    name = "blocks.attn.variant.v"
    without = from_parameters(folded.config, params | {name: jnp.zeros_like(params[name])})
    out = in_numpy.jit(lambda model: model.residual(tokens, tap=lambda a: a.attn_out)[1][0])
    expected = (out(folded) - out(without)).mean((0, 1))[FEATURE]
    given = in_numpy.jit(lambda model: model.residual(tokens, tap=_direct)[1])(folded).mean(1)
    depth = folded.config.depth
    (part,) = _direct_parts(folded, [FEATURE], np.ones((depth, 1)), given, [feature(0, 0)])
    assert part["layer"] == 0 and part["direct"] == pytest.approx(expected, rel=1e-3, abs=1e-6)
