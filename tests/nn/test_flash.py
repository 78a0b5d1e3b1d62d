"""Flash attention with an extra key, by the exact merge: splash attention, interpreted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracle import FIELDS, dense, operands

from jax_massact import mesh
from jax_massact.errors import ConfigError
from jax_massact.nn import attention, kernels
from jax_massact.nn.attention import attend
from jax_massact.nn.extra import Extra


@pytest.fixture
def splash(monkeypatch):
    monkeypatch.setitem(attention.KERNELS, "splash", kernels.Splash(interpret=True))


def forward_and_back(x, cotangent, window, fields, reach, implementation):
    def run(x):
        extra = Extra(**{n: x[n] for n in fields}) if fields else None
        return attend(x["q"], x["k"], x["v"], window=window, extra=extra, reach=reach,
                      implementation=implementation)

    out, pull = jax.vjp(jax.jit(run), x)
    return out, pull(cotangent)[0]


@pytest.mark.parametrize(("extra", "window", "reach"), [
    ("none", None, None), ("none", 5, None), ("key", None, None), ("logit", 200, None),
    ("key_value", None, None), ("all", None, None), ("all", 5, 4),
])
def test_values_and_gradients(splash, extra, window, reach):
    fields = FIELDS[extra]
    x, cotangent = operands(2, 140, 4, 2, 64)  # padded to 256
    out, back = forward_and_back(x, cotangent, window, fields, reach, "splash")
    expected, grads = dense(
        x["q"], x["k"], x["v"], window, {n: x[n] for n in fields}, reach, cotangent
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
        put = lambda a, kind: mesh.constrain(a, kind)
        kinds = dict.fromkeys("qkv", "act_btnh") | {"key": "bias_nh", "value": "bias_nh",
                                                    "logit": "bias_n"}
        split = {n: put(a, kinds[n]) for n, a in x.items()}
        together = forward_and_back(split, put(cotangent, "act_btnh"), None, fields, None, "splash")
    for a, b in zip(jax.tree.leaves(alone), jax.tree.leaves(together), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(a).max())


def test_what_cannot_run_says_why(monkeypatch):
    q = jnp.zeros((1, 4, 2, 64))
    for name in ("cudnn", "splash"):
        with pytest.raises(ConfigError, match=f"implementation '{name}' cannot .*on this cpu"):
            attend(q, q, q, implementation=name)
    assert attention.choose_kernel(None, jax.ShapeDtypeStruct(q.shape, q.dtype), None) is None
    narrow = jnp.zeros((1, 4, 2, 48))
    monkeypatch.setitem(attention.KERNELS, "splash", kernels.Splash(interpret=True))
    with pytest.raises(ConfigError, match="head_dim is 48; allowed: a multiple of 64"):
        attend(narrow, narrow, narrow, implementation="splash")


def test_the_private_functions_are_as_expected():
    assert kernels._splash_calls()[1] is None
    # Without cuDNN on this machine only its version is missing.
    assert kernels._cudnn_calls()[1] in (None, "cuDNN is not detected.")


def test_a_changed_library_is_noticed():
    with pytest.raises(kernels._Changed, match="has no json.nothing"):
        kernels._private("json", "nothing", set(), set())
    with pytest.raises(kernels._Changed, match="takes other parameters: fp, s"):
        kernels._private("json", "load", {"s"}, {"cls", "object_hook", "parse_float", "parse_int",
                                                 "parse_constant", "object_pairs_hook", "kw"})
