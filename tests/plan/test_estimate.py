"""The plan of a run: memory against shapes, traffic and time against arithmetic by hand."""

import dataclasses
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_models import varied
from train_runs import MICRO

from jax_massact.accelerators import ACCELERATORS, PEAK_FLOPS, find_accelerator
from jax_massact.errors import ConfigError
from jax_massact.nn.acts import Mask
from jax_massact.nn.fused.flash import flash_attend
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.plan.collectives import Collective
from jax_massact.plan.estimate import LEAST_EFFICIENCY, Standin, link_seconds
from jax_massact.train.config import (
    MeshConfig,
    TrainConfig,
    gpt2,
    to_json,
)
from jax_massact.train.layout import describe_layout, step_memory
from jax_massact.train.step import compile_update, make_mesh

HALF = dataclasses.replace(MICRO, model=dataclasses.replace(MICRO.model, dtype="bfloat16"))
H100 = ACCELERATORS["h100"]


def plan(config, devices, device="h100"):
    done = subprocess.run(
        [sys.executable, "-m", "jax_massact.plan.estimate", to_json(config), str(devices), device],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def spread():
    config = dataclasses.replace(HALF, mesh=MeshConfig(data=2, fsdp=2, model=-1), accumulate=2)
    return plan(config, 8)


def test_parameters_of_a_device_are_those_of_the_shapes(spread):
    """float32, by 2 along fsdp and by 2 along model, as the names say; counted in NumPy."""
    V, P, L, D, F, N, H = 64, 16, 2, 32, 128, 8, 4
    matrices = V * D + L * (4 * D * N * H + 2 * D * F)
    mine = matrices // 4 + P * D // 2 + 2 * L * N * H // 2 + (2 * L + 1) * D
    assert spread["memory"]["parameters"] == 4 * mine
    # Two averages for each, and Adam's count and the schedule's.
    assert spread["memory"]["optimizer"] == 2 * 4 * mine + 2 * 4
    assert spread["memory"]["gradients"] == 4 * mine


def test_memory_adds_up(spread):
    memory = spread["memory"]
    parts = ("parameters", "optimizer", "gradients", "activations")
    assert memory["total"] == sum(memory[part] for part in parts)
    assert memory["available"] == 80e9 and spread["fits"] == "yes"
    # With a copy of the optimizer's state, which XLA for CPU makes of one updated in place, 6.8.
    assert memory["activations"] < 4 * memory["parameters"]


def test_traffic_of_every_axis(spread):
    """In each part of the batch and each layer every weight is gathered over fsdp, in 16 bit."""
    L, D, F, parts = 2, 32, 128, 2
    rows = {(row["kind"], *row["axes"]): row for row in spread["traffic"]}
    gathered = rows["all-gather", "fsdp"]
    of_blocks = parts * L * (4 * D * D + 2 * D * F) // 2 * 2
    tables = (64 * 32 // 2 + 16 * 32) * 4 + 64 * 32 // 2 * 2
    assert gathered["devices"] == 2
    assert of_blocks + tables <= gathered["bytes"] <= of_blocks + parts * tables
    assert gathered["sent"] == gathered["bytes"] // 2
    # Four results of each block, two forward and two backward, are summed over heads or units.
    tokens = 8 // parts // 4 * 16
    summed = rows["all-reduce", "model"]
    assert summed["bytes"] >= parts * L * 4 * tokens * D * 2
    # Every gradient once, and once more the embedding, which is used twice.
    weights = (L * (4 * D * D + 2 * D * F)) // 2
    reduced = rows["all-reduce", "data", "fsdp"]
    assert parts * weights * 2 <= reduced["bytes"] <= parts * (weights * 2 + 64 * 32 * 4 + 8000)
    assert spread["mesh"] == {"dcn": 1, "data": 2, "fsdp": 2, "model": 2}


def test_time_is_bounded_by_its_parts(spread):
    seconds = spread["seconds"]
    low, high = seconds["communication"]
    assert 0 < low < high
    assert seconds["arithmetic"] == spread["flops"] / (8 * 989e12)
    assert seconds["memory"] > 0
    assert seconds["overlapped"] == max(seconds["arithmetic"], seconds["memory"], low)
    assert seconds["added"] == pytest.approx(seconds["arithmetic"] + seconds["memory"] + high)
    slow = seconds["arithmetic"] / LEAST_EFFICIENCY + seconds["memory"] + high
    assert seconds["slow"] == pytest.approx(slow)
    assert spread["tokens_per_second"] == pytest.approx([128 / slow, 128 / seconds["overlapped"]])


def test_the_measured_step_of_one_device_lies_between_the_bounds():
    """README: GPT-2 124M, 32 x 1,024 tokens, one H200: 60.0 ms."""
    config = TrainConfig(model=gpt2(), batch_size=32)
    found = plan(config, 1, "h200")
    seconds = found["seconds"]
    assert seconds["overlapped"] < 0.0600 < seconds["slow"] < 3.5 * seconds["overlapped"]
    assert found["traffic"] == [] and found["mfu"][1] == pytest.approx(1.0)
    # XLA's attention keeps the weights that a flash kernel computes again: half of [T, T].
    plain = dataclasses.replace(config, model=gpt2().with_attention(implementation="xla"))
    more = plan(plain, 1, "h200")["memory"]["total"] - found["memory"]["total"]
    assert more > 12 * 32 * 12 * 1024**2 / 2 * 2


def collective(kind, size, members, times=1):
    return Collective(kind, size, np.asarray([members]), times, True, ("bf16",), "")


def test_links_inside_a_node_and_between_nodes():
    sizes = {"dcn": 1, "data": 4, "fsdp": 8, "model": 1}
    inside = collective("all-gather", 8_000_000, range(8), times=3)
    seconds = 3 * 7_000_000 / H100.link
    assert link_seconds(inside, sizes, H100, 8) == pytest.approx((seconds, seconds))
    # 4 nodes: each device sends its node's eighth on; an all-reduce is two such rounds.
    apart = collective("all-reduce", 8_000_000, range(0, 32, 8))
    seconds = 2 * 8_000_000 * 3 / 4 / H100.network
    assert link_seconds(apart, sizes, H100, 8) == pytest.approx((seconds, seconds))
    whole = collective("all-gather", 32_000_000, range(32))
    near, far = 28_000_000 / H100.link, 32_000_000 / 8 * 3 / 4 / H100.network
    assert link_seconds(whole, sizes, H100, 8) == pytest.approx((max(near, far), near + far))


def test_gradients_along_fsdp_may_be_scattered():
    """At least: a reduce-scatter inside the node, an all-reduce of an eighth between nodes."""
    sizes = {"dcn": 1, "data": 4, "fsdp": 8, "model": 1}
    low, high = link_seconds(collective("all-reduce", 8_000_000, range(32)), sizes, H100, 8)
    near, far = 7_000_000 / H100.link, 2 * 1_000_000 * 3 / 4 / H100.network
    assert low == pytest.approx(max(near, far)) and high == pytest.approx(2 * near + far)


def test_one_axis_of_a_torus_has_a_part_of_the_links():
    v5p = ACCELERATORS["v5p"]
    row = collective("all-gather", 8_000_000, range(8))
    low, high = link_seconds(row, {"dcn": 1, "data": 1, "fsdp": 8, "model": 1}, v5p, 8)
    assert high == pytest.approx(3 * low) and low == pytest.approx(7_000_000 / v5p.link)


def test_the_standin_has_a_kernels_shapes():
    kernel = Standin(2, (8, 256))
    q, k = jnp.ones((2, 6, 8, 16), jnp.float16), jnp.ones((2, 6, 2, 16), jnp.float16)
    run = lambda q, k, v: flash_attend(kernel, q, k, v, Mask(scale=0.25), None)
    out, pull = jax.vjp(run, q, k, k)
    shapes = [(x.shape, x.dtype) for x in (out, *pull(out))]
    assert shapes == [(x.shape, jnp.float16) for x in (q, q, k, k)]
    assert kernel.unfit(q, None) is None
    assert kernel.unfit(q.astype(jnp.float32), None) and kernel.unfit(q[..., :12], None)


def test_the_layout_in_words():
    model = varied(MICRO.model, vocab_size=65)
    config = dataclasses.replace(MICRO, model=model, mesh=MeshConfig(data=2, fsdp=2, model=2))
    mesh = make_mesh(config.mesh)
    layout = describe_layout(config, mesh)
    rows = {row.name: row for row in layout.rows}
    assert rows["blocks.attn.q"].layout == "width over fsdp (2), heads over model (2)"
    assert rows["blocks.attn.q"].shape == (2, 32, 8, 4)
    assert rows["embed"].layout == (
        "vocabulary whole: model (2) does not divide 65, width over fsdp (2)"
    )
    assert rows["blocks.mlp_norm.scale"].layout == "whole on every device"
    for name, x in parameters(abstract(model)).items():
        split = {"embed": 2, "positions": 2, "blocks.attn.variant.k": 2, "blocks.attn.variant.v": 2}
        ways = split.get(name, 1 if name.endswith("scale") else 4)
        assert rows[name].bytes == x.size * 4 // ways, name
    assert layout.parameters == sum(row.bytes for row in layout.rows)
    assert layout.optimizer == 2 * layout.parameters + 2 * 4
    step = step_memory(compile_update(config, mesh))
    # State, the step's number, whether it is halted, and this device's fourth of the batch.
    assert step.argument == layout.parameters + layout.optimizer + 4 + 1 + 2 * 17 * 4
    assert step.total == step.argument + step.output - step.alias + step.temp
    assert step.alias >= layout.parameters and step.temp > 0


def test_devices_are_those_of_the_peaks():
    assert find_accelerator("h200").memory == 141e9
    assert PEAK_FLOPS["NVIDIA H200"] == ACCELERATORS["h200"].flops
    with pytest.raises(ConfigError, match="--device is 'b200'; expected: a100, h100, h200, v5e"):
        find_accelerator("b200")
