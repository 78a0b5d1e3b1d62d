"""What is watched, against NumPy on the activations themselves."""


import in_numpy
import jax
import numpy as np
import pytest
from tiny_models import LLAMA, decoder, ids, varied

from jax_massact.measure.definition import Definition, Threshold
from jax_massact.train.config import WatchConfig
from jax_massact.train.watch import emergence, watch

B, T, QUERIES = 3, 20, 9
DEFINITION = Definition(
    strict=Threshold(magnitude=2.0, ratio=6.0), relaxed=Threshold(magnitude=1.5, ratio=4.0)
)
CONFIG = WatchConfig(sink_epsilon=0.25, sink_tokens=QUERIES, definition=DEFINITION)


def attention(acts, front, window, reach):
    """Weights of the first queries over [keys, extra key], float64, [B, N, Q, T + 1]."""
    q, k = np.asarray(acts.q, np.float64), np.asarray(acts.k, np.float64)
    S, N, H, K = q.shape[1], q.shape[2], q.shape[3], k.shape[2]
    k = np.repeat(k, N // K, axis=2)
    logits = np.einsum("btnh,bsnh->bnts", q, k) / H**0.5
    t, s = np.arange(S)[:, None], np.arange(S)
    seen = (s <= t) & (t - s < (window or S))
    extra = np.full((*logits.shape[:3], 1), -np.inf)
    if acts.extra is not None:
        extra[:] = 0 if acts.extra.logit is None else acts.extra.logit[0][None, :, None, None]
        if acts.extra.key is not None:
            key = np.repeat(np.asarray(acts.extra.key[0], np.float64), N // K, axis=0)
            extra += np.einsum("btnh,nh->bnt", q, key)[..., None] / H**0.5
        extra[:, :, reach:] = -np.inf if reach is not None else extra[:, :, reach:]
    logits = np.concatenate([np.where(seen, logits, -np.inf), extra], axis=-1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return weights[:, :, front : front + QUERIES]


CASES = {
    "standard": {}, "sink": {}, "kv_bias": {}, "sink_logit": {},
    "window": {"variant": "kv_bias", "window": 5, "bias_position": 0,
               "first_position": 2},
}


@pytest.mark.parametrize("case", CASES)
def test_against_numpy(case):
    config = varied(LLAMA, **{"variant": case} | CASES[case])
    model, tokens = decoder(config, spread=0.5), ids(config, B, T)
    # q and k are far enough from 0 for attention to be uneven.
    found = in_numpy.jit(lambda m, t: watch(m, t, CONFIG))(model, tokens)
    _, stacked = in_numpy.jit(lambda m, t: m(t, tap=lambda acts: acts))(model, tokens)
    front = int(case == "sink")
    some = set()
    for layer in range(config.depth):
        acts = jax.tree.map(lambda x, layer=layer: np.asarray(x[layer]), stacked)
        size = np.abs(acts.resid_post)
        top, median = size.max((1, 2)), np.median(size.reshape(B, -1), axis=1)
        centred = acts.resid_post - acts.resid_post.mean((1, 2), keepdims=True)
        over = lambda t: ((size > t.magnitude)  # noqa: B023
                          & (size >= t.ratio * median[:, None, None])).sum((1, 2)).mean()  # noqa: B023
        reach = 3 if case == "window" else None
        weights = attention(acts, front, config.block.attention.window, reach)
        rate = lambda key: (weights[..., key].mean(-1) > CONFIG.sink_epsilon).mean()  # noqa: B023
        norm = np.sqrt(np.square(acts.v).sum((2, 3)))
        expected = {
            "top1": top.mean(),
            "largest": top.max(),
            "ratio": (top / median).mean(),
            "kurtosis": ((centred**4).mean((1, 2)) / (centred**2).mean((1, 2)) ** 2).mean(),
            "strict": over(DEFINITION.strict),
            "relaxed": over(DEFINITION.relaxed),
            "sink_rate": rate(front),
            "sink_token_rate": rate(0) if front else 0.0,
            "extra_rate": rate(-1),
            "value_drain": (norm[:, 0] / norm[:, 1:].mean(1)).mean(),
        }
        assert expected.keys() == set(found._fields)
        for name, value in expected.items():
            np.testing.assert_allclose(
                getattr(found, name)[layer], value, rtol=2e-5, atol=1e-6, err_msg=name
            )
        some |= {name for name, value in expected.items() if value > 0}
    wanted = {"strict", "relaxed", "sink_rate"}
    wanted |= {"sink_token_rate"} if front else set()
    wanted |= {"extra_rate"} if acts.extra is not None else set()
    assert wanted <= some


def test_what_is_not_reported_is_not_computed():
    """Places, maps and the other quantiles cost nothing here."""
    model, tokens = decoder(LLAMA), ids(LLAMA, B, T)
    run = jax.jit(lambda m, t: watch(m, t, CONFIG)).lower(model, tokens).compile()
    shapes = run.as_text()
    assert f"f32[{LLAMA.depth},{B},64" not in shapes and f"s32[{LLAMA.depth},{B},64" not in shapes


def test_emergence_is_the_first_step_over_a_threshold():
    row = lambda step, **changes: {
        "step": step, "top1": [1.0, 1.0], "ratio": [3.0, 3.0], "kurtosis": [3.0, 3.0],
        "strict": [0.0, 0.0], "relaxed": [0.0, 0.0], "sink_rate": [0.0, 0.0],
        "value_drain": [1.0, 1.0],
    } | changes
    rows = [
        row(0),
        row(10, top1=[1.0, 100.0], sink_rate=[0.05, 0.1], kurtosis=[None, 99.9]),
        row(20, top1=[101.0, 1.0], ratio=[100.0, 99.0], value_drain=[0.4, 1.0]),
        row(30, relaxed=[0.0, 0.5], kurtosis=[3.0, 100.0], top1=[500.0, 500.0]),
    ]
    assert emergence(rows, Definition()) == {
        "top1": 20, "ratio": 20, "kurtosis": 30, "strict": None, "relaxed": 30, "sink_rate": 10,
        "value_drain": 20,
    }
