"""The loss against NumPy in float64, alone and with the vocabulary split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_massact import mesh
from jax_massact.nn import sharded
from jax_massact.nn.fused import cross_entropy as loss
from jax_massact.nn.fused.cross_entropy import cross_entropy, logsumexp_once


def reference(logits, targets, weights):
    x = np.float64(logits)
    x = x - x.max(-1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(-1, keepdims=True))
    one_hot = np.eye(x.shape[-1])[targets]
    return -(log_p * one_hot).sum(-1), (np.exp(log_p) - one_hot) * weights[..., None]


@pytest.mark.parametrize("model", [None, 1, 4])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_values_and_gradient(model, dtype):
    rng = np.random.default_rng(0)
    logits = jnp.asarray(30 * rng.standard_normal((4, 6, 32)), dtype)
    targets = rng.integers(0, 32, (4, 6))
    weights = rng.standard_normal((4, 6)).astype(np.float32)

    def run(logits, weights, targets):
        out, pull = jax.vjp(lambda x: cross_entropy(x, targets), logits)
        return out, pull(weights)[0]

    if model is None:
        found = run(logits, jnp.asarray(weights), jnp.asarray(targets))
    else:
        with jax.set_mesh(mesh.make_mesh(2, 1, model, devices=jax.devices()[: 2 * model])):
            put = lambda x, kind: sharded.constrain(jnp.asarray(x), kind)
            found = jax.jit(run)(
                put(logits, "btv"), put(weights, "bt"), put(targets, "bt")
            )
    expected = reference(logits, targets, weights)
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6, atol=1e-5)
    assert found[1].dtype == logits.dtype
    limit = 2e-5 if dtype == "float32" else 1e-2
    np.testing.assert_allclose(np.float64(found[1]), expected[1], rtol=limit, atol=limit)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sum_of_exponentials_in_one_pass(dtype):
    x = jnp.asarray(40 * np.random.default_rng(1).standard_normal((3, 5, 2048)), dtype)
    x = x.at[0, 0].set(-jnp.inf).at[0, 1, 7:].set(-jnp.inf).at[0, 2, 2000].set(2e38)
    wide = np.float64(x)
    peak = wide.max(-1)
    with np.errstate(invalid="ignore", divide="ignore"):
        expected = peak + np.log(np.exp(wide - peak[..., None]).sum(-1))
    expected[0, 0] = -np.inf
    np.testing.assert_allclose(jax.jit(logsumexp_once)(x), expected, rtol=1e-6)


def test_accelerators_read_the_logits_once(monkeypatch):
    monkeypatch.setattr(loss, "platform", lambda: "gpu")
    for vocabulary in (32, 33):
        logits = jnp.asarray(np.random.default_rng(2).standard_normal((4, vocabulary)), "float32")
        targets = np.arange(4)
        found = cross_entropy(logits, targets)
        expected, _ = reference(logits, targets, np.ones(4))
        np.testing.assert_allclose(found, expected, rtol=1e-6)
