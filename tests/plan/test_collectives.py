"""Collectives read from HLO, against what was written by hand: sizes, groups and loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jax_massact.plan.collectives import find_collectives, mesh_axes, sent

SIZES = {"data": 4, "model": 2}
MESH = jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
SHAPE = (16, 32)  # of each device's part
BYTES = 16 * 32 * 4


def compiled(function, rounds=()):
    """The collectives of `function` of each device's [16, 32], in loops of so many rounds."""

    def looped(x, rounds):
        if not rounds:
            return function(x)
        again = lambda x, _: (0.5 * looped(x, rounds[1:]).reshape(-1)[: x.size].reshape(x.shape), 0)
        return jax.lax.scan(again, x, length=rounds[0])[0]

    spec = PartitionSpec(("data", "model"))
    run = jax.shard_map(
        functools.partial(looped, rounds=rounds), mesh=MESH, in_specs=spec, out_specs=spec,
        check_vma=False,
    )
    with jax.set_mesh(MESH):
        x = jax.ShapeDtypeStruct((8 * SHAPE[0], SHAPE[1]), jnp.float32)
        text = jax.jit(run).lower(x).compile().as_text()
    return find_collectives(text, 8)


@pytest.mark.parametrize(("function", "kind", "size", "axes"), [
    (lambda x: jax.lax.psum(x, "data"), "all-reduce", BYTES, ("data",)),
    (lambda x: jax.lax.psum(x, ("data", "model")), "all-reduce", BYTES, ("data", "model")),
    (lambda x: jax.lax.all_gather(x, "model", tiled=True), "all-gather", 2 * BYTES, ("model",)),
    (lambda x: jax.lax.psum_scatter(x, "data", tiled=True), "reduce-scatter", BYTES, ("data",)),
    (lambda x: jax.lax.all_to_all(x, "data", 0, 1, tiled=True), "all-to-all", BYTES, ("data",)),
    (lambda x: jax.lax.ppermute(x, "model", [(0, 1), (1, 0)]), "collective-permute", BYTES,
     ("model",)),
])
def test_each_kind(function, kind, size, axes):
    (found,) = compiled(function)
    assert (found.kind, found.bytes, found.times, found.counted) == (kind, size, 1, True)
    assert mesh_axes(found.groups, SIZES) == axes and found.dtypes == ("f32",)
    assert found.devices == (2 if "model" in axes else 4) * (1 if axes != ("data", "model") else 4)


def test_loops_multiply():
    (found,) = compiled(lambda x: jax.lax.psum(x, "data"), rounds=(5, 3))
    assert (found.times, found.counted, found.bytes) == (15, True, BYTES)


def test_one_device_sends_nothing():
    text = jax.jit(lambda x: x @ x).lower(jnp.ones((8, 8))).compile().as_text()
    assert find_collectives(text, 1) == []


HLO = """HloModule hand

%add (a: f32[], b: f32[]) -> f32[] {
  ROOT %sum = f32[] add(f32[] %a, f32[] %b)
}

%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %ag = (bf16[4,8]{1,0}, bf16[16,8]{1,0:T(8,128)(2,1)}) all-gather-start(%x), channel_id=1, ROWS
  ROOT %t = (s32[], bf16[4,8]) tuple(%i, %x)
}

%cond (p: (s32[], bf16[4,8])) -> pred[] {
  ROOT %less = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (x: bf16[4,8]) -> bf16[4,8] {
  %w = (s32[], bf16[4,8]) while(%init), condition=%cond, body=%body, backend_config={TRIPS}
  %ar = (f32[3]{0}, /*index=1*/bf16[2,5]{1,0}) all-reduce(%a, %b), channel_id=2, ROWS, to_apply=%add
  ROOT %rs = f8e4m3fn[6]{0} reduce-scatter(%c), channel_id=3, ROWS, dimensions={0}, to_apply=%add
}
"""


def by_hand(rows, trips='"known_trip_count":{"n":"7"}'):
    return find_collectives(HLO.replace("ROWS", rows).replace("TRIPS", trips), 8)


def test_asynchronous_pairs_tuples_and_small_types():
    gather, reduce, scatter = by_hand("replica_groups={{0,1,2,3},{4,5,6,7}}")
    assert (gather.kind, gather.bytes, gather.times) == ("all-gather", 16 * 8 * 2, 7)
    assert (reduce.bytes, reduce.dtypes) == (3 * 4 + 2 * 5 * 2, ("bf16", "f32"))
    assert scatter.bytes == 4 * 6 * 1


def test_a_loop_of_unknown_length_is_said_to_be():
    gather, reduce, _ = by_hand("replica_groups={{0,1},{2,3},{4,5},{6,7}}", trips="")
    assert (gather.times, gather.counted) == (1, False) and reduce.counted


@pytest.mark.parametrize(("rows", "groups"), [
    ("replica_groups={{0,2},{1,3}}", [[0, 2], [1, 3]]),
    ("replica_groups={}", [[0, 1, 2, 3, 4, 5, 6, 7]]),
    ("replica_groups=[2,4]<=[8]", [[0, 1, 2, 3], [4, 5, 6, 7]]),
    ("replica_groups=[2,4]<=[4,2]T(1,0)", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("replica_groups=[4,2]<=[2,2,2]T(0,2,1)", [[0, 2], [1, 3], [4, 6], [5, 7]]),
    ("replica_groups=mesh['a'=4,'b'=2] {'b'}", [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("replica_groups=mesh['a'=4,'b'=1,'c'=2] {'a'}", [[0, 2, 4, 6], [1, 3, 5, 7]]),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'a'}",
     [[0, 1], [2, 3], [4, 5], [6, 7]]),
    ("replica_groups=mesh['a'=8] {'a':(1)2}", [[0, 4], [1, 5], [2, 6], [3, 7]]),
    ("replica_groups=mesh['a'=8] {'a':(2)2}", [[0, 2], [1, 3], [4, 6], [5, 7]]),
])
def test_every_way_to_write_groups(rows, groups):
    found = by_hand(rows)[0].groups
    assert sorted(map(sorted, found.tolist())) == sorted(groups)


def test_what_is_not_known_is_refused():
    with pytest.raises(ValueError, match="unknown replica groups"):
        by_hand("replica_groups=V9")
    with pytest.raises(ValueError, match="no ENTRY"):
        find_collectives("HloModule nothing", 8)


def test_the_axes_of_a_group():
    sizes = {"dcn": 1, "data": 2, "fsdp": 2, "model": 2}
    ids = np.arange(8).reshape(2, 2, 2)
    assert mesh_axes(ids[:, :, 0].reshape(1, 4), sizes) == ("data", "fsdp")
    assert mesh_axes(ids[0, 1][None], sizes) == ("model",)
    # Of a permutation some devices keep what they have.
    assert mesh_axes(np.array([[0, 0], [1, 5], [5, 1]]), sizes) == ("data",)


def test_what_each_device_sends():
    """A ring of n: n-1 rounds of 1/n each, twice for all-reduce."""
    assert sent("all-gather", 800, 8) == sent("reduce-scatter", 800, 8) == 700
    assert sent("all-reduce", 800, 8) == 1400 and sent("collective-permute", 800, 2) == 800
