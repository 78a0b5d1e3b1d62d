"""Losses and perplexity against a plain NumPy model, and several interventions in one vmap."""

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from tiny_models import CONFIGS, decoder, ids

import jax_massact as ma

FAMILIES = pytest.mark.parametrize("family", ["llama", "gpt2", "mistral"])
S, T = 2, 9


@FAMILIES
def test_losses_are_those_of_the_plain_model(family):
    model, tokens = decoder(CONFIGS[family]), np.array(ids(CONFIGS[family], S, T))
    edit = ma.Edits.set_to([1, 1], np.arange(T) == 3, [4, 5], [9.0, -7.0])
    plain = [(1, 3, 4, 9.0), (1, 3, 5, -7.0)]
    for edits, plain_edits in ((None, ()), (edit, plain)):
        found = in_numpy.jit(ma.token_losses)(model, tokens, edits=edits)
        expected = [
            oracle.losses(oracle.run(model, row, plain_edits)["logits"], row)
            for row in tokens
        ]
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-4)
        value = float(in_numpy.jit(ma.perplexity)(model, tokens, edits=edits))
        assert value == pytest.approx(np.exp(np.mean(expected)), rel=2e-4)


def test_interventions_can_be_vmapped():
    model, tokens = decoder(CONFIGS["llama"]), ids(CONFIGS["llama"], S, T)
    first = np.arange(T) == 0
    many = [ma.Edits.set_to(1, first, 4, value) for value in (0.0, 5.0, 50.0)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *many)
    run = lambda edits: ma.token_losses(model, tokens, edits=edits)
    together = in_numpy.jit(jax.vmap(run))(stacked)
    for one, edits in zip(together, many, strict=True):
        np.testing.assert_allclose(one, in_numpy.jit(run)(edits), rtol=0, atol=1e-5)
    assert np.abs(together[0] - together[2]).max() > 1e-3


def test_losses_have_gradients():
    model, tokens = decoder(CONFIGS["llama"]), ids(CONFIGS["llama"], 1, 5)
    grads = in_numpy.jit(jax.grad(lambda m: ma.token_losses(m, tokens).sum()))(model)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
