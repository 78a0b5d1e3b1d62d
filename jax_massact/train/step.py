"""One update of a model, compiled once: its loss, its gradient, and where all of it lives.

Parameters are always float32; the model computes in `config.model.dtype`.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jax_massact import mesh as layout
from jax_massact.errors import ConfigError
from jax_massact.nn.draw import Key
from jax_massact.nn.fused.cross_entropy import cross_entropy
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.transformer import (
    Transformer,
    abstract,
    from_parameters,
    parameters,
)
from jax_massact.train.config import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    TrainConfig,
    WatchConfig,
)
from jax_massact.train.optimizer import make_optimizer, schedule
from jax_massact.train.rows import logits_of, row_shape, split_rows

# What XLA may record in CUDA graphs: everything that it would but cuDNN's kernels. Recording them,
# in the first update, made some starts fail.
_RECORDED = "FUSION,CUBLAS,CUBLASLT"
# On GPUs XLA joins the matmuls for queries, keys and values to one, and then copies its result
# apart, which takes longer than it gained. And it tries kernels of its own for every matmul, which
# takes half of the compilation; cuBLAS alone was as fast, and adds a bias while it writes.
_COMPILER_OPTIONS: dict[str, dict[str, str | bool]] = {
    "gpu": {
        "xla_gpu_dot_merger_threshold_mb": "0",
        "xla_gpu_enable_triton_gemm": False,
        "xla_gpu_enable_command_buffer": _RECORDED,
    }
}


class State(NamedTuple):
    """Everything that an update changes.

    Attributes:
      step: updates made so far; the next one is made from batch `step`.
      halted: whether a loss or gradient was not finite and `on_nonfinite` is `stop`; further
        updates leave such a state as it is.
      model: its parameters in float32.
      optimizer: the optimizer's averages by parameter name, laid out as the parameters.
    """

    step: Int[Array, ""]
    halted: Bool[Array, ""]
    model: Transformer
    optimizer: Any

    @property
    def params(self) -> dict[str, Any]:
        """The model's parameters by their dotted names."""
        return parameters(self.model)


class StepMetrics(NamedTuple):
    """Metrics of one update.

    Attributes:
      loss: mean over the batch's tokens in nats, before the update.
      grad_norm: norm of the whole gradient, before clipping.
      lr: the learning rate.
    """

    loss: Float[Array, ""]
    grad_norm: Float[Array, ""]
    lr: Float[Array, ""]


def make_mesh(config: MeshConfig) -> jax.sharding.Mesh:
    """The mesh of a run, on the first of the devices that are present.

    Raises:
      ConfigError: there are too few devices, or their slices are not those of `config.dcn`.
    """
    devices = jax.devices()
    config = config.on(len(devices))
    need = config.devices
    if need > len(devices):
        raise ConfigError(
            f"mesh is {config}, {need} devices; there are {len(devices)}; one axis may be -1: all "
            "that the others leave"
        )
    if jax.process_count() > 1 and need < len(devices):
        raise ConfigError(
            f"mesh is {config}, {need} devices; with several processes it must have all "
            f"{len(devices)}"
        )
    return layout.make_mesh(**config.sizes, devices=devices[:need])


def on_devices(config: TrainConfig) -> TrainConfig:
    """`config` with the sizes of its mesh on the devices that are present.

    Raises:
      ConfigError: a mesh of that size does not divide what it splits.
    """
    return dataclasses.replace(config, mesh=config.mesh.on(len(jax.devices())))


def compute_settings(config: TrainConfig) -> TrainConfig:
    """`config` with all that does not change what is compiled at one value.

    So runs that differ in nothing else share their compiled functions.
    """
    optimizer = dataclasses.replace(
        config.optimizer, warmup=config.warmup, decay_start=config.decay_start,
        decay_end=config.decay_end,
    )
    return dataclasses.replace(
        config, optimizer=optimizer, data=DataConfig(), watch=WatchConfig(every=0),
        checkpoint=CheckpointConfig(), steps=1, seed=0, log_every=1, validate_every=0,
        validation_batches=1, tensorboard=False, max_skipped=0, stall_seconds=0,
    )


def new_state(config: TrainConfig, mesh: jax.sharding.Mesh) -> State:
    """New parameters by `config.seed`, the same numbers (to the last bit but one) on any mesh."""
    with jax.set_mesh(mesh):
        key = jax.random.key(config.seed)
        return _new_state(compute_settings(config), mesh, key)


def abstract_state(config: TrainConfig, mesh: jax.sharding.Mesh) -> State:
    """The shapes, dtypes and layouts of a state; no memory used."""
    with jax.set_mesh(mesh):
        state = jax.eval_shape(functools.partial(_new_state, config, mesh, None))

        def placed(leaf):
            # Arrays that are whole on every device come without a layout.
            spec = leaf.sharding.spec if leaf.sharding is not None else PartitionSpec()
            sharding = NamedSharding(mesh, spec)
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)

        return jax.tree.map(placed, state)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _new_state(config: TrainConfig, mesh: jax.sharding.Mesh, key: Key) -> State:
    def put(name, leaf):
        sharding = layout.parameter_sharding(
            mesh, parameter(name).letters, leaf.shape, stacked=is_stacked(name)
        )
        return jax.reshard(leaf, sharding.spec)

    params = {name: put(name, x) for name, x in parameters(Transformer(config.model, key)).items()}
    model = from_parameters(config.model, params)
    return State(jnp.int32(0), jnp.bool_(False), model, make_optimizer(config).init(params))


