"""Flash attention kernels of other libraries: forward with log-sum-exp, and backward.

Both libraries keep their backward kernel private. This file alone calls what is private, and checks
first that it is called as this file expects: where it is not, or where a kernel cannot compute what
is asked for, the kernel says why and attention is computed by another one.
"""

import dataclasses
import functools
import importlib
import inspect
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_massact.nn.acts import Mask
from jax_massact.nn.weigh import Softmax


class Span(NamedTuple):
    """Which keys a query sees; static.

    Attributes:
      causal: those up to its own token only; else all.
      window: of these, its own and the `window - 1` before it; None: all.
      tokens: how many there are, where the last ones are padding that no query may see; None: all.
    """

    causal: bool = True
    window: int | None = None
    tokens: int | None = None


@runtime_checkable
class FlashKernel(Protocol):
    """Attention over the real keys, from queries [B T N H], keys and values [B T K H]."""

    @property
    def multiple(self) -> int:
        """The number of tokens must be a multiple of this."""
        ...

    def unfit(self, q: jax.ShapeDtypeStruct, mask: Mask) -> str | None:
        """Why this kernel cannot compute such attention on this device; None: it can."""
        ...

    def forward(
        self, q: jax.Array, k: jax.Array, v: jax.Array, span: Span
    ) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
        """The heads' results, and the log-sum-exp of each query's logits, float32."""
        ...

    def backward(
        self,
        q: jax.Array,
        k: jax.Array,
        v: jax.Array,
        out: Float[Array, "B T N H"],
        lse: Float[Array, "B N T"],
        cotangent: Float[Array, "B T N H"],
        span: Span,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Cotangents of q, k and v, of softmax weights exp(logit - lse) and the result `out`."""
        ...


@dataclasses.dataclass(frozen=True)
class Cudnn:
    """cuDNN's fused attention, through JAX's primitives."""

    multiple: int = 2  # odd lengths are rejected in training

    def unfit(self, q: jax.ShapeDtypeStruct, mask: Mask) -> str | None:
        if reason := _not_plain(q, mask):
            return reason
        head_dim = q.shape[-1]
        if platform() != "gpu":
            return f"it runs on NVIDIA GPUs, not on this {platform()}"
        if "cuda" not in jax.local_devices(backend="gpu")[0].client.platform_version:
            return "it runs on NVIDIA GPUs only"
        if _capability() < (8, 0):
            return "it needs a GPU of compute capability 8.0 or higher"
        if q.dtype not in (jnp.bfloat16, jnp.float16):
            return f"it computes in bfloat16 and float16, not in {q.dtype}"
        largest = 256 if _capability() >= (9, 0) else 128
        if head_dim % 8 or head_dim > largest:
            return f"head_dim is {head_dim}; expected: a multiple of 8, at most {largest}"
        return _cudnn_calls()[1]

    def forward(self, q, k, v, span):
        calls, _ = _cudnn_calls()
        return calls["forward"](q, k, v, _lengths(q, span), _cudnn_settings(q, span))

    def backward(self, q, k, v, out, lse, cotangent, span):
        calls, _ = _cudnn_calls()
        lengths, settings = _lengths(q, span), _cudnn_settings(q, span)
        return calls["backward"](q, k, v, lengths, lse, out, cotangent, settings)


@dataclasses.dataclass(frozen=True)
class Splash:
    """Splash attention, JAX's Pallas kernel for TPU.

    Attributes:
      interpret: compute it on any device, slowly, for tests.
    """

    interpret: bool = False
    multiple: int = 128  # lanes of a TPU

    def unfit(self, q: jax.ShapeDtypeStruct, mask: Mask) -> str | None:
        if reason := _not_plain(q, mask):
            return reason
        if platform() != "tpu" and not self.interpret:
            return f"it runs on TPUs, not on this {platform()}"
        if q.shape[-1] % 64:
            return f"head_dim is {q.shape[-1]}; expected: a multiple of 64"
        return _splash_calls()[1]

    def forward(self, q, k, v, span):
        kernel = _splash_kernel(q.shape[1], q.shape[2], span, self.interpret)
        heads_first = (x.swapaxes(1, 2) for x in (_scaled(q), k, v))
        run: Any = jax.vmap(kernel)
        out, (lse,) = run(*heads_first)
        return out.swapaxes(1, 2), lse

    def backward(self, q, k, v, out, lse, cotangent, span):
        kernel = _splash_kernel(q.shape[1], q.shape[2], span, self.interpret)
        run, _ = _splash_calls()

        def one(q, k, v, out, lse, cotangent):
            residuals = (q, k, v, None, None, out, lse, kernel.dq_mask_info, kernel.dkv_mask_info)
            return run(**kernel.kwargs, res=residuals, do=cotangent)[3:6]

        heads_first = (x.swapaxes(1, 2) for x in (_scaled(q), k, v, out))
        batched: Any = jax.vmap(one)
        dq, dk, dv = batched(*heads_first, lse, cotangent.swapaxes(1, 2))
        dq = dq.swapaxes(1, 2) * q.shape[-1] ** -0.5
        return dq.astype(q.dtype), dk.swapaxes(1, 2), dv.swapaxes(1, 2)


# By name, in the order of preference.
KERNELS: dict[str, FlashKernel] = {"cudnn": Cudnn(), "splash": Splash()}


def _not_plain(q: jax.ShapeDtypeStruct, mask: Mask) -> str | None:
    """Why no flash kernel can compute this attention; None: it is a softmax over what is seen."""
    if not mask.causal and mask.window is not None:
        return "its window reaches to both sides"
    if mask.weigh != Softmax():
        return f"its weights are {type(mask.weigh).__name__}, not a softmax"
    if mask.slopes is not None:
        return "its logits depend on the distance of keys (ALiBi)"
    if mask.softcap is not None:
        return f"its logits are capped at {mask.softcap:g}"
    if mask.scale != q.shape[-1] ** -0.5:
        return f"its scale is {mask.scale:g}, not 1 / sqrt({q.shape[-1]})"
    return None


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: the platform of the current mesh, else of the default device.

    A program may be lowered for devices that are not those of this process.
    """
    meant = jax.sharding.get_abstract_mesh().abstract_device
    if meant is not None:
        return meant.platform
    device: Any = getattr(jax.config, "jax_default_device")  # noqa: B009
    if device is None:
        return jax.default_backend()
    return device if isinstance(device, str) else device.platform


def device_kind() -> str:
    """The kind of the devices of the current mesh, else of the first device: `TPU v5 lite`."""
    meant = jax.sharding.get_abstract_mesh().abstract_device
    return jax.devices()[0].device_kind if meant is None else meant.device_kind


def _scaled(q: jax.Array) -> jax.Array:
    return q * q.shape[-1] ** -0.5


def _capability() -> tuple[int, ...]:
    device = jax.local_devices(backend="gpu")[0]
    return tuple(int(part) for part in device.compute_capability.split("."))


def _private(module: str, name: str, parameters: set[str], optional: set[str]) -> Any:
    """A private function; raises _Changed if it does not take what this file gives it."""
    try:
        function = getattr(importlib.import_module(module), name)
        found = set(inspect.signature(function).parameters)
    except (ImportError, AttributeError, TypeError, ValueError):
        raise _Changed(f"jax {jax.__version__} has no {module}.{name}") from None
    if not parameters <= found <= parameters | optional:
        differing = ", ".join(sorted((parameters - found) | (found - parameters - optional)))
        raise _Changed(f"{module}.{name} of jax {jax.__version__} takes other parameters: "
                       f"{differing}")
    return function, found


class _Changed(Exception):
    pass


_CUDNN = "jax._src.cudnn.fused_attention_stablehlo"
_CUDNN_ARRAYS = ("query", "key", "value", "bias", "q_seqlen", "kv_seqlen", "q_offsets",
                 "kv_offsets", "page_table_k", "page_table_v")
_CUDNN_SETTINGS = {"scale", "seed", "dropout_rate", "variadic_args", "mask_type", "layout",
                   "sliding_window_length"}
# Added in jax 0.12, unused here.
_CUDNN_SCORE_MOD = {"score_mod_args": (), "score_mod": None}


@functools.cache
def _cudnn_calls() -> tuple[dict[str, Any], str | None]:
    """JAX's rules for cuDNN attention in training, forward and backward; or why there are none."""
    more = set(_CUDNN_SCORE_MOD)
    version = {"cudnn_version", "return_residual"}
    try:
        forward, in_forward = _private(
            _CUDNN, "_dot_product_attention_fwd_rule",
            {*_CUDNN_ARRAYS} | _CUDNN_SETTINGS | version, more,
        )
        backward, in_backward = _private(
            _CUDNN, "_dot_product_attention_bwd_rule",
            _CUDNN_SETTINGS | {"return_residual", "res", "grad_output"},
            {"is_training", "cudnn_version", "score_mod"},
        )
        check_version, _ = _private(_CUDNN, "check_cudnn_version", set(), set())
        cudnn_version = check_version()
    except (_Changed, RuntimeError) as problem:
        return {}, str(problem)
    extra_forward = {n: x for n, x in _CUDNN_SCORE_MOD.items() if n in in_forward}
    extra_backward = {
        n: x for n, x in {"is_training": True, "cudnn_version": cudnn_version, "score_mod": None}
        .items() if n in in_backward
    }
    has_score_mod = "score_mod_args" in in_forward

    def others(lengths: tuple[jax.Array, jax.Array]) -> list[jax.Array]:
        # The bias, the lengths of queries and keys, then what pages and offsets need.
        empty = [jnp.zeros(0, jnp.int32) for _ in range(4)]
        return [jnp.zeros(0, jnp.float32), *lengths, *empty]

    def run_forward(q, k, v, lengths, settings):
        arrays = dict(zip(_CUDNN_ARRAYS, (q, k, v, *others(lengths)), strict=True))
        (out, lse), _ = forward(
            **arrays, **settings, **extra_forward, cudnn_version=cudnn_version,
            return_residual=True,
        )
        return out, lse

    def run_backward(q, k, v, lengths, lse, out, cotangent, settings):
        score_mod_args = ((),) if has_score_mod else ()
        residuals = (q, k, v, *others(lengths), *score_mod_args, lse, out)
        grads = backward(
            **settings, **extra_backward, return_residual=False, res=residuals,
            grad_output=cotangent,
        )
        return grads[:3]

    return {"forward": run_forward, "backward": run_backward}, None


def _lengths(q: jax.Array, span: Span) -> tuple[jax.Array, jax.Array]:
    """How many queries and keys each sequence has, where some are padding; else nothing."""
    if span.tokens is None:
        return jnp.zeros(0, jnp.int32), jnp.zeros(0, jnp.int32)
    lengths = jnp.full(q.shape[0], span.tokens, jnp.int32)
    return lengths, lengths


def _cudnn_settings(q: jax.Array, span: Span) -> dict[str, Any]:
    module = importlib.import_module(_CUDNN)
    padded = "NO_MASK" if span.tokens is None else "PADDING"
    mask_type = getattr(module.MaskType, "CAUSAL" if span.causal else padded)
    return {
        "scale": q.shape[-1] ** -0.5,
        "seed": 42,
        "dropout_rate": 0.0,
        "variadic_args": (False, False),
        "mask_type": mask_type,
        "layout": module.AttentionLayout.BTNH.value,
        "sliding_window_length": span.window,
    }


_SPLASH = "jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel"
# Queries, and keys, of a block. Keys and values that are read once serve a block of queries, 4 H
# operations each for 4 H bytes. So arithmetic takes longer than reading where a block has more
# queries than the chip has operations for a byte of its memory: v5e 240, v5p 166, v6e 560. Larger
# ones gain nothing, and their logits in float32, several of which the backward pass has at a time
# (1 MiB each, 4 MiB), must fit in VMEM beside them.
_SPLASH_BLOCKS = {"TPU v5 lite": 512, "TPU v5": 512, "TPU v6 lite": 1024}


@functools.cache
def _splash_calls() -> tuple[Any, str | None]:
    """The backward pass of splash attention, or why it is not available."""
    try:
        return _private(
            _SPLASH, "_splash_attention_bwd",
            {"save_residuals", "mask_value", "is_mqa", "block_sizes", "residual_checkpoint_name",
             "mask_function", "attn_logits_soft_cap", "interpret", "res", "do"},
            set(),
        )[0], None
    except _Changed as problem:
        return None, str(problem)


def _splash_kernel(length: int, heads: int, span: Span, interpret: bool) -> Any:
    from jax.experimental.pallas.ops.tpu.splash_attention import (
        splash_attention_kernel,
        splash_attention_mask,
    )

    # The largest divisor of the length that is a multiple of the lanes and not above the limit.
    limit = _SPLASH_BLOCKS.get(device_kind(), 512)
    block = max(b for b in range(128, limit + 1, 128) if length % b == 0)
    fields = ("block_q", "block_kv", "block_kv_compute", "block_q_dkv", "block_kv_dkv",
              "block_kv_dkv_compute", "block_q_dq", "block_kv_dq")
    sizes = splash_attention_kernel.BlockSizes(**dict.fromkeys(fields, block))
    shape = (length, length)
    if span.tokens is not None:
        seen = np.arange(length) < span.tokens
        mask = splash_attention_mask.NumpyMask(np.tile(seen, (length, 1)))
    elif not span.causal:
        mask = splash_attention_mask.FullMask(shape)
    elif span.window is None:
        mask = splash_attention_mask.CausalMask(shape)
    else:
        mask = splash_attention_mask.LocalMask(shape, (span.window - 1, 0), 0)

    def build():
        return jax.tree.map(np.asarray, splash_attention_kernel.make_splash_mha_single_device(
            splash_attention_mask.MultiHeadMask([mask] * heads), block_sizes=sizes,
            save_residuals=True, interpret=interpret,
        ))

    # Its tables are arrays. They must not be computed by the devices that a program is lowered for,
    # which may not be there: a thread of its own knows neither the current mesh nor the tracing.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(build).result()
