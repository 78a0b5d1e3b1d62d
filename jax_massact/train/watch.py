"""What happens to a model's activations while it trains: the probe's statistics, layer by layer."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_massact.measure.definition import Definition
from jax_massact.measure.image_tokens import outlier_patches, query_patches
from jax_massact.measure.magnitudes import Magnitudes, magnitudes_tap
from jax_massact.nn import sharded
from jax_massact.nn.acts import Acts
from jax_massact.nn.attention import per_head, weights
from jax_massact.nn.extra import Extra
from jax_massact.nn.patches import ModelInput
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


class ImageWatch(NamedTuple):
    """One measurement of an encoder of images; the fields of `Watch`, and norms of patches.

    Attributes:
      sink_rate: share of the heads in which the patch that gets most has a mean attention of all
        patches above epsilon, mean over images.
      sink_token_rate: the same of all registers together, a sink token among them; 0 without any.
      extra_rate: as of `Watch`.
      value_drain: norm of the value of the patch with the largest norm over the mean norm of all
        patches', all heads in a row.
      patch_norm, patch_norm_max: median and largest L2 norm of the patches of an image, mean over
        images.
      outliers: number of outlier patches of an image, mean over images.
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
    patch_norm: Float[Array, " L"]
    patch_norm_max: Float[Array, " L"]
    outliers: Float[Array, " L"]


def watch(
    model: Transformer, inputs: ModelInput, config: WatchConfig
) -> Watch | ImageWatch:
    """Measures the model on `inputs`. Pure; call it under `jax.jit`; works under any mesh."""
    if (patches := model.config.embed.patches) is not None:
        return _watch_images(model, inputs, config, cls=patches.cls)

    def tap(acts: Acts):
        stats = magnitudes_tap(acts, top_k=1, definition=config.definition)
        return stats, received(acts, config.sink_tokens), value_drain(acts)

    # Only what is read below is computed: no place, map or quantile but the median.
    stats, attention, drain = model.residual(inputs, tap=tap)[1]
    rate = (attention > config.sink_epsilon).mean((1, 2), dtype=jnp.float32)
    has_front = rows_in_front(model.config) > 0
    return Watch(
        **_magnitudes(stats),
        sink_rate=rate[:, 0],
        sink_token_rate=rate[:, 1] * has_front,
        extra_rate=rate[:, 2],
        value_drain=drain.mean(1),
    )


def _magnitudes(stats: Magnitudes) -> dict[str, Float[Array, " L"]]:
    """What is watched of the residual stream, whatever its tokens are."""
    top = jnp.abs(stats.top.value[..., 0])
    return {
        "top1": top.mean(1), "largest": top.max(1), "ratio": (top / stats.median).mean(1),
        "kurtosis": stats.kurtosis.mean(1),
        "strict": stats.strict.mean(1, dtype=jnp.float32),
        "relaxed": stats.relaxed.mean(1, dtype=jnp.float32),
    }


class _Patches(NamedTuple):
    """Of each image: attention of its patches as `received`, value drain, norms, outliers."""

    attention: Float[Array, "L B N 3"]
    drain: Float[Array, "L B"]
    median: Float[Array, "L B"]
    largest: Float[Array, "L B"]
    outliers: Float[Array, "L B"]


def _watch_images(
    model: Transformer, images: ModelInput, config: WatchConfig, *, cls: bool
) -> ImageWatch:
    def tap(acts: Acts):
        return magnitudes_tap(acts, top_k=1, definition=config.definition), _patches(acts, cls)

    stats, found = model.residual(images, tap=tap)[1]
    rate = (found.attention > config.sink_epsilon).mean((1, 2), dtype=jnp.float32)
    return ImageWatch(
        **_magnitudes(stats), sink_rate=rate[:, 0], sink_token_rate=rate[:, 1],
        extra_rate=rate[:, 2], value_drain=found.drain.mean(1), patch_norm=found.median.mean(1),
        patch_norm_max=found.largest.mean(1), outliers=found.outliers.mean(1),
    )


def _patches(acts: Acts, cls: bool) -> _Patches:
    front = acts.mask.prefix
    index = jnp.asarray(query_patches(front, acts.resid_post.shape[1]))
    q, k, v = (sharded.by_sequence(x) for x in (acts.q, acts.k, acts.v))
    extra = jax.tree.map(sharded.whole, acts.extra)
    found = weights(q[:, index], k, acts.mask, extra=extra, queries=index)
    keys = found.keys.mean(-2)  # [B K G S]
    most, registers = keys[..., front:].max(-1), keys[..., int(cls) : front].sum(-1)
    rest = jnp.zeros_like(most) if found.extra is None else found.extra.sum(-1).mean(-1)
    attention = jnp.stack([most, registers, rest], -1)
    norm = jnp.linalg.norm(acts.resid_post[:, front:].astype(jnp.float32), axis=-1)
    norm = sharded.by_sequence(norm)
    size = jnp.sqrt(jnp.square(v[:, front:].astype(jnp.float32)).sum((2, 3)))
    largest = norm.max(-1)
    own = jnp.where(norm == largest[:, None], size, 0).max(-1)
    return _Patches(
        attention=attention.reshape(attention.shape[0], -1, 3), drain=own / size.mean(-1),
        median=jnp.median(norm, axis=-1), largest=largest,
        outliers=outlier_patches(norm).sum(-1, dtype=jnp.float32),
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
      rows: measurements in order of their steps, each with `step` and the fields of `Watch`, or
        of `ImageWatch`; at least one.
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
        "outliers": lambda x: x > 0,
    }

    def first(name: str) -> int | None:
        over = crossed[name]
        steps = (row["step"] for row in rows if any(x is not None and over(x) for x in row[name]))
        return next(steps, None)

    return {name: first(name) for name in crossed if name in rows[0]}
