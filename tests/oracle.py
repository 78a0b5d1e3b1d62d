"""What the package computes, written out a second time in plain NumPy, float64.

Only what it says: no batching, no blocks of queries, no scan.
"""

import math

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_massact.nn.acts import Mask
from jax_massact.nn.transformer import parameters

ACTIVATIONS = {
    "relu": lambda x: np.maximum(x, 0),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2))),
    "gelu_tanh": lambda x: 0.5 * x * (
        1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))
    ),
}


def norm(x, scale, bias, config):
    if config.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.eps)
    return x * (scale + config.offset) + bias


def named_norm(x, params, name, config):
    """The norm of this name; without parameters of that name, which must then be optional, x."""
    if f"{name}.scale" not in params and config.scale:
        return x
    if config.kind == "dyt":
        y = np.tanh(params[f"{name}.alpha"] * x) * (params[f"{name}.scale"] + config.offset)
        return y + params.get(f"{name}.bias", 0)
    return norm(x, params.get(f"{name}.scale", 1), params.get(f"{name}.bias", 0), config)


def before(x, b, name, block):
    """The input of a sublayer."""
    return x if block.norms == "out" else named_norm(x, b, name, block.norm)


def behind(y, b, name, block):
    """What a sublayer adds, from its result."""
    return block.residual_scale * (
        y if block.norms == "in" else named_norm(y, b, name, block.norm)
    )


def head_norm(x, b, name, c, config):
    """Queries or keys [T N H], normed by head or all heads at once."""
    if c.qk_norm == "none":
        return x
    if c.qk_norm == "all":
        flat = norm(x.reshape(len(x), -1), b[f"{name}.scales"].reshape(-1), 0, config)
        return flat.reshape(x.shape)
    return norm(x, b[f"{name}.scale" if c.qk_norm == "head" else f"{name}.scales"], 0, config)


def turned(x, positions, c):
    """Vectors [T N H] at their positions, after the rotary embedding; pairs are halves."""
    rope, dims = c.rope, c.rope.dims or c.head_dim
    half = dims // 2
    long = rope.original_context is not None and positions[-1] + 1 > rope.original_context
    factors = rope.long_factors if long else rope.factors
    frequency = 1 / rope.base ** (np.arange(half) / half) / (factors or 1)
    angle = np.multiply.outer(positions, frequency)[:, None]
    z = (x[..., :half] + 1j * x[..., half:dims]) * np.exp(1j * angle) * rope.scale
    return np.concatenate([z.real, z.imag, x[..., dims:]], axis=-1)


def gated(activation, gate, up):
    if activation != "clamped_swiglu":
        return ACTIVATIONS[activation](gate) * up
    gate, up = np.minimum(gate, 7), np.clip(up, -7, 7)
    return gate / (1 + np.exp(-1.702 * gate)) * (up + 1)


def mlp(c, b, m, prefix="mlp."):
    """An MLP; a mixture goes through all experts and weighs those that are not chosen with 0."""
    if c.moe.experts and prefix == "mlp.":
        return mixture(c, b, m)
    get = lambda name: b.get(f"{prefix}{name}", 0)
    up = m @ get("up") + get("up_bias")
    if f"{prefix}gate" in b:
        hidden = gated(c.activation, m @ get("gate") + get("gate_bias"), up)
    else:
        hidden = ACTIVATIONS[c.activation](up)
    return hidden @ get("down") + get("down_bias")


def mixture(c, b, m):
    moe = c.moe
    logits = m @ b["mlp.router"] + b.get("mlp.router_bias", 0)
    chosen = np.argsort(-logits, axis=-1)[:, : moe.active]
    inside = np.zeros(logits.shape, bool)
    np.put_along_axis(inside, chosen, True, axis=-1)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    if moe.score == "softmax":
        weights = weights / weights.sum(-1, keepdims=True)
    weights = np.where(inside, weights, 0)
    if moe.score == "top_softmax" or moe.renormalize:
        weights = weights / weights.sum(-1, keepdims=True)
    out = 0
    for e in range(moe.experts):
        start = "mlp.experts."
        own = {n: v[e] for n, v in b.items() if n.startswith(start)}
        out = out + weights[:, e : e + 1] * mlp(c, own, m, start)
    if moe.shared:
        shared = mlp(c, b, m, "mlp.shared.")
        out = out + shared / (1 + np.exp(-m @ b["mlp.shared_gate"]))[:, None]
    return out


