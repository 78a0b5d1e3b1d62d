"""What the package computes, written out a second time in plain NumPy, float64."""

import jax.numpy as jnp
import numpy as np

from jax_massact.nn.acts import Mask


def dense(q, k, v, window=None, extra=None, reach=None, cotangent=None):
    """The result and, for a cotangent, the derivatives of all operands; one head at a time."""
    q, k, v = (np.float64(x) for x in (q, k, v))
    B, T, N, H = q.shape
    K = k.shape[2]
    behind = np.arange(T)[:, None] - np.arange(T)[None, :]
    seen = (behind >= 0) & (behind < (T if window is None else window))
    out = np.zeros_like(q)
    grads = {n: np.zeros_like(x) for n, x in {"q": q, "k": k, "v": v}.items()}
    grads |= {"key": np.zeros((1, K, H)), "logit": np.zeros((1, N)), "value": np.zeros((1, K, H))}
    extra = {} if extra is None else {n: np.float64(x) for n, x in extra.items()}
    extra_seen = np.arange(T) < (T if reach is None else reach)
    for b in range(B):
        for n in range(N):
            kv = n // (N // K)
            queries, keys, values = q[b, :, n], k[b, :, kv], v[b, :, kv]
            scores = np.where(seen, queries @ keys.T / np.sqrt(H), -np.inf)
            if extra:
                key = extra.get("key", np.zeros((1, K, H)))[0, kv]
                score = queries @ key / np.sqrt(H) + extra.get("logit", np.zeros((1, N)))[0, n]
                score = np.where(extra_seen, score, -np.inf)
                scores = np.concatenate([scores, score[:, None]], axis=1)
                value = extra.get("value", np.zeros((1, K, H)))[0, kv]
                values = np.concatenate([values, value[None]])
            weights = np.exp(scores - scores.max(1, keepdims=True))
            weights /= weights.sum(1, keepdims=True)
            out[b, :, n] = weights @ values
            if cotangent is None:
                continue
            g = np.float64(cotangent)[b, :, n]
            d_weights = g @ values.T
            d_scores = weights * (d_weights - (weights * d_weights).sum(1, keepdims=True))
            d_values = weights.T @ g
            grads["q"][b, :, n] = d_scores[:, :T] @ keys / np.sqrt(H)
            grads["k"][b, :, kv] += d_scores[:, :T].T @ queries / np.sqrt(H)
            grads["v"][b, :, kv] += d_values[:T]
            if extra:
                grads["q"][b, :, n] += d_scores[:, T:] * key / np.sqrt(H)
                grads["key"][0, kv] += d_scores[:, T] @ queries / np.sqrt(H)
                grads["logit"][0, n] += d_scores[:, T].sum()
                grads["value"][0, kv] += d_values[T]
    return out, grads


def mask_of(x, window=None, reach=None):
    """The geometry of attention of these operands."""
    return Mask(scale=x["q"].shape[-1] ** -0.5, window=window, reach=reach)


def operands(B, T, N, K, H, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(2 * rng.standard_normal(shape), jnp.float32)
    return {
        "q": draw(B, T, N, H), "k": draw(B, T, K, H), "v": draw(B, T, K, H),
        "key": draw(1, K, H), "logit": draw(1, N), "value": draw(1, K, H),
    }, draw(B, T, N, H)


FIELDS = {
    "none": (), "key": ("key",), "logit": ("logit",), "key_value": ("key", "value"),
    "all": ("key", "logit", "value"),
}
