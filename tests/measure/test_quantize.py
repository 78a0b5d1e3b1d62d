"""Ranges, smoothing and rounded weights against NumPy."""

import in_numpy
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import CONFIGS, SWITCHES, decoder, ids, varied

from jax_massact.errors import ConfigError
from jax_massact.measure.quantize import (
    LINEAR,
    READERS,
    REPORTED,
    limits_tap,
    ranges_tap,
    round_weights,
    smooth,
)
from jax_massact.nn.acts import SITES
from jax_massact.nn.parameters import PARAMETERS
from jax_massact.nn.transformer import parameters

# Matrices of blocks that stay in float: they are small, or what they give decides much.
IN_FLOAT = {"blocks.mlp.router", "blocks.attn.variant.gate", "blocks.attn.variant.k",
            "blocks.attn.variant.v", "blocks.attn.variant.v_bias"}
ONE = np.float32(1)


def is_matrix(name: str) -> bool:
    letters = PARAMETERS[name].letters
    return len(letters) > 1 and not name.endswith(("_bias", "scales"))


def test_every_matrix_of_a_block_is_rounded_or_stays_in_float_on_purpose():
    matrices = {name for name in PARAMETERS if name.startswith("blocks.") and is_matrix(name)}
    assert matrices - LINEAR.keys() == IN_FLOAT - {"blocks.attn.variant.v_bias"}
    reads = {name for readers in READERS.values() for name in readers}
    stream_first = {name for name in matrices | {"blocks.mlp.shared_gate"}
                    if PARAMETERS[name].letters.lstrip("e").startswith("d")}
    assert reads == stream_first


def test_weights_have_a_scale_for_each_output_channel(bits=4):
    model = decoder(SWITCHES["qwen2_moe"])
    before, after = parameters(model), parameters(in_numpy.jit(round_weights, static=["bits"])(
        model, bits))
    axes = {"blocks.attn.q": (1,), "blocks.attn.out": (1, 2), "blocks.mlp.experts.down": (2,),
            "blocks.mlp.shared.up": (1,)}
    levels = np.float32(2 ** (bits - 1) - 1)
    for name, inputs in axes.items():
        w = np.asarray(before[name])
        scale = np.abs(w).max(inputs, keepdims=True) * (ONE / levels)
        np.testing.assert_array_equal(after[name], np.rint(w * (ONE / scale)) * scale)
        assert len(np.unique(np.rint(np.asarray(after[name]) / scale))) <= 2 * levels + 1
    for name in before.keys() - LINEAR.keys():
        np.testing.assert_array_equal(before[name], after[name])


@pytest.mark.parametrize("config", [
    SWITCHES["falcon"], varied(CONFIGS["llama"], norm_offset=1.0, depth=2),
], ids=["one norm for both, with a bias", "offset"])
def test_a_smoothed_model_is_the_same_with_smaller_activations(config):
    model = decoder(config)
    tokens = ids(model.config, 2, 7)

    @in_numpy.jit
    def run(model):
        kept = jnp.zeros((2, 7), bool)
        logits, (_, dims) = model(tokens, tap=lambda acts: limits_tap(acts, kept))
        return logits, {site: x.max(1) for site, x in dims.items()}

    logits, largest = run(model)
    site = "attn_in" if model.config.block.shared_norm else "mlp_in"
    smoothed, after = run(smooth(model, largest, 0.7))
    np.testing.assert_allclose(smoothed, logits, atol=2e-4 * np.abs(logits).max())
    weights = [np.abs(parameters(model)[n]).max(tuple(
        a for a in range(1, parameters(model)[n].ndim) if a != axis))
        for norm, readers in READERS.items() if model.config.block.shared_norm or norm == "mlp_norm"
        for n, axis in readers.items() if n in parameters(model)]
    s = largest[site] ** 0.7 / np.max(weights, 0) ** 0.3
    np.testing.assert_allclose(after[site], largest[site] / s, rtol=1e-3)


def test_a_model_without_norms_in_front_cannot_be_smoothed():
    for name in ("olmo", "olmo2"):
        with pytest.raises(ConfigError, match="smooth needs norms"):
            smooth(decoder(SWITCHES[name]), {}, 0.5)


@pytest.fixture(scope="module")
def measured():
    """Every site of a model, and the ranges of the same pass; the first two tokens are massive."""
    model = decoder(CONFIGS["llama"], spread=0.5)
    tokens = ids(model.config, 2, 9)
    massive = jnp.asarray(np.arange(9) < [[1], [2]])

    @in_numpy.jit
    def run(model):
        def tap(acts):
            sites = {site: getattr(acts, site) for site in SITES if site != "weights"}
            return sites, ranges_tap(acts, massive), limits_tap(acts, massive, 0.9)[0], limits_tap(
                acts, massive)[0]

        return model.residual(tokens, tap=tap)[1]

    return jax.device_get(run(model)), np.asarray(massive)


def test_ranges_are_those_of_numpy(measured):
    (sites, ranges, *_), massive = measured
    for index, site in enumerate(REPORTED):
        for layer in range(3):
            for b in range(2):
                x = np.float64(sites[site][layer, b].reshape(9, -1))
                others, token = x[~massive[b]], np.abs(x).max(1)

                def rounded(limit, x):
                    step = np.float64(limit) / 127
                    return np.clip(np.rint(x / step), -127, 127) * step

                def sqnr(limit, x):
                    return 10 * np.log10((x**2).sum() / ((x - rounded(limit, x)) ** 2).sum())

                at = lambda name, i=(layer, index, b): getattr(ranges, name)[i]
                without = np.abs(others).max()
                expected = {
                    "top": token.max(), "position": token.argmax(), "top_without": without,
                    "token_ratio": token.max() / np.median(token),
                    "sqnr": sqnr(token.max(), others), "sqnr_without": sqnr(without, others),
                    "columns": (np.abs(x) >= 6).any(0).sum(),
                    "columns_without": (np.abs(others) >= 6).any(0).sum(),
                }
                for name, value in expected.items():
                    np.testing.assert_allclose(at(name), value, rtol=2e-3, err_msg=f"{site} {name}")
                zeros = (rounded(token.max(), others) == 0).mean()
                np.testing.assert_allclose(at("zero_share"), zeros, atol=1.5 / others.size)


def test_static_ranges_leave_out_what_stays_in_float(measured):
    (sites, _, quantile, largest), kept = measured
    for index, site in enumerate(SITES):
        if site == "weights":
            assert not largest[:, index].any()
            continue
        x = np.abs(sites[site]).reshape(3, 2, 9, -1)
        x[:, kept] = 0
        np.testing.assert_array_equal(largest[:, index], x.max((2, 3)))
        expected = np.quantile(x.reshape(3, 2, -1), 0.9, axis=-1)
        np.testing.assert_allclose(quantile[:, index], expected, rtol=1e-5)