def run(model, tokens, edits=()):
    """`decode` of a model's own parameters."""
    params = {n: np.float64(x) for n, x in parameters(model).items()}
    return decode(model.config, params, np.asarray(tokens), edits)


def decode(config, p, tokens, edits=()):
    """One sequence [T]; `edits` are (layer, position, dim, value).

    Returns a dictionary of lists over layers: pre, normed, q, k (before rotary), k_turned, v,
    p [N T S], scores, z, attn_out, post; and logits. S has one more key for each extra key, and
    T of all but the logits the prefix.
    """
    prefix = p.get("prefix", np.zeros((0, config.width)))
    x = p["embed"][tokens] * config.embed.scale
    if config.embed.positions == "learned":
        x = x + p["positions"][config.first_position + np.arange(len(tokens))]
    if config.embed.norm:
        x = named_norm(x, p, "embed_norm", config.final_norm)
    x = np.concatenate([prefix, x])
    positions = config.first_position + np.arange(len(x))
    seen = []
    for l in range(config.depth):
        block = config.pattern[l % len(config.pattern)]
        b = {n.removeprefix("blocks."): v[l] for n, v in p.items() if n.startswith("blocks.")}
        h = before(x, b, "attn_norm", block)
        found = attention(config, block, b, h, positions)
        found["attn_out"] = behind(found["attn_out"], b, "attn_out_norm", block)
        mid = x + found["attn_out"]
        source = x if block.parallel else mid
        m = h if block.shared_norm else before(source, b, "mlp_norm", block)
        post = mid + behind(mlp(block.mlp, b, m), b, "mlp_out_norm", block)
        for layer, t, d, value in edits:
            if layer == l:
                post[t, d] = value
        seen.append(found | {"pre": x, "normed": h, "post": post})
        x = post
    final = named_norm(x, p, "final_norm", config.final_norm)
    head = p["head"] if "head" in p else p["embed"].T
    logits = (final @ head + p.get("head_bias", 0)) * config.head.scale
    if cap := config.head.softcap:
        logits = cap * np.tanh(logits / cap)
    lists = {name: [layer[name] for layer in seen] for name in seen[0]}
    return lists | {"last": x[len(prefix):], "logits": logits[len(prefix):]}


