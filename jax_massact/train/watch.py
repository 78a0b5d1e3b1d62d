"""What happens to a model's activations while it trains: the probe's statistics, layer by layer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jax_massact.measure.definition import Definition
from jax_massact.measure.magnitudes import magnitudes_tap
from jax_massact.nn.acts import Acts
from jax_massact.nn.attention import per_head, weights
from jax_massact.nn.extra import Extra
from jax_massact.nn.transformer import Transformer
from jax_massact.nn.variants import rows_in_front
from jax_massact.train.config import WatchConfig


class Watch(NamedTuple):
    """One measurement; every field [L], layer l being the residual stream after block l.

    Attributes:
      top1: the largest magnitude of a sequence, mean over sequences.
      largest: the largest of all sequences.
      ratio: `top1` over the median, mean over sequences.
      kurtosis: of the residual stream, mean over sequences; 3 for a Gaussian.
      strict, relaxed: activations over the definition's thresholds, mean number per sequence.
      sink_rate: share of the heads whose mean attention to the first token exceeds epsilon, over
        the first queries, mean over sequences (Gu et al. 2024, equation 7).
      sink_token_rate: the same of the learned sink token; 0 without one.
      extra_rate: the same of the extra key (k' of `kv_bias`, the logit of `softmax1`, ...).
      value_drain: norm of the first token's value (of the sink token's, where there is one) over
        the mean norm of the other tokens', all heads in a row (Guo et al. 2024).
    """

    top1: Float[Array, " L"]
    largest: Float[Array, " L"]
    ratio: Float[Array, " L"]
    kurtosis: Float[Array, " L"]
    strict: Float[Array, " L"]
    relaxed: Float[Array, " L"]
    sink_rate: Float[Array, " L"]
    sink_token_rate: Float[Array, " L"]
    extra_rate: Float[Array, " L"]
    value_drain: Float[Array, " L"]


def watch(model: Transformer, tokens: Int[Array, "B T"], config: WatchConfig) -> Watch:
    """Measures the model on `tokens`. Pure; call it under `jax.jit`; works under any mesh."""

    def tap(acts: Acts):
        stats = magnitudes_tap(acts, top_k=1, definition=config.definition)
        return stats, received(acts, config.sink_tokens), value_drain(acts)

    # Only what is read below is computed: no place, map or quantile but the median.
    stats, attention, drain = model.residual(tokens, tap=tap)[1]
    top = jnp.abs(stats.top.value[..., 0])
    rate = (attention > config.sink_epsilon).mean((1, 2), dtype=jnp.float32)
    has_front = rows_in_front(model.config) > 0
    return Watch(
        top1=top.mean(1),
        largest=top.max(1),
        ratio=(top / stats.median).mean(1),
        kurtosis=stats.kurtosis.mean(1),
        strict=stats.strict.mean(1, dtype=jnp.float32),
        relaxed=stats.relaxed.mean(1, dtype=jnp.float32),
        sink_rate=rate[:, 0],
        sink_token_rate=rate[:, 1] * has_front,
        extra_rate=rate[:, 2],
        value_drain=drain.mean(1),
    )


def received(acts: Acts, queries: int) -> Float[Array, "B N 3"]:
    """Mean attention of the first queries to the first token, to token 0 of `acts`, and to the
    extra keys. Token 0 is the first token or, where the variant has one, the sink token."""
    prefix = acts.mask.prefix
    # Causal: later keys get nothing from these queries.
    stop = min(prefix + queries, acts.q.shape[1])

    def local(q, k, slopes, *fields):
        extra = None if acts.extra is None else Extra(*fields)
        found = weights(
            q, k, acts.mask, extra=extra, queries=jnp.arange(stop), slopes=slopes
        )
        keys = found.keys
        none = jnp.zeros(keys.shape[:-1])
        rest = none if found.extra is None else found.extra.sum(-1)
        of_interest = jnp.stack([keys[..., prefix], keys[..., 0], rest], axis=-1)
        B, K, G, Q, _ = keys.shape
        return of_interest.transpose(0, 3, 1, 2, 4).reshape(B, Q, K * G, 3)

    shares = per_head(local, (acts.q[:, :stop], acts.k[:, :stop]), acts.mask, acts.extra)
    return shares[:, prefix:].mean(1)


def value_drain(acts: Acts) -> Float[Array, " B"]:
    """|v| of token 0 over the mean |v| of the others."""
    norm = jnp.sqrt(jnp.square(acts.v.astype(jnp.float32)).sum((2, 3)))
    return norm[:, 0] / norm[:, 1:].mean(1)


# What counts as having emerged in a layer, beside what `Definition` says.
SINK_RATE, KURTOSIS, VALUE_DRAIN = 0.1, 100.0, 0.5


def emergence(rows: Sequence[dict[str, Any]], definition: Definition) -> dict[str, int | None]:
    """The step at which each quantity first crossed its threshold in any layer; None: it did not.

    Args:
      rows: measurements in order of their steps, each with `step` and the fields of `Watch`.
      definition: whose strict magnitude and relaxed ratio are the thresholds of top1 and ratio.
    """
    crossed: dict[str, Callable[[float], bool]] = {
        "top1": lambda x: x > definition.strict.magnitude,
        "ratio": lambda x: x >= definition.relaxed.ratio,
        "kurtosis": lambda x: x >= KURTOSIS,
        "strict": lambda x: x > 0,
        "relaxed": lambda x: x > 0,
        "sink_rate": lambda x: x >= SINK_RATE,
        "value_drain": lambda x: x <= VALUE_DRAIN,
    }

    def first(name: str) -> int | None:
        over = crossed[name]
        steps = (row["step"] for row in rows if any(x is not None and over(x) for x in row[name]))
        return next(steps, None)

    return {name: first(name) for name in crossed}
