"""Norms, rotary positions and the MLP against NumPy in float64."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import ACTIVATIONS, slope
from oracle import norm as plain_norm
from tiny_models import LLAMA, varied

from jax_massact.errors import ConfigError
from jax_massact.nn import mlp as layers
from jax_massact.nn.block_config import AttentionConfig, NormConfig, RopeConfig
from jax_massact.nn.fused.norm import norm
from jax_massact.nn.mlp import MLP
from jax_massact.nn.norms import Norm
from jax_massact.nn.positions import POSITIONS, llama3_factors, rotary_angles

RNG = np.random.default_rng(0)


def filled(module, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: jnp.float32(rng.standard_normal(a.shape)), module)


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_rms_norm(eps):
    module = filled(Norm(NormConfig(eps=eps), 16))
    x = RNG.standard_normal((2, 3, 16)) + 2
    expected = x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * np.float64(module.scale[...])
    np.testing.assert_allclose(module(jnp.float32(x)), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_layer_norm(bias):
    module = filled(Norm(NormConfig(kind="layer", bias=bias, eps=0.1), 16))
    x = 3 * RNG.standard_normal((2, 3, 16)) + 5
    variance = x.var(-1, keepdims=True)
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 0.1)
    expected = expected * np.float64(module.scale[...])
    expected = expected + (np.float64(module.bias[...]) if bias else 0)
    np.testing.assert_allclose(module(jnp.float32(x)), expected, rtol=4e-6, atol=4e-6)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_of_bfloat16_are_computed_in_float32(kind):
    module = filled(Norm(NormConfig(kind=kind), 16))
    # The mean of 4096 squares of 16 bits: in bfloat16 the sum would stop growing at 256.
    wide = Norm(NormConfig(kind=kind), 4096)
    x = jnp.asarray(RNG.standard_normal((1, 4096)), jnp.bfloat16)
    y = wide(x)
    assert y.dtype == module(x[:, :16]).dtype == jnp.bfloat16
    assert abs(float(jnp.square(y.astype(jnp.float32)).mean()) - 1) < 0.01


@pytest.mark.parametrize("config", [
    NormConfig(eps=0.3), NormConfig(kind="layer", eps=0.3), NormConfig(eps=0.3, offset=1.0),
    NormConfig(kind="layer", eps=0.3, scale=False),
])
def test_the_gradients_of_norms(config):
    """With respect to every input and scale, by itself."""
    x, cotangent = 3 * RNG.standard_normal((2, 2, 3, 16)) + 5
    scale = RNG.standard_normal(16) if config.scale else None
    plain = lambda x, scale: plain_norm(x, 1 if scale is None else scale, 0, config)

    @jax.jit
    def pulled(x, scale, cotangent):
        return jax.vjp(lambda x, scale: norm(config, x, scale), x, scale)[1](cotangent)

    as_float32 = jax.tree.map(jnp.float32, (x, scale, cotangent))
    d_x, d_scale = pulled(*as_float32)
    for i, direction in enumerate(np.eye(16)):
        along = slope(lambda x: plain(x, scale), x, direction)
        np.testing.assert_allclose(d_x[..., i], (along * cotangent).sum(-1), rtol=0, atol=3e-5)
        if scale is None:
            continue
        along = slope(lambda scale: plain(x, scale), scale, direction)
        np.testing.assert_allclose(d_scale[i], (along * cotangent).sum(), rtol=0, atol=1e-4)


class TestRotate:
    H = 8

    def rotation(self, positions, **rope):
        config = AttentionConfig(
            heads=1, kv_heads=1, head_dim=self.H, rope=RopeConfig(base=100.0, **rope)
        )
        return POSITIONS["rope"](config, jnp.asarray(positions), 1 + max(positions))

    def turned(self, x, positions, **rope):
        return self.rotation(positions, **rope).turn(x)

    def test_every_pair_turns_by_its_angle(self):
        x = RNG.standard_normal((1, 4, 2, self.H))
        factors = (1.0, 2.0, 4.0, 0.5)
        out = self.turned(jnp.float32(x), [0, 1, 5, 11], factors=factors)
        for t, position in enumerate([0, 1, 5, 11]):
            for i in range(self.H // 2):
                pair = (i, i + self.H // 2)
                angle = position * 100.0 ** (-2 * i / self.H) / factors[i]
                z = (x[0, t, :, pair[0]] + 1j * x[0, t, :, pair[1]]) * np.exp(1j * angle)
                np.testing.assert_allclose(out[0, t, :, pair[0]], z.real, atol=5e-6)
                np.testing.assert_allclose(out[0, t, :, pair[1]], z.imag, atol=5e-6)

    def test_norm_is_kept_and_position_0_untouched(self):
        x = jnp.float32(RNG.standard_normal((2, 5, 3, self.H)))
        out = self.turned(x, range(5))
        norm = lambda x: jnp.linalg.norm(x, axis=-1)
        np.testing.assert_allclose(norm(out), norm(x), rtol=1e-6)
        np.testing.assert_array_equal(out[:, 0], x[:, 0])

    def test_turning_back_undoes_it_whatever_the_scale(self):
        x = jnp.float32(RNG.standard_normal((2, 5, 3, self.H)))
        plain, scaled = self.rotation(range(3, 8)), self.rotation(range(3, 8), scale=1.5)
        np.testing.assert_allclose(scaled.turn(x), 1.5 * plain.turn(x), rtol=1e-6, atol=1e-6)
        for rotation in (plain, scaled):
            np.testing.assert_allclose(rotation.turn_back(rotation.turn(x)), x, atol=3e-6)

    @pytest.mark.parametrize("shift", [1, 30])
    def test_products_depend_on_the_distance_alone(self, shift):
        q, k = jnp.float32(RNG.standard_normal((2, 1, 1, 2, self.H)))
        product = lambda m, n: (
            self.turned(q, [m]) * self.turned(k, [n])
        ).sum(-1)
        base = product(9, 4)
        np.testing.assert_allclose(product(9 + shift, 4 + shift), base, atol=2e-5)
        assert np.abs(product(9 + shift, 4) - base).max() > 0.01


def test_angles_stay_exact_far_out():
    position = 100_000
    angles = rotary_angles(RopeConfig(base=5e5), 4, jnp.asarray([position]))
    np.testing.assert_allclose(
        angles[0], [position, position / math.sqrt(5e5)], rtol=2e-7
    )


def plain_llama3(base, head_dim, factor, low, high, context):
    """The published rule, one frequency at a time (Llama 3.1, `rope_type: llama3`)."""
    divisors = []
    for i in range(head_dim // 2):
        frequency = base ** (-2 * i / head_dim)
        wavelength = 2 * math.pi / frequency
        if wavelength < context / high:
            new = frequency
        elif wavelength > context / low:
            new = frequency / factor
        else:
            smooth = (context / wavelength - low) / (high - low)
            new = (1 - smooth) * frequency / factor + smooth * frequency
        divisors.append(frequency / new)
    return divisors


@pytest.mark.parametrize("settings", [
    (5e5, 128, 8.0, 1.0, 4.0, 8192), (5e5, 64, 32.0, 1.0, 4.0, 8192), (1e4, 16, 4.0, 0.5, 2.0, 64),
])
def test_llama3_factors(settings):
    base, head_dim, factor, low, high, context = settings
    found = llama3_factors(
        RopeConfig(base=base), head_dim, factor=factor, low=low, high=high, context=context
    )
    np.testing.assert_allclose(found, plain_llama3(*settings), rtol=1e-12)
    assert found[0] == 1.0 and 1.0 < found[-1] <= factor
    RopeConfig(base=base, factors=found)


@pytest.mark.parametrize(("wrong", "message"), [
    ({"factor": 0.5}, "rope factor is 0.5; expected: a number of at least 1"),
    ({"high": 1.0}, "rope high frequency factor is 1.0; expected: a number above 1"),
    ({"low": 0.0}, "rope low frequency factor is 0.0; expected: a number above 0"),
    ({"context": 0}, "rope original context is 0; expected: a whole number of at least 1"),
])
def test_llama3_factors_out_of_range(wrong, message):
    settings = {"factor": 8.0, "low": 1.0, "high": 4.0, "context": 8192} | wrong
    with pytest.raises(ConfigError) as error:
        llama3_factors(RopeConfig(), 64, **settings)
    assert message in str(error.value)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_mlp(activation, gated, bias):
    config = varied(LLAMA, activation=activation, gated=gated, mlp_bias=bias)
    mlp = filled(MLP(config.block.mlp, config.width, 0.02, jax.random.key(0)))
    x = RNG.standard_normal((2, 3, config.width)) / 3
    get = lambda p: 0.0 if p is None else np.float64(p[...])
    act = ACTIVATIONS[activation]
    up = x @ get(mlp.up) + get(mlp.up_bias)
    hidden = act(x @ get(mlp.gate) + get(mlp.gate_bias)) * up if gated else act(up)
    expected = hidden @ get(mlp.down) + get(mlp.down_bias)
    assert (mlp.gate is not None) == gated and (mlp.down_bias is not None) == bias
    found = mlp.output(mlp.hidden(jnp.float32(x), activation)[0])
    np.testing.assert_allclose(found, expected, rtol=0, atol=3e-5)


@pytest.mark.parametrize(("activation", "limit"), [
    ("silu", 1e-6), ("gelu", 4e-7),
    ("gelu_tanh", 1e-5),  # 1 + tanh(x) loses digits below -5
])
def test_the_gradients_of_activations(activation, limit):
    x = np.linspace(-9, 9, 4001)
    expected = slope(ACTIVATIONS[activation], x, 1.0)
    for dtype, atol in ((jnp.float32, limit), (jnp.bfloat16, 0.02)):
        _, pull = jax.vjp(layers.ACTIVATIONS[activation], jnp.asarray(x, dtype))
        found = np.float64(pull(jnp.ones(x.shape, dtype))[0])
        np.testing.assert_allclose(found, expected, rtol=0, atol=atol)
