"""`massact bench attention`: every variant in every implementation, its speed and its error.

Errors are differences from a dense softmax of the same operands in NumPy float64: a fast wrong
kernel is worth nothing.
"""

import dataclasses
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact.bench.clock import seconds
from jax_massact.errors import ConfigError
from jax_massact.nn.acts import Mask
from jax_massact.nn.attention import attend
from jax_massact.nn.block_config import AttentionConfig, BlockConfig, ImplementationKind, MLPConfig
from jax_massact.nn.config import EmbedConfig, ModelConfig
from jax_massact.nn.extra import Extra
from jax_massact.nn.fused.vendor import KERNELS
from jax_massact.nn.variants import VARIANTS
from jax_massact.nn.weigh import Clipped, Sigmoid, Softmax, Softpick
from jax_massact.settings import check_in, check_int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class AttentionShape:
    """The shape of what is measured.

    Attributes:
      batch: sequences.
      length: tokens in each.
      num_heads: query heads.
      num_kv_heads: key/value heads.
      head_dim: size of each head.
      dtype: `float32`, `bfloat16` or `float16`.
      calls: calls in a window.
      windows: windows, whose median is reported.
      checked: sequences that are compared with float64.
    """

    batch: int = 32
    length: int = 1024
    num_heads: int = 12
    num_kv_heads: int = 12
    head_dim: int = 64
    dtype: str = "bfloat16"
    calls: int = 10
    windows: int = 5
    checked: int = 1

    def __post_init__(self) -> None:
        for field in ("batch", "length", "num_heads", "num_kv_heads", "head_dim", "calls",
                      "windows"):
            check_int(field, getattr(self, field), 1)
        check_int("checked", self.checked, 1, self.batch)
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads is {self.num_kv_heads}; expected: a divisor of num_heads, "
                f"{self.num_heads}"
            )
        check_in("dtype", self.dtype, ("float32", "bfloat16", "float16"))


def bench_attention(shape: AttentionShape) -> dict[str, Any]:
    """Times and checks all variants in all implementations that run here.

    Returns:
      `{"rows": [...], "unfit": {implementation: why it cannot run here}, "device": ...}`; a row has
      `variant`, `implementation`, `forward` and `both` (forward and backward) in seconds, and
      `error`: for `out` and each operand's gradient the norm of the difference over the norm.
    """
    query = jax.ShapeDtypeStruct(
        (shape.batch, shape.length, shape.num_heads, shape.head_dim), jnp.dtype(shape.dtype)
    )
    plain = Mask(scale=shape.head_dim**-0.5)
    unfit = {name: reason for name, k in KERNELS.items() if (reason := k.unfit(query, plain))}
    rows = []
    for variant, (mask, extra) in attending(shape).items():
        operands, cotangent = _operands(shape, extra)
        first = lambda x: np.asarray(x[: shape.checked].astype(jnp.float32), np.float64)
        rest = {f: np.asarray(operands[f], np.float64) for f in operands if f not in "qkv"}
        wanted = dense(
            {n: first(operands[n]) for n in "qkv"} | rest, first(cotangent), mask.weigh
        )
        for name in get_args(ImplementationKind):
            if name in KERNELS and KERNELS[name].unfit(query, mask):
                continue
            forward, both = _functions(mask, name)
            few = operands | {n: operands[n][: shape.checked] for n in "qkv"}
            out, grads = both(few, cotangent[: shape.checked])
            found = {"out": out} | grads
            time = lambda run, *args: seconds(
                lambda: run(*args), calls=shape.calls, windows=shape.windows
            )
            rows.append({
                "variant": variant,
                "implementation": name,
                "forward": time(forward, operands),
                "both": time(both, operands, cotangent),
                "error": {key: _distance(found[key], wanted[key]) for key in wanted},
            })
    return {"rows": rows, "unfit": unfit, "device": jax.devices()[0].device_kind,
            "shape": dataclasses.asdict(shape), "jax": jax.__version__}


def attending(shape: AttentionShape) -> dict[str, tuple[Mask, Extra | None]]:
    """The variants whose softmax is not that of another row: their masks, and extra keys."""
    attention = AttentionConfig(
        heads=shape.num_heads, kv_heads=shape.num_kv_heads, head_dim=shape.head_dim
    )
    config = ModelConfig(
        depth=1, width=1, context_length=shape.length, embed=EmbedConfig(vocab_size=1),
        block=BlockConfig(attention=attention, mlp=MLPConfig(hidden=1)),
    )
    found: dict[str, tuple[Mask, Extra | None]] = {}
    for name, row in VARIANTS.items():
        weigh = row.weigh(config)
        extra = row(config, jax.random.key(0)).extra()
        if name == "standard" or extra is not None or weigh != Softmax():
            found[name] = Mask(scale=shape.head_dim**-0.5, weigh=weigh), extra
    return found


def _functions(mask: Mask, implementation: Any) -> tuple[Any, Any]:
    def forward(operands):
        fields = {name: x for name, x in operands.items() if name not in "qkv"}
        extra = Extra(**fields) if fields else None
        return attend(operands["q"], operands["k"], operands["v"], mask, extra=extra,
                      implementation=implementation)

    def both(operands, cotangent):
        out, pull = jax.vjp(forward, operands)
        return out, pull(cotangent)[0]

    return jax.jit(forward), jax.jit(both)