def place(batch: np.ndarray, parts: int, mesh: jax.sharding.Mesh) -> jax.Array:
    """A batch [B T] on the devices, as micro-batches [parts, B / parts, T]."""
    tokens = batch.reshape(parts, -1, batch.shape[-1])
    sharding = _batch_sharding(mesh)
    return jax.make_array_from_callback(tokens.shape, sharding, lambda index: tokens[index])


def _batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(None, *layout.LAYOUTS["bt"]))


def loss(model: Transformer, rows: Array, config: TrainConfig) -> Float[Array, ""]:
    """Mean cross-entropy in nats, in float32: of the next token, or of an image's class.

    Only tokens that are predicted at position `config.loss_from` or later count.
    """
    unroll = config.model.depth if config.unroll else 1
    inputs, targets = split_rows(config.model, rows)
    logits, _ = model(inputs, unroll=unroll, remat=config.remat)
    losses = cross_entropy(logits_of(config.model, logits), targets)
    return losses[:, config.loss_from :].mean()


def update(
    state: State, tokens: Array, config: TrainConfig
) -> tuple[State, StepMetrics]:
    """One update, by the gradient of the mean over all micro-batches.

    Where the loss or the gradient is not finite, parameters and averages stay as they were. The
    counts go on, so that the learning rate remains a function of the step.
    """

    def add(total, micro_batch):
        return jax.tree.map(jnp.add, total, gradient(state.model, micro_batch, config)), None

    gradient = jax.value_and_grad(loss)
    if config.accumulate == 1:
        value, grads = gradient(state.model, tokens[0], config)
    else:
        zeros = (jnp.float32(0), jax.tree.map(jnp.zeros_like, state.model))
        total, _ = jax.lax.scan(add, zeros, tokens)
        value, grads = jax.tree.map(lambda x: x / config.accumulate, total)
    params = state.params
    changes, optimizer = make_optimizer(config).update(parameters(grads), state.optimizer, params)
    metrics = StepMetrics(
        loss=value,
        grad_norm=optax.tree.norm(grads),
        lr=jnp.asarray(schedule(config)(state.step), jnp.float32),
    )
    good = jnp.isfinite(metrics.loss) & jnp.isfinite(metrics.grad_norm) & ~state.halted
    # Free: both are at hand in the pass over memory that writes the new one.
    keep = lambda new, old: jnp.where(good, new, old) if new.ndim else new
    changed = jax.tree.map(jnp.add, params, changes)
    params, optimizer = jax.tree.map(keep, (changed, optimizer), (params, state.optimizer))
    halted = ~good if config.on_nonfinite == "stop" else state.halted
    step = state.step + ~halted
    return State(step, halted, from_parameters(config.model, params), optimizer), metrics


@functools.lru_cache(maxsize=8)
def compile_update(
    config: TrainConfig, mesh: jax.sharding.Mesh
) -> Callable[[State, jax.Array], tuple[State, StepMetrics]]:
    """`update`, compiled, for batches made by `place`. It consumes the state that it is given."""
    options = _COMPILER_OPTIONS.get(mesh.devices.flat[0].platform)
    with jax.set_mesh(mesh):
        return lower_update(config, mesh).compile(compiler_options=options)


def lower_update(
    config: TrainConfig, mesh: jax.sharding.Mesh, *, in_place: bool = True
) -> jax.stages.Lowered:
    """`update`, lowered for the devices of `mesh`; the new state in the place of the old one."""
    length, dtype = row_shape(config)
    shape = (config.accumulate, config.micro_batch, length)
    tokens = jax.ShapeDtypeStruct(shape, dtype, sharding=_batch_sharding(mesh))
    with jax.set_mesh(mesh):
        run = jax.jit(update, static_argnums=2, donate_argnums=0 if in_place else ())
        return run.lower(abstract_state(config, mesh), tokens, config)


@functools.partial(jax.jit, static_argnums=2)
def validation(
    model: Transformer, tokens: Array, config: TrainConfig
) -> dict[str, Float[Array, ""]]:
    """Mean loss of one batch, one micro-batch after the other; of images also the accuracy."""
    def measured(rows):
        found = {"loss": loss(model, rows, config)}
        if config.model.embed.patches is not None:
            images, targets = split_rows(config.model, rows)
            right = model(images)[0].argmax(-1) == targets[:, 0]
            found["accuracy"] = right.mean(dtype=jnp.float32)
        return found

    return jax.tree.map(jnp.mean, jax.lax.map(measured, tokens))


def parameter_count(config: TrainConfig) -> int:
    """Number of parameters of the model."""
    return sum(x.size for x in parameters(abstract(config.model)).values())
