"""The update of every variant, compiled for TPUs that are not there by their own compiler."""

import dataclasses
import os

import pytest
from train_runs import MICRO

from jax_massact.errors import ConfigError
from jax_massact.nn.fused.vendor import Splash
from jax_massact.nn.variants import VARIANTS
from jax_massact.plan.compiled import compile_for
from jax_massact.plan.topology import ENVIRONMENT, has_compiler, parse_device
from jax_massact.train.config import MeshConfig

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
    given = {"model": model, "sequence_length": 256, "batch_size": 8, **changes}
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
