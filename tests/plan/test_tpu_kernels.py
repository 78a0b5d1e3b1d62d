"""Splash attention with all that goes around it, compiled for TPUs that are not there."""

import os
import re

import jax
import jax.numpy as jnp
import pytest

from jax_massact.mesh import make_mesh
from jax_massact.nn.acts import Mask
from jax_massact.nn.attention import attend
from jax_massact.nn.extra import Extra
from jax_massact.nn.fused import vendor
from jax_massact.plan.topology import ENVIRONMENT, has_compiler, parse_device, topology_devices

pytestmark = pytest.mark.skipif(
    not has_compiler(), reason="libtpu is not installed: pip install 'jax_massact[tpu-aot]'"
)


def devices_of(name):
    topology = parse_device(name)[1]
    assert topology is not None
    return topology_devices(topology)


def program(device, *, heads, kv_heads, head_dim, length, window, extra, monkeypatch):
    """Attention and its gradients for one chip of a slice, as the compiler writes it."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setitem(os.environ, name, value)
    mask = Mask(scale=head_dim**-0.5, window=window)

    def total(q, k, v, fields):
        given = Extra(**fields) if fields else None
        out = attend(q, k, v, mask, extra=given, implementation="splash")
        return out.astype(jnp.float32).sum()

    of = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.bfloat16)
    fields = {"key": of(1, kv_heads, head_dim), "logit": of(1, heads),
              "value": of(1, kv_heads, head_dim)}
    keys = of(1, length, kv_heads, head_dim)
    arrays = (of(1, length, heads, head_dim), keys, keys, {n: fields[n] for n in extra})
    with jax.set_mesh(make_mesh(devices=devices_of(device)[:1])):
        gradients = jax.jit(jax.grad(total, argnums=(0, 1, 2, 3)))
        return gradients.lower(*arrays).compile().as_text()


@pytest.mark.parametrize(("heads", "kv_heads", "head_dim", "length", "window", "extra"), [
    (8, 2, 128, 512, None, ()),
    (2, 2, 64, 1024, 100, ()),
    (2, 1, 64, 333, None, ("logit",)),
    (2, 1, 256, 256, None, ("key", "logit", "value")),
    (4, 2, 128, 385, 50, ("key", "value")),
], ids=["grouped", "window", "odd-length", "head-of-256", "everything"])
def test_compiles_for_v5e(heads, kv_heads, head_dim, length, window, extra, monkeypatch):
    text = program("v5e:2x2", heads=heads, kv_heads=kv_heads, head_dim=head_dim, length=length,
                   window=window, extra=extra, monkeypatch=monkeypatch)
    calls = re.findall(r"custom-call\(.*custom_call_target=\"tpu_custom_call\".*", text)
    assert len(calls) == 3
    # Keys and values are never repeated for the queries of a group: what has the shape of queries
    # is made of queries, results and their cotangents.
    padded = length + -length % 128
    shape = lambda heads: rf"bf16\[(?:1,)?{heads},{padded},{head_dim}\]"
    if heads != kv_heads:
        assert all(len(re.findall(shape(kv_heads), call)) >= 2 for call in calls)


@pytest.mark.parametrize(("device", "block"), [("v5p:2x2x1", 512), ("v6e:2x2", 1024)])
def test_blocks_of_other_generations(device, block, monkeypatch):
    """The largest blocks fit in VMEM, with the largest heads."""
    text = program(device, heads=1, kv_heads=1, head_dim=256, length=2048, window=None, extra=(),
                   monkeypatch=monkeypatch)
    assert text.count('custom_call_target="tpu_custom_call"') == 3
    with jax.set_mesh(make_mesh(devices=devices_of(device)[:1])):
        sizes = vendor._splash_kernel(2048, 1, vendor.Span(), False).kwargs["block_sizes"]
    assert sizes.block_q == sizes.block_kv_dkv == block


def test_a_mesh_may_split_an_axis_of_the_torus(monkeypatch):
    for name, value in ENVIRONMENT.items():
        monkeypatch.setitem(os.environ, name, value)
    mesh = make_mesh(data=32, fsdp=8, devices=devices_of("v6e:16x16"))
    assert mesh.shape["fsdp"] == 8 and len(set(mesh.devices.flat)) == 256