def _operands(
    shape: AttentionShape, extra: Extra | None
) -> tuple[dict[str, jax.Array], jax.Array]:
    """q, k, v and the fields that an extra key has, all random; and a cotangent."""
    B, T, H, dtype = shape.batch, shape.length, shape.head_dim, jnp.dtype(shape.dtype)
    N, K = shape.num_heads, shape.num_kv_heads
    keys = iter(jax.random.split(jax.random.key(0), 7))
    normal = lambda *size: jax.random.normal(next(keys), size)
    operands = {
        "q": normal(B, T, N, H).astype(dtype), "k": normal(B, T, K, H).astype(dtype),
        "v": normal(B, T, K, H).astype(dtype),
    }
    cotangent = normal(B, T, N, H).astype(dtype)
    fields = {} if extra is None else {n: x for n, x in extra._asdict().items() if x is not None}
    # Parameters are float32; rounded here, so that all implementations are given the same numbers.
    return operands | {
        name: normal(*x.shape).astype(dtype).astype(jnp.float32) for name, x in fields.items()
    }, cotangent


def dense(
    operands: dict[str, np.ndarray], cotangent: np.ndarray, weigh: Softmax
) -> dict[str, np.ndarray]:
    """Causal attention and its gradients in float64, every weight written out.

    Args:
      operands: `q` [B T N H], `k` and `v` [B T K H] and, as there are, `key` and `value` [1 K H]
        and `logit` [1 N] of the extra key.
      cotangent: [B T N H].
      weigh: what is made of the logits.

    Returns:
      `out` [B T N H] and the gradient of every operand.
    """
    q, k, v = operands["q"], operands["k"], operands["v"]
    B, T, N, H = q.shape
    K = k.shape[2]
    extra = operands.keys() > {"q", "k", "v"}
    value = operands.get("value", np.zeros((1, K, H)))[0]
    grads = {name: np.zeros_like(x) for name, x in operands.items()}
    out = np.zeros_like(q)
    hidden = np.triu(np.ones((T, T), bool), 1)
    for b in range(B):
        for n in range(N):
            h = n * K // N
            keys, values = k[b, :, h], np.concatenate([v[b, :, h], value[h : h + 1]])
            logits = np.full((T, T + 1), -np.inf)
            logits[:, :T] = np.where(hidden, -np.inf, q[b, :, n] @ keys.T / H**0.5)
            if extra:
                own = q[b, :, n] @ operands["key"][0, h] / H**0.5 if "key" in operands else 0.0
                logits[:, T] = own + (operands["logit"][0, n] if "logit" in operands else 0.0)
            weights, pull = _WEIGHED[type(weigh)](weigh, logits)
            out[b, :, n] = weights @ values
            g = cotangent[b, :, n]
            d_values = weights.T @ g
            d_logits = pull(g @ values.T)
            grads["q"][b, :, n] += d_logits[:, :T] @ keys / H**0.5
            grads["k"][b, :, h] += d_logits[:, :T].T @ q[b, :, n] / H**0.5
            grads["v"][b, :, h] += d_values[:T]
            if "value" in operands:
                grads["value"][0, h] += d_values[T]
            if "logit" in operands:
                grads["logit"][0, n] += d_logits[:, T].sum()
            if "key" in operands:
                grads["q"][b, :, n] += np.outer(d_logits[:, T], operands["key"][0, h]) / H**0.5
                grads["key"][0, h] += d_logits[:, T] @ q[b, :, n] / H**0.5
    return {"out": out} | grads


def _softmax(weigh, logits):
    weights = np.exp(logits - logits.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights, lambda d: weights * (d - (weights * d).sum(1, keepdims=True))


def _clipped(weigh, logits):
    softmax, pull = _softmax(weigh, logits)
    slope = weigh.zeta - weigh.gamma
    stretched = slope * softmax + weigh.gamma
    weights = np.clip(stretched, 0, 1)
    return weights, lambda d: pull(slope * (weights == stretched) * d)


def _sigmoid(weigh, logits):
    weights = 1 / (1 + np.exp(-logits - weigh.bias))
    return weights, lambda d: weights * (1 - weights) * d


def _softpick(weigh, logits):
    rise = np.where(np.isinf(logits), 0, np.expm1(logits))
    total = np.abs(rise).sum(1, keepdims=True) + weigh.eps
    weights = np.maximum(rise, 0) / total

    def pull(d):
        d_rise = (rise > 0) * d - np.sign(rise) * (weights * d).sum(1, keepdims=True)
        return np.exp(logits) * d_rise / total

    return weights, pull


# Weights of logits [T, S], and from the gradient of those to that of these.
_WEIGHED = {Softmax: _softmax, Clipped: _clipped, Sigmoid: _sigmoid, Softpick: _softpick}


def _distance(found: jax.Array, wanted: np.ndarray) -> float:
    difference = np.asarray(found.astype(jnp.float32), np.float64) - wanted
    return float(np.linalg.norm(difference) / np.linalg.norm(wanted))
