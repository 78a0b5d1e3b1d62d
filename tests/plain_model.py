"""A decoder in plain NumPy, float64, one sequence and one head at a time, with edits.

Only what it says: no batching, no blocks of queries, no scan.
"""

import numpy as np

from jax_massact.nn.transformer import parameters


def norm(x, scale, bias, config):
    if config.final_norm.kind == "layer":
        x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.final_norm.eps)
    return x * scale + bias


def turned(x, position, c):
    """One head's vector [H] at a position, after the rotary embedding."""
    half = c.head_dim // 2
    angle = position / c.rope.base ** (np.arange(half) / half)
    z = x[:half] + 1j * x[half:]  # pairs are halves
    z = z * np.exp(1j * angle) * c.rope.scale
    return np.concatenate([z.real, z.imag])


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def run(model, tokens, edits=()):
    """One sequence [T]; `edits` are (layer, position, dim, value).

    Returns a dictionary of lists over layers: pre, normed, q, k (before rotary), k_turned, v,
    p [N T S], post; and logits. S has one more key where there is a k' and v'.
    """
    config = model.config
    p = {n: np.float64(x) for n, x in parameters(model).items()}
    c = config.block.attention
    T, N, K = len(tokens), c.heads, c.kv_heads
    positions = config.first_position + np.arange(T)
    x = p["embed"][np.asarray(tokens)]
    if config.embed.positions == "learned":
        x = x + p["positions"][positions]
    names = ("pre", "normed", "q", "k", "k_turned", "v", "p", "scores", "post")
    seen = {name: [] for name in names}
    for l in range(config.depth):
        c = config.pattern[l % len(config.pattern)].attention
        b = {n.removeprefix("blocks."): v[l] for n, v in p.items() if n.startswith("blocks.")}
        h = norm(x, b["attn_norm.scale"], b.get("attn_norm.bias", 0), config)
        q, k, v = (
            np.einsum("td,dnh->tnh", h, b[f"attn.{n}"]) + b.get(f"attn.{n}_bias", 0) for n in "qkv"
        )
        kt = k
        if c.position == "rope":
            turn = lambda y, c=c: np.array(
                [[turned(y[t, n], positions[t], c) for n in range(y.shape[1])]
                 for t in range(T)]
            )
            q, kt = turn(q), turn(k)
        extra = c.variant == "kv_bias"
        weights = np.zeros((N, T, T + extra))
        scores = np.full((N, T, T + extra), -np.inf)
        out = np.zeros((T, config.width))
        for n in range(N):
            kv = n // (N // K)
            for t in range(T):
                first = 0 if c.window is None else t - c.window + 1
                for s in range(max(first, 0), t + 1):
                    scores[n, t, s] = q[t, n] @ kt[s, kv] * (c.scale or c.head_dim**-0.5)
                values = v[:, kv]
                if extra:
                    behind = positions[t] - (config.bias_position or 0)
                    if c.window is None or behind < c.window:
                        key = b["attn.variant.k"][0, kv]
                        scores[n, t, T] = q[t, n] @ key * (c.scale or c.head_dim**-0.5)
                    values = np.concatenate([values, b["attn.variant.v"][0, kv][None]])
                e = np.exp(scores[n, t] - scores[n, t].max())
                weights[n, t] = e / e.sum()
                out[t] += weights[n, t] @ values @ b["attn.out"][n]
        mid = x + out + b.get("attn.out_bias", 0)
        m = norm(mid, b["mlp_norm.scale"], b.get("mlp_norm.bias", 0), config)
        up = m @ b["mlp.up"] + b.get("mlp.up_bias", 0)
        if config.block.mlp.gated:
            gate = m @ b["mlp.gate"]
            up = up * gate / (1 + np.exp(-gate))
        else:
            up = gelu(up)
        post = mid + up @ b["mlp.down"] + b.get("mlp.down_bias", 0)
        for layer, t, d, value in edits:
            if layer == l:
                post[t, d] = value
        for name, value in zip(names, (x, h, q, k, kt, v, weights, scores, post), strict=True):
            seen[name].append(value)
        x = post
    final = norm(x, p["final_norm.scale"], p.get("final_norm.bias", 0), config)
    head = p["head"] if "head" in p else p["embed"].T
    return seen | {"logits": final @ head}


def losses(logits, tokens):
    """-log p of each next token, nats."""
    shifted = logits - logits.max(-1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return np.array([-log_p[t, tokens[t + 1]] for t in range(len(tokens) - 1)])
