"""Mixtures on a mesh: the numbers and gradients of one device, with the experts' units divided."""

import dataclasses
import re

import jax
import numpy as np
from tiny_models import SWITCHES, decoder, ids

from jax_massact.mesh import make_mesh, parameter_sharding
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.transformer import from_parameters, parameters


def loss(model, tokens):
    """Some scalar of the logits, and the units."""
    logits, units = model(tokens, tap=lambda acts: acts.mlp_hidden)
    return (logits * jax.numpy.sin(jax.numpy.arange(logits.shape[-1]))).sum(), units


STEP = jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_units_are_divided_over_the_model_axis():
    config = dataclasses.replace(SWITCHES["gpt_oss"], depth=1)
    model, tokens = decoder(config), ids(config, 4, 7)
    expected = jax.device_get(STEP(model, tokens))
    mesh = make_mesh(data=2, fsdp=2, model=2)

    def placed(name, x):
        letters, stacked = parameter(name).letters, is_stacked(name)
        return jax.device_put(x, parameter_sharding(mesh, letters, x.shape, stacked=stacked))

    spread = {name: placed(name, x) for name, x in parameters(model).items()}
    with jax.set_mesh(mesh):
        compiled = STEP.lower(from_parameters(config, spread), tokens).compile()
        found = jax.device_get(compiled(from_parameters(config, spread), tokens))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5 * np.abs(b).max())
    # No device has all units of the experts' matrices.
    E, D, F = config.block.mlp.moe.experts, config.width, config.block.mlp.hidden
    shapes = set(re.findall(r"f32\[([\d,]+)\]", compiled.as_text()))
    assert f"{E},{D},{F // 2}" in shapes
    assert not {f"{E},{D},{F}", f"{E},{F},{D}"} & shapes
