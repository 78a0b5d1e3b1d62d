"""Registers that are fixed to their mean, and folded into keys and values."""

import dataclasses

import in_numpy
import numpy as np
import pytest
from nn.test_images import VIT, images
from tiny_models import LLAMA, decoder, varied

from jax_massact.errors import ConfigError
from jax_massact.measure.magnitudes import magnitudes
from jax_massact.measure.registers import fix_registers, fold_registers, register_means
from jax_massact.nn.transformer import from_parameters, parameters

ROTARY = varied(
    VIT, position="rope_2d", qkv_bias=True,
    embed=dataclasses.replace(
        VIT.embed, positions="none",
        patches=dataclasses.replace(VIT.embed.patches, cls_position=False),
    ),
)


@in_numpy.jit
def both(model, pixels):
    """The last stream of the fixed and of the folded model, and the streams of the fixed one."""
    means = register_means(model, pixels)
    tokens = 3 + (pixels.shape[1] // 2) * (pixels.shape[2] // 2)
    edits = fix_registers(model.config, means, tokens)
    fixed, seen = model.residual(pixels, edits=edits, tap=lambda acts: acts.resid_pre)
    folded = fold_registers(model, means)
    return fixed, folded.residual(pixels)[0], seen, means, folded


@pytest.mark.parametrize("config", [VIT, ROTARY], ids=["learned", "rotary"])
def test_a_folded_model_is_the_one_whose_registers_are_fixed(config):
    model, pixels = decoder(config), images(3, (6, 4))
    fixed, own, seen, means, folded = both(model, pixels)
    # CLS and the patches.
    expected = np.delete(np.asarray(fixed), [1, 2], axis=1)
    np.testing.assert_allclose(own, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    assert folded.config.registers == 0 and folded.config.block.attention.extra_keys == 2
    assert "prefix" not in parameters(folded)
    # At every block's input each image has the mean.
    assert means.shape == (2, 2, 16)
    for b in range(3):
        np.testing.assert_array_equal(seen[:, b, 1:3], means)
    run = in_numpy.jit(lambda m, x: m.residual(x, tap=lambda acts: acts.resid_pre)[1])
    plain = run(model, pixels)
    np.testing.assert_allclose(means, np.asarray(plain)[:, :, 1:3].mean(1), rtol=0, atol=1e-5)
    assert np.abs(np.asarray(plain)[1, :, 1:3] - means[1]).max() > 1e-3  # they do differ


def test_nothing_massive_is_left_where_registers_carried_it():
    weights = parameters(decoder(VIT, spread=0.05))
    prefix = np.array(weights["prefix"])
    prefix[1, 5] = 3000.0
    model = from_parameters(VIT, weights | {"prefix": prefix})
    folded = both(model, images())[4]
    count = in_numpy.jit(lambda m: magnitudes(m, images()).strict)
    assert (count(model) > 0).all() and not count(folded).any()


def test_what_has_no_registers_is_refused():
    for config in (LLAMA, varied(VIT, registers=0)):
        with pytest.raises(ConfigError, match="the model has no registers; expected: an encoder"):
            register_means(decoder(config), images())
    means = np.zeros((2, 2, 16), np.float32)
    with pytest.raises(ConfigError, match="attention is 'kv_bias'; expected: 'standard'"):
        fold_registers(decoder(varied(VIT, variant="kv_bias")), means)
