"""Registers at test time: units moved to an appended token, and its keys and values kept."""

import in_numpy
import jax.numpy as jnp
import numpy as np
import pytest
from nn.test_images import VIT, images
from tiny_models import decoder, varied

from jax_massact.errors import ConfigError
from jax_massact.measure.register_neurons import (
    move_to_register,
    register_keys,
    unit_sums,
    with_empty_register,
    with_keys,
    without_units,
)

# CLIP's norm in front would make its bias of an empty token.
NORMED = varied(VIT, embed_norm=True)
LAYER, UNIT = jnp.array([0, 1]), jnp.array([4, 7])
PIXELS = images(3)


@in_numpy.jit
def run(model, edits):
    x, acts = model.residual(PIXELS, edits=edits, tap=lambda acts: acts)
    return x, acts.resid_pre, acts.mlp_hidden, acts.k


def test_the_largest_activation_goes_to_an_empty_token_behind_all_registers():
    model = decoder(NORMED)
    wide = with_empty_register(model)
    assert wide.config.registers == 3
    move, none = (move_to_register(wide.config, LAYER + d, UNIT, 8) for d in (0, -9))
    _, before, plain, _ = run(wide, none)
    _, pre, hidden, _ = run(wide, move)
    # CLS, three registers, four patches; the last register is empty.
    assert not pre[0, :, 3].any() and np.abs(pre[0, :, 2]).min() > 1e-3
    np.testing.assert_array_equal(pre[0], before[0])
    expected = np.zeros((3, 8))
    expected[:, 3] = plain[0, :, :, 4].max(1)
    np.testing.assert_allclose(hidden[0, :, :, 4], expected, rtol=1e-6)
    others = np.delete(np.arange(12), 4)
    np.testing.assert_array_equal(hidden[0][..., others], plain[0][..., others])
    assert not np.delete(hidden[1, :, :, 7], 3, axis=1).any()
    # Without any token, they are 0 everywhere.
    zeroed = run(model, without_units(LAYER, UNIT))[2]
    assert not zeroed[0, :, :, 4].any() and not zeroed[1, :, :, 7].any()
    assert zeroed[0, :, :, 7].any() and zeroed[1, :, :, 4].any()


def test_scores_are_sums_over_the_chosen_tokens():
    model, at = decoder(VIT), np.zeros((3, 7), bool)
    at[0, 4] = at[2, 6] = True
    found = in_numpy.jit(unit_sums)(model, PIXELS, at)
    hidden = run(model, without_units(LAYER - 9, UNIT))[2]
    expected = np.abs(hidden[:, 0, 4]) + np.abs(hidden[:, 2, 6])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_a_token_that_is_constant_can_be_a_key_and_a_value():
    # Of one image, the mean is the token itself: k' and v' do what it did.
    model = decoder(VIT)
    wide = with_empty_register(model)
    edits = move_to_register(wide.config, LAYER, UNIT, 8)
    k, v = in_numpy.jit(register_keys)(wide, PIXELS, edits)
    assert k.shape == v.shape == (2, 3, 2, 8)
    kept = with_keys(model, k[:, 1], v[:, 1])
    moved = np.delete(np.asarray(run(wide, edits)[0]), 3, axis=1)
    own = run(kept, without_units(LAYER, UNIT))[0]
    np.testing.assert_allclose(own[1], moved[1], atol=1e-5 * np.abs(moved).max(), rtol=0)
    assert np.abs(own[0] - moved[0]).max() > 1e-3
    with pytest.raises(ConfigError, match="is 'sink'; expected: 'standard', to add k' and v'"):
        with_keys(decoder(varied(VIT, variant="sink")), k[:, 0], v[:, 0])
