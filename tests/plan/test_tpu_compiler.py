"""The update of every variant, compiled for TPUs that are not there by their own compiler."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from nn.test_images import VIT
from tiny_models import varied
from train_runs import MICRO

from jax_massact.errors import ConfigError
from jax_massact.measure.definition import Definition
from jax_massact.measure.loss import perplexity
from jax_massact.mesh import BATCH, make_mesh
from jax_massact.nn.block_config import MoEConfig
from jax_massact.nn.config import PatchConfig
from jax_massact.nn.edits import Edits
from jax_massact.nn.fused.vendor import Splash
from jax_massact.nn.variants import VARIANTS
from jax_massact.plan.compiled import compile_for, compile_lowered
from jax_massact.plan.probe import ProbeShape, plan_probe
from jax_massact.plan.topology import (
    ENVIRONMENT,
    has_compiler,
    parse_device,
    topology_devices,
)
from jax_massact.train.config import MeshConfig, WatchConfig
from jax_massact.train.step import abstract_state, parameter_count
from jax_massact.train.watch import watch

pytestmark = pytest.mark.skipif(
    not has_compiler(), reason="libtpu is not installed: pip install 'jax_massact[tpu-aot]'"
)
# Not softmax over what is seen: splash attention cannot compute them.
PLAIN = {"clipped", "sigmoid", "softpick"}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setitem(os.environ, name, value)


def run(variant, **changes):
    model = MICRO.model.with_attention(variant=variant, heads=2, kv_heads=1, head_dim=64)
    model = dataclasses.replace(model, context_length=256, dtype="bfloat16")
    given = {"model": model, "sequence_length": 128, "batch_size": 8, **changes}
    return dataclasses.replace(MICRO, **given)


def compiled(config, device):
    topology = parse_device(device)[1]
    assert topology is not None
    return compile_for(config, topology)


@pytest.mark.parametrize("variant", sorted(VARIANTS))
def test_every_variant_for_v5e(variant):
    found = compiled(run(variant, unroll=True, mesh=MeshConfig(data=2, fsdp=2)), "v5e:2x2")
    # Forward and two backward, of every block by itself: the program that will run.
    assert found["kernels"] == (0 if variant in PLAIN else 3 * MICRO.model.depth)
    kinds = {row["kind"] for row in found["collectives"]}
    assert kinds & {"all-gather", "all-reduce", "reduce-scatter"}
    assert 0 < found["memory"]["total"] < found["memory"]["available"] == 16e9
    assert found["memory"]["arguments"] > 0 and found["flops"]


@pytest.mark.parametrize("device", ["v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize("variant", ["standard", "kv_bias"])
def test_other_generations(variant, device):
    assert compiled(run(variant, mesh=MeshConfig(data=-1)), device)["kernels"] > 0


def test_a_mixture_of_experts():
    model = run("standard").model
    mlp = dataclasses.replace(model.block.mlp, gated=True, moe=MoEConfig(experts=4, active=2))
    model = dataclasses.replace(model, block=dataclasses.replace(model.block, mlp=mlp))
    config = run("standard", model=model, mesh=MeshConfig(data=2, fsdp=2))
    found = compiled(config, "v5e:2x2")
    assert found["kernels"] == 3
    # Parameters and two averages in float32, all experts among them, of which fsdp keeps half; the
    # compiler pads what is small.
    assert 0.5 < found["memory"]["arguments"] / (3 * 4 * parameter_count(config)) < 0.7


def test_an_encoder_of_images():
    """All tokens see each other; 259 tokens are padded for the kernel."""
    model = varied(
        VIT, heads=2, kv_heads=2, head_dim=64, dtype="bfloat16", variant="kv_bias",
        context_length=256,
        embed=dataclasses.replace(VIT.embed, patches=PatchConfig(size=2, grid=(16, 16))),
    )
    settings = run("standard", model=model, sequence_length=256, mesh=MeshConfig(data=2, fsdp=2))
    assert compiled(settings, "v5e:2x2")["kernels"] == 3


def test_the_probe_of_a_model_that_is_not_loaded():
    shape = ProbeShape(
        model=run("kv_bias").model, inputs=(4, 256), top_k=5, definition=Definition(),
        mesh=MeshConfig(fsdp=-1),
    )
    topology = parse_device("v5e:2x2")[1]
    assert topology is not None
    plan = plan_probe(shape, topology)
    assert plan["mesh"]["fsdp"] == 4 and plan["tokens"] == 1024
    found = plan["compiled"]
    # One flash kernel, in the loop over blocks; weights are gathered over fsdp.
    assert found["kernels"] == 1 and "all-gather" in {row["kind"] for row in found["collectives"]}
    weights = 2 * plan["parameters"] / 4
    assert weights < found["memory"]["arguments"] < 1.5 * weights + 10_000
    with pytest.raises(ConfigError, match="mesh is fsdp=8, 8 devices; v5e:2x2 has 4"):
        plan_probe(dataclasses.replace(shape, mesh=MeshConfig(fsdp=8)), topology)


def test_watch_and_interventions():
    topology = parse_device("v5e:2x2")[1]
    assert topology is not None
    mesh, config = make_mesh(data=4, devices=topology_devices(topology)), run("kv_bias")
    state = abstract_state(dataclasses.replace(config, mesh=MeshConfig(data=4)), mesh)
    sharding = NamedSharding(mesh, PartitionSpec(BATCH))
    tokens = jax.ShapeDtypeStruct((4, 256), jnp.int32, sharding=sharding)
    edits = Edits.set_to([0], np.arange(256) == 0, 3, 0.0)
    functions = {
        "watch": lambda model, tokens: watch(model, tokens, WatchConfig(sink_tokens=8)),
        "edits": lambda model, tokens: perplexity(model, tokens, edits=edits),
    }
    for name, function in functions.items():
        def lower(function=function):
            with jax.set_mesh(mesh):
                return jax.jit(function).lower(state.model, tokens)

        assert compile_lowered(name, lower, topology, mesh)["kernels"] >= 1, name


def test_a_kernel_that_the_compiler_refuses_is_an_error(monkeypatch):
    """Mosaic has no float16 on these chips."""
    forward = Splash.forward

    def in_half(self, q, k, v, span):
        out, lse = forward(self, *(x.astype("float16") for x in (q, k, v)), span)
        return out.astype(q.dtype), lse

    monkeypatch.setattr(Splash, "forward", in_half)
    with pytest.raises(ConfigError, match="the update does not compile for v5e:2x2: "):
        compiled(run("standard", mesh=MeshConfig(data=-1)), "v5e:2x2")


def test_a_topology_that_is_not_built_is_refused():
    with pytest.raises(ConfigError, match="libtpu does not compile for it: .*expected: the"):
        compiled(run("standard", batch_size=21, mesh=MeshConfig(data=-1)), "v5e:3x7")
