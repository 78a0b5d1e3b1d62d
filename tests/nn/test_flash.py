"""Flash attention with an extra key, by the exact merge: splash attention, interpreted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import FIELDS, dense, mask_of, operands

from jax_massact import mesh
from jax_massact.errors import ConfigError
from jax_massact.nn import attention, sharded
from jax_massact.nn.acts import Mask
from jax_massact.nn.attention import attend
from jax_massact.nn.extra import Extra
from jax_massact.nn.fused import vendor
from jax_massact.nn.weigh import Clipped


@pytest.fixture
def splash(monkeypatch):
    monkeypatch.setitem(attention.KERNELS, "splash", vendor.Splash(interpret=True))


def forward_and_back(x, cotangent, window, fields, reach, implementation, causal=True):
    def run(x):
        extra = Extra(**{n: x[n] for n in fields}) if fields else None
        mask = mask_of(x, window, reach, causal)
        return attend(x["q"], x["k"], x["v"], mask, extra=extra, implementation=implementation)

    out, pull = jax.vjp(jax.jit(run), x)
    return out, pull(cotangent)[0]


@pytest.mark.parametrize(("extra", "window", "reach", "head_dim", "causal", "length"), [
    ("none", None, None, 64, True, 140), ("none", 5, None, 128, True, 140),
    ("key", None, None, 64, True, 140), ("logit", 200, None, 64, True, 140),
    ("key_value", None, None, 256, True, 140), ("all", None, None, 64, True, 140),
    ("all", 5, 4, 128, True, 140),
    ("all", None, None, 64, False, 140), ("none", None, None, 64, False, 128),
])
def test_values_and_gradients(splash, extra, window, reach, head_dim, causal, length):
    """Lengths that are no multiples of 128 are padded."""
    fields = FIELDS[extra]
    x, cotangent = operands(2, length, 4, 2, head_dim)
    out, back = forward_and_back(x, cotangent, window, fields, reach, "splash", causal)
    expected, grads = dense(
        x["q"], x["k"], x["v"], window, {n: x[n] for n in fields}, reach, cotangent, causal=causal
    )
    np.testing.assert_allclose(out, expected, rtol=0, atol=3e-5)
    for name in ("q", "k", "v", *fields):
        limit = 5e-6 * np.abs(grads[name]).max()
        np.testing.assert_allclose(back[name], grads[name], rtol=0, atol=limit, err_msg=name)


def test_split_over_sequences_and_heads(splash):
    fields = FIELDS["all"]
    x, cotangent = operands(4, 128, 4, 2, 64)
    alone = forward_and_back(x, cotangent, None, fields, None, "splash")
    with jax.set_mesh(mesh.make_mesh(2, 1, 2, devices=jax.devices()[:4])):
        put = lambda a, kind: sharded.constrain(a, kind)
        kinds = dict.fromkeys("qkv", "btnh") | {"key": "rnh", "value": "rnh", "logit": "rn"}
        split = {n: put(a, kinds[n]) for n, a in x.items()}
        together = forward_and_back(split, put(cotangent, "btnh"), None, fields, None, "splash")
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_what_cannot_run_says_why(monkeypatch):
    q = jnp.zeros((1, 4, 2, 64))
    for name in ("cudnn", "splash"):
        with pytest.raises(ConfigError, match=f"implementation '{name}' cannot .*on this cpu"):
            attend(q, q, q, Mask(scale=64**-0.5), implementation=name)
    shape = jax.ShapeDtypeStruct(q.shape, q.dtype)
    assert attention.choose_kernel(None, shape, Mask(scale=64**-0.5)) is None
    narrow = jnp.zeros((1, 4, 2, 48))
    monkeypatch.setitem(attention.KERNELS, "splash", vendor.Splash(interpret=True))
    with pytest.raises(ConfigError, match="head_dim is 48; expected: a multiple of 64"):
        attend(narrow, narrow, narrow, Mask(scale=48**-0.5), implementation="splash")


def test_the_private_functions_are_as_expected():
    assert vendor._splash_calls()[1] is None
    # Without cuDNN on this machine only its version is missing.
    assert vendor._cudnn_calls()[1] in (None, "cuDNN is not detected.")


def test_a_changed_library_is_noticed():
    with pytest.raises(vendor._Changed, match="has no json.nothing"):
        vendor._private("json", "nothing", set(), set())
    with pytest.raises(vendor._Changed, match="takes other parameters: fp, s"):
        vendor._private("json", "load", {"s"}, {"cls", "object_hook", "parse_float", "parse_int",
                                                 "parse_constant", "object_pairs_hook", "kw"})


@pytest.mark.parametrize("reach", [None, 40])
def test_several_extra_keys(splash, reach):
    """Flash and XLA agree, and both with one softmax over all keys written out."""
    x, cotangent = operands(1, 128, 4, 2, 64)
    rng = np.random.default_rng(5)
    draw = lambda *shape: jnp.asarray(rng.standard_normal(shape), jnp.float32)
    x |= {"key": draw(3, 2, 64), "logit": draw(3, 4), "value": draw(3, 2, 64)}
    fields = FIELDS["all"]
    flash = forward_and_back(x, cotangent, 60, fields, reach, "splash")
    plain = forward_and_back(x, cotangent, 60, fields, reach, "xla")
    for a, b in zip(jax.tree.leaves(flash), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=2e-5 * max(1, np.abs(b).max()))
    q, k, v = (np.float64(x[n]) for n in "qkv")
    for n, t in ((0, 3), (3, 41), (1, 100)):
        kv, first = n // 2, max(0, t - 59)
        scores = list(q[0, t, n] @ k[0, first : t + 1, kv].T / 8)
        values = list(v[0, first : t + 1, kv])
        for r in range(3):
            if reach is None or t < reach + r:
                own = q[0, t, n] @ np.float64(x["key"][r, kv]) / 8
                scores.append(own + float(x["logit"][r, n]))
                values.append(np.float64(x["value"][r, kv]))
        weights = np.exp(np.array(scores) - max(scores))
        expected = weights @ np.array(values) / weights.sum()
        np.testing.assert_allclose(plain[0][0, t, n], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("change", "message"), [
    ({"softcap": 30.0}, "its logits are capped at 30"), ({"scale": 0.5}, "its scale is 0.5"),
    ({"causal": False, "window": 3}, "its window reaches to both sides"),
    ({"weigh": Clipped(gamma=-0.1)}, "its weights are Clipped, not a softmax"),
])
def test_flash_kernels_say_what_they_cannot_compute(splash, change, message):
    q = jnp.zeros((1, 4, 2, 64))
    mask = dataclasses.replace(Mask(scale=64**-0.5), **change)
    with pytest.raises(ConfigError, match=message):
        attend(q, q, q, mask, implementation="splash")


def test_capped_logits_and_keys_ahead():
    x, _ = operands(1, 5, 2, 1, 8)
    mask = Mask(scale=0.3, causal=False, softcap=2.0)
    out = attend(x["q"], x["k"], x["v"], mask)
    q, k, v = (np.float64(x[n]) for n in "qkv")
    for n in range(2):
        scores = 2 * np.tanh(0.3 * q[0, :, n] @ k[0, :, 0].T / 2)
        weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
        np.testing.assert_allclose(out[0, :, n], weights @ v[0, :, 0], rtol=0, atol=1e-5)
