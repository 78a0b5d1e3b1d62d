"""The probe on one device, of a model of random weights: time and memory beside the forward pass.

`massact bench probe random:SHAPE`. Nothing is read from disk, so that models fit that no one has
at hand, and the figures are those of the device alone. The third row is the authors' way: the
hidden states of all layers are copied to the host and their magnitudes sorted there.
"""

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact import mesh as layout
from jax_massact.bench.clock import seconds
from jax_massact.errors import ConfigError
from jax_massact.measure.magnitudes import magnitudes_tap, residual_streams
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.shapes import SHAPES
from jax_massact.nn.transformer import (
    Transformer,
    from_parameters,
    parameters,
)
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.train.config import MeshConfig
from jax_massact.train.step import make_mesh

PREFIX = "random:"


def bench_device_probe(
    name: str, config: ProbeConfig, *, repeat: int, mesh: MeshConfig | None = None
) -> dict[str, Any]:
    """Times the forward pass with and without the probe, `batch_size` x `sequence_length` tokens.

    Args:
      name: a row of SHAPES.
      config: `dtype`, `batch_size`, `sequence_length`, `top_k` and `definition` are used.
      repeat: windows, of which the medians are taken.
      mesh: the devices that share the model; None: one.

    Returns:
      `{"rows": {name: {"seconds", "temporary"}}, "ratios": {...}, ...}`; `temporary` is the bytes
      that the compiled program needs on each device beside weights and results (null for the
      authors' way).

    Raises:
      ConfigError: there is no such shape, the sequences are longer than its context, or there are
        too few devices.
    """
    if name not in SHAPES:
        raise ConfigError(f"no shape {name!r}; expected: {', '.join(SHAPES)}")
    model_config = dataclasses.replace(SHAPES[name], dtype=config.dtype)
    if config.sequence_length > model_config.context_length:
        raise ConfigError(
            f"sequence_length is {config.sequence_length}; {name} takes at most "
            f"{model_config.context_length}"
        )

    if mesh is None or mesh.sizes == MeshConfig().sizes:
        return _measure(name, model_config, config, repeat, None)
    devices = make_mesh(mesh)
    with jax.set_mesh(devices):
        return _measure(name, model_config, config, repeat, devices)


def _measure(
    name: str, model_config: ModelConfig, config: ProbeConfig, repeat: int,
    devices: jax.sharding.Mesh | None,
) -> dict[str, Any]:
    def place(name, leaf):
        leaf = leaf.astype(model_config.dtype)
        if devices is None:
            return leaf
        sharding = layout.parameter_sharding(
            devices, parameter(name).letters, leaf.shape, stacked=is_stacked(name)
        )
        return jax.reshard(leaf, sharding.spec)

    @jax.jit
    def new(key):
        arrays = parameters(Transformer(model_config, key))
        return from_parameters(model_config, {n: place(n, x) for n, x in arrays.items()})

    def forward(model, tokens):
        return model(tokens)[0].argmax(-1)  # reading every logit keeps XLA from leaving any out

    def probe(model, tokens):
        tap = lambda acts: magnitudes_tap(acts, top_k=config.top_k, definition=config.definition)
        logits, found = model(tokens, tap=tap)
        return logits.argmax(-1), found

    model = new(jax.random.key(0))
    shape = (config.batch_size, config.sequence_length)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, model_config.embed.vocab_size)
    rows: dict[str, dict[str, Any]] = {}
    for label, function in (("forward", forward), ("probe", probe)):
        compiled = jax.jit(function).lower(model, tokens).compile()
        memory = compiled.memory_analysis()
        rows[label] = {
            "seconds": seconds(lambda c=compiled: c(model, tokens), calls=3, windows=repeat),
            "temporary": memory.temp_size_in_bytes if memory else 0,
        }
    rows["authors' way"] = {"seconds": _copied_and_sorted(model, tokens), "temporary": None}
    one, two = rows["forward"], rows["probe"]
    return {
        "model": name, "sequences": shape[0], "sequence_length": shape[1], "dtype": config.dtype,
        "device": jax.devices()[0].device_kind, "devices": devices.size if devices else 1,
        "jax": jax.__version__, "rows": rows,
        "ratios": {
            "time of the probe, against the forward pass": two["seconds"] / one["seconds"],
            "time of the authors' way, against the probe":
                rows["authors' way"]["seconds"] / two["seconds"],
            # Weights count, too: they are in memory whatever is computed.
            "peak memory of the probe, against the forward pass":
                (two["temporary"] + _bytes(model)) / (one["temporary"] + _bytes(model)),
            "temporary memory of the probe, against the forward pass":
                two["temporary"] / one["temporary"],
        },
    }


def _bytes(model: Transformer) -> int:
    """Of the weights on one device."""
    return sum(x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(model))


def _copied_and_sorted(model: Transformer, tokens: jax.Array) -> float:
    """Seconds, once: a sort of all layers takes long and hardly varies."""
    streams = jax.jit(residual_streams)
    run = lambda: streams(model, tokens)
    jax.block_until_ready(run())
    begin = time.perf_counter()
    for layer in run():
        np.sort(np.abs(np.asarray(layer.astype(jnp.float32))), axis=None)
    return time.perf_counter() - begin