def attention(config, block, b, h, positions):
    """Attention of one block, one head at a time, with every variant's parameters that `b` has."""
    c = block.attention
    T, N, K = len(h), c.heads, c.kv_heads
    q, k, v = (
        np.einsum("td,dnh->tnh", h, b[f"attn.{n}"]) + b.get(f"attn.{n}_bias", 0) for n in "qkv"
    )
    if c.clip:
        q, k, v = (np.clip(y, -c.clip, c.clip) for y in (q, k, v))
    q = head_norm(q, b, "attn.q_norm", c, block.norm)
    kt = k = head_norm(k, b, "attn.k_norm", c, block.norm)
    if c.position == "rope":
        q, kt = turned(q, positions, c), turned(k, positions, c)
    keys = b.get("attn.variant.k")
    logit = np.zeros(N) if c.variant == "softmax1" else b.get("attn.variant.logit")
    R = int(logit is not None) if keys is None else len(keys)
    extra_values = b.get("attn.variant.v", np.zeros((R, K, c.head_dim)))
    scale = c.scale or c.head_dim**-0.5
    behind = positions[:, None] - positions
    hidden = (behind < 0) | (behind >= (c.window or T))
    scores, weights = np.zeros((2, N, T, T + R))
    z = np.zeros((T, N, c.head_dim))
    for n in range(N):
        kv = n // (N // K)
        logits = q[:, n] @ kt[:, kv].T * scale
        if c.softcap:
            logits = c.softcap * np.tanh(logits / c.softcap)
        if c.position == "alibi":
            logits = logits - c.slopes[n] * np.abs(behind)
        if c.position == "alibi_rounded":
            at = rounded_alibi(c.slopes[n], positions)
            logits = logits - scale * (at[:, None] - at)
        scores[n, :, :T] = np.where(hidden, -np.inf, logits)
        for r in range(R):
            if keys is not None:
                scores[n, :, T + r] += q[:, n] @ keys[r, kv] * scale
            if logit is not None:
                scores[n, :, T + r] += logit[n]
            if c.window is not None and config.bias_position is not None:
                far = positions - (config.bias_position + r) >= c.window
                scores[n, far, T + r] = -np.inf
        e = np.exp(scores[n] - scores[n].max(-1, keepdims=True))
        weights[n] = e / e.sum(-1, keepdims=True)
        if c.variant == "clipped":
            gamma = -4 / config.context_length
            weights[n] = np.clip((1 - gamma) * weights[n] + gamma, 0, 1)
        if c.variant == "sigmoid":
            weights[n] = 1 / (1 + config.context_length * np.exp(-scores[n]))
        if c.variant == "softpick":
            rise = np.where(np.isinf(scores[n]), 0, np.expm1(scores[n]))
            weights[n] = np.maximum(rise, 0) / (np.abs(rise).sum(-1, keepdims=True) + 1e-6)
        z[:, n] = weights[n] @ np.concatenate([v[:, kv], extra_values[:, kv]])
        if "attn.variant.v_bias" in b:
            z[:, n] += b["attn.variant.v_bias"][kv]
        if "attn.variant.gate" in b:
            z[:, n] /= 1 + np.exp(-(h @ b["attn.variant.gate"][:, n]))[:, None]
    out = np.einsum("tnh,nhd->td", z, b["attn.out"]) + b.get("attn.out_bias", 0)
    return {"q": q, "k": k, "k_turned": kt, "v": v, "p": weights, "scores": scores, "z": z,
            "attn_out": out}


def rounded_alibi(slope, positions):
    """Slope times position, rounded to bfloat16 as both factors are."""
    bfloat16 = ml_dtypes.bfloat16
    return np.float64(bfloat16(slope) * positions.astype(bfloat16))


def losses(logits, tokens):
    """-log p of each next token, nats."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.array([-log_p[t, tokens[t + 1]] for t in range(len(tokens) - 1)])


def slope(function, x, direction, step=1e-5):
    """The derivative of `function` at x along a direction, by a central difference in float64."""
    ahead, back = function(x + step * direction), function(x - step * direction)
    return (ahead - back) / (2 * step)


def dense(
    q, k, v, window=None, extra=None, reach=None, cotangent=None, bias=None, causal=True
):
    """The result and, for a cotangent, the derivatives of all operands; one head at a time.

    `bias` [N T T] is added to the logits of real keys. Not causal: all tokens see each other.
    """
    q, k, v = (np.float64(x) for x in (q, k, v))
    B, T, N, H = q.shape
    K = k.shape[2]
    behind = np.arange(T)[:, None] - np.arange(T)[None, :]
    seen = (behind >= 0) & (behind < (T if window is None else window))
    seen = seen if causal else np.ones_like(seen)
    out = np.zeros_like(q)
    grads = {n: np.zeros_like(x) for n, x in {"q": q, "k": k, "v": v}.items()}
    grads |= {"key": np.zeros((1, K, H)), "logit": np.zeros((1, N)), "value": np.zeros((1, K, H))}
    extra = {} if extra is None else {n: np.float64(x) for n, x in extra.items()}
    extra_seen = np.arange(T) < (T if reach is None else reach)
    for b in range(B):
        for n in range(N):
            kv = n // (N // K)
            queries, keys, values = q[b, :, n], k[b, :, kv], v[b, :, kv]
            scores = queries @ keys.T / np.sqrt(H) + (0 if bias is None else bias[n])
            scores = np.where(seen, scores, -np.inf)
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


def mask_of(x, window=None, reach=None, causal=True):
    """The geometry of attention of these operands."""
    return Mask(scale=x["q"].shape[-1] ** -0.5, window=window, reach=reach, causal=causal)


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
