"""The probe on one device, of a model of random weights: time and memory beside the forward pass.

`massact bench probe random:SHAPE`. Nothing is read from disk, so that models fit that no one has
at hand, and the figures are those of the device alone. The third row is the authors' way: the
hidden states of all layers are copied to the host and their magnitudes sorted there.
"""

import dataclasses
import functools
import json
import subprocess
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_massact import mesh as layout
from jax_massact.bench import reference_images
from jax_massact.bench.clock import seconds
from jax_massact.data.preprocessing import Preprocessing
from jax_massact.errors import ConfigError, UserError
from jax_massact.measure.image_tokens import neighbour_cosine, token_tap
from jax_massact.measure.magnitudes import magnitudes_tap, residual_streams
from jax_massact.nn.config import ModelConfig
from jax_massact.nn.parameters import is_stacked, parameter
from jax_massact.nn.shapes import SHAPES
from jax_massact.nn.transformer import (
    Transformer,
    from_parameters,
    parameters,
)
from jax_massact.nn.variants import rows_in_front
from jax_massact.studies.probe.settings import ProbeConfig
from jax_massact.train.config import MeshConfig
from jax_massact.train.step import make_mesh

PREFIX = "random:"


def bench_device_probe(
    name: str, config: ProbeConfig, *, repeat: int, mesh: MeshConfig | None = None,
    reference: str | None = None,
) -> dict[str, Any]:
    """Times the forward pass with and without the probe, `batch_size` x `sequence_length` tokens.

    Of a shape of images: `batch_size` images of `image_size` pixels, and no authors' way.

    Args:
      name: a row of SHAPES.
      config: `dtype`, `batch_size`, `sequence_length`, `top_k` and `definition` are used.
      repeat: windows, of which the medians are taken.
      mesh: the devices that share the model; None: one.
      reference: of a shape of images, a Python with torch and timm, whose model is timed as well.

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
    images = model_config.embed.patches is not None
    if not images and config.sequence_length > model_config.context_length:
        raise ConfigError(
            f"sequence_length is {config.sequence_length}; {name} takes at most "
            f"{model_config.context_length}"
        )

    if mesh is None or mesh.sizes == MeshConfig().sizes:
        return _measure(name, model_config, config, repeat, None, reference)
    devices = make_mesh(mesh)
    with jax.set_mesh(devices):
        return _measure(name, model_config, config, repeat, devices, reference)


def _measure(
    name: str, model_config: ModelConfig, config: ProbeConfig, repeat: int,
    devices: jax.sharding.Mesh | None, reference: str | None,
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

    measure = functools.partial(
        magnitudes_tap, top_k=config.top_k, definition=config.definition
    )

    def forward(model, tokens):
        return model(tokens)[0].argmax(-1)  # reading every logit keeps XLA from leaving any out

    def probe(model, tokens):
        logits, found = model(tokens, tap=measure)
        return logits.argmax(-1), found

    def image_forward(model, images):
        return model.features(model.residual(images)[0])

    def image_probe(model, images):
        tap = lambda acts: (measure(acts), token_tap(acts))
        x, found = model.residual(images, tap=tap)
        return model.features(x), found, neighbour_cosine(model, images)

    model = new(jax.random.key(0))
    patches = model_config.embed.patches
    shape = (config.batch_size, config.sequence_length)
    steps: dict[str, Callable[..., Any]] = {"forward": forward, "probe": probe}
    side = 0
    if patches is None:
        tokens = jax.random.randint(jax.random.key(1), shape, 0, model_config.embed.vocab_size)
    else:
        steps, side = {"forward": image_forward, "probe": image_probe}, _side(config, model_config)
        shape = (config.batch_size, rows_in_front(model_config) + (side // patches.size) ** 2)
        tokens = jax.random.bits(jax.random.key(1), (shape[0], side, side, 3), jnp.uint8)
    rows: dict[str, dict[str, Any]] = {}
    for label, function in steps.items():
        compiled = jax.jit(function).lower(model, tokens).compile()
        memory = compiled.memory_analysis()
        rows[label] = {
            "seconds": seconds(lambda c=compiled: c(model, tokens), calls=3, windows=repeat),
            "temporary": memory.temp_size_in_bytes if memory else 0,
        }
    one, two, weights = rows["forward"], rows["probe"], _bytes(model)
    others = {}
    if patches is None:
        rows["authors' way"] = {"seconds": _copied_and_sorted(model, tokens), "temporary": None}
        others["time of the authors' way, against the probe"] = (
            rows["authors' way"]["seconds"] / two["seconds"]
        )
    elif reference is not None:
        del model, tokens, compiled  # the reference wants the memory
        found = _timm(reference, name, side, config.batch_size, repeat)
        for label, ours in (("forward", one), ("probe", two)):
            rows[f"timm, {label}"] = {"seconds": found["seconds"][label], "temporary": None}
            others[f"time of timm's {label} under torch.compile, against ours"] = (
                found["seconds"][label] / ours["seconds"]
            )
    return {
        "model": name, "sequences": shape[0], "sequence_length": shape[1], "dtype": config.dtype,
        "device": jax.devices()[0].device_kind, "devices": devices.size if devices else 1,
        "jax": jax.__version__, "rows": rows,
        "ratios": {
            "time of the probe, against the forward pass": two["seconds"] / one["seconds"],
            **others,
            # Weights count, too: they are in memory whatever is computed.
            "peak memory of the probe, against the forward pass":
                (two["temporary"] + weights) / (one["temporary"] + weights),
            "temporary memory of the probe, against the forward pass":
                two["temporary"] / one["temporary"],
        },
    }


def _side(config: ProbeConfig, model: ModelConfig) -> int:
    """Pixels of an image's side: as the positions were learned, unless the settings have another.

    Raises:
      ConfigError: it is not a multiple of a patch's.
    """
    patches = model.embed.patches
    assert patches is not None
    native = patches.size * patches.grid[0]
    rule = Preprocessing(edge=native, crop=native)
    return rule.resized(config.image_size or native, patches.size).crop


# What timm calls the shapes of images.
_TIMM = {"vit-l14": "vit_large_patch14_dinov2"}


def _timm(python: str, name: str, side: int, batch: int, repeat: int) -> dict[str, Any]:
    settings = {"model": _TIMM[name], "image_size": side, "batch_size": batch, "windows": repeat}
    command = [python, str(reference_images.__file__), json.dumps(settings)]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise UserError(f"cannot run {python}: {error.strerror}") from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise UserError(f"the reference failed (exit code {done.returncode}): {last}")
    return json.loads(done.stdout.splitlines()[-1])


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
