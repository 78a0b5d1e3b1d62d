"""The definition of massive, written out a second time: loops over float64 arrays, nothing else."""

import numpy as np


def over(value, median, threshold):
    return abs(value) > threshold.magnitude and abs(value) >= threshold.ratio * median


def is_common(column, stream, definition):
    """Whether a dimension is over the relaxed threshold at most tokens."""
    hits = [over(x, stream["median"], definition.relaxed) for x in column]
    return sum(hits) > definition.outlier_share * len(hits)


def of_stream(x, definition):
    """Per-sequence numbers of one layer; x is [T, D]."""
    T, D = x.shape
    size = np.abs(x)
    median = np.median(size)
    over_outlier = [[t for t in range(T) if over(x[t, d], median, definition.outlier)]
                    for d in range(D)]
    common = [is_common(x[:, d], {"median": median}, definition) for d in range(D)]
    entries = [(t, d) for t in range(T) for d in range(D)]
    return {
        "median": median,
        "strict": sum(over(x[e], median, definition.strict) for e in entries),
        "relaxed": sum(over(x[e], median, definition.relaxed) for e in entries),
        "outlier_share": [len(tokens) / T for tokens in over_outlier],
        "outlier_size": [size[tokens, d].mean() if tokens else 0.0
                         for d, tokens in enumerate(over_outlier)],
        "common": common,
        "strict_hits": [e for e in entries if over(x[e], median, definition.strict)
                        and not common[e[1]]],
        "hits": [e for e in entries if over(x[e], median, definition.relaxed)
                 and not common[e[1]]],
    }


def places(pre, post, definition, most=64):
    """The largest scalars of a layer, by the larger of both streams; pre and post are [T, D]."""
    sizes = np.full(post.shape, -1.0)
    for stream in (pre, post):
        for d in range(post.shape[1]):
            # The stream before the block is judged by the median after it, too.
            if not is_common(stream[:, d], {"median": np.median(np.abs(post))}, definition):
                sizes[:, d] = np.maximum(sizes[:, d], np.abs(stream[:, d]))
    order = np.argsort(-sizes, axis=None, kind="stable")[:most]
    return [tuple(map(int, np.unravel_index(i, sizes.shape))) for i in order]


def find(acts, definition):
    """{dim: record} of every dimension with a relaxed hit; acts are arrays [L, B, T, D]."""
    pre, attn, mlp, post = (
        np.float64(getattr(acts, n)) for n in ("resid_pre", "attn_out", "mlp_out", "resid_post")
    )
    L, B, _, D = post.shape
    seen = [[of_stream(post[l, b], definition) for b in range(B)] for l in range(L)]
    largest = [[places(pre[l, b], post[l, b], definition) for b in range(B)] for l in range(L)]
    records = {}
    for d in range(D):
        hit = [0] * L
        value = [[] for _ in range(L)]
        ratio = [[] for _ in range(L)]
        moved = [[] for _ in range(L)]
        strict = [0] * L
        anywhere = set()
        for l in range(L):
            for b in range(B):
                here = seen[l][b]
                before = seen[max(l - 1, 0)][b]["median"]
                hits = [t for t, e in here["hits"] if e == d]
                strict[l] += any(e == d for _, e in here["strict_hits"])
                hit[l] += bool(hits)
                if hits:
                    anywhere.add(b)
                if held := [post[l, b, t, d] for t, e in largest[l][b] if e == d]:
                    value[l].append(max(held, key=abs))
                    ratio[l].append(max(map(abs, held)) / here["median"])
                common_before = l > 0 and seen[l - 1][b]["common"][d]
                entered = [t for t, x in enumerate(pre[l, b, :, d])
                           if not common_before and over(x, before, definition.relaxed)]
                if hits or entered:
                    rare = [column for column in (pre[l, b, :, d], post[l, b, :, d])
                            if not is_common(column, here, definition)]
                    t = max({*hits, *entered},
                            key=lambda t: max((abs(column[t]) for column in rare), default=0))
                    moved[l].append((pre[l, b, t, d], attn[l, b, t, d], mlp[l, b, t, d]))
        if anywhere:
            records[d] = decide(value, ratio, moved, strict, hit, len(anywhere), B, definition)
    return records


def decide(value, ratio, moved, strict, hit, anywhere, B, definition):
    L = len(value)
    steady = [l for l in range(L) if strict[l] > definition.min_share * B]
    is_strict = len(steady) >= min(definition.min_layers, L)
    counted = steady if is_strict else [l for l in range(L) if hit[l]]
    peak = max(counted, key=lambda l: abs(sum(value[l])))
    mean = np.mean(value[peak])
    parts = [
        (l, name, np.mean([m[i] for m in moved[l]]))
        for l in range(L) if moved[l] for i, name in ((1, "attn"), (2, "mlp"))
    ]
    along = lambda part: part[2] * np.sign(mean)
    written = [p for p in parts if p[0] <= peak]
    if moved[0]:
        written.insert(0, (-1, "embedding", np.mean([m[0] for m in moved[0]])))
    removed = min((p for p in parts if p[0] > peak), key=along, default=None)
    if counted[-1] == L - 1 or removed is None or -along(removed) < 0.25 * abs(mean):
        removed = None
    return {
        "strict": is_strict, "first_layer": counted[0], "last_layer": counted[-1],
        "peak_layer": peak, "value_mean": mean, "value_std": np.std(value[peak]),
        "value_count": len(value[peak]),
        "ratio": np.mean(ratio[peak]), "share_of_sequences": anywhere / B,
        "trajectory": [np.mean(v) if n else np.nan for v, n in zip(value, hit, strict=True)],
        "written_by": max(written, key=along), "removed_by": removed,
    }
