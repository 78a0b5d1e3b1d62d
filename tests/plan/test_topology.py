"""TPU slices by name, what is read of their compiler's programs, what would make a run fit."""

import dataclasses

import pytest
from train_runs import MICRO

from jax_massact.cli import main
from jax_massact.errors import ConfigError
from jax_massact.plan import remedies
from jax_massact.plan.collectives import find_collectives
from jax_massact.plan.topology import Topology, parse_device
from jax_massact.train.config import MeshConfig

TINY = "--config=configs/gpt2_tiny.py:kv_bias"

# What XLA for TPU writes of one all-gather that overlaps a matrix product, and of one all-reduce.
PROGRAM = """\
HloModule jit_update, num_partitions=4

%fused_computation.1 (param_0: f32[1,32,64]) -> (f32[1,32,64], f32[1,64,64]) {
  %all-gather.1 = f32[1,64,64]{2,1,0} all-gather(%param_0), channel_id=7, replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}, dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.1 = (f32[1,32,64], f32[1,64,64]) custom-call(%all-gather.1), custom_call_target="AsyncCollectiveStart"
}

%async_collective_fusion.1 (param_0: f32[1,32,64], param_1: f32[8,8]) -> (f32[8,8], f32[1,64,64]) {
  %all-gather.2 = f32[1,64,64]{2,1,0} all-gather(%param_0), channel_id=7, replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}, dimensions={1}, use_global_device_ids=true
  ROOT %tuple = (f32[8,8], f32[1,64,64]) tuple(%param_1, %all-gather.2)
}

%fused_computation.2 (param_0: f32[1,32,64]) -> f32[1,64,64] {
  %all-gather.3 = f32[1,64,64]{2,1,0} all-gather(%param_0), channel_id=7, replica_groups=mesh['data'=2,'fsdp'=2] {'fsdp'}, dimensions={1}, use_global_device_ids=true
  ROOT %custom-call.2 = f32[1,64,64] custom-call(%all-gather.3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (x: f32[1,32,64], y: f32[8,8]) -> f32[8,8] {
  %async-collective-start = (f32[1,32,64], f32[1,64,64]) fusion(%x), kind=kCustom, calls=%fused_computation.1
  %fusion = (f32[8,8], f32[1,64,64]) fusion(%x, %y), kind=kOutput, calls=%async_collective_fusion.1
  %async-collective-done = f32[1,64,64] fusion(%x), kind=kCustom, calls=%fused_computation.2
  ROOT %all-reduce.1 = f32[8,8]{1,0} all-reduce(%y), channel_id=9, replica_groups=[2,2]<=[2,2]T(1,0), to_apply=%add
}
"""  # noqa: E501


def test_a_collective_that_others_overlap_is_counted_once_and_is_asynchronous():
    gathered, reduced = find_collectives(PROGRAM, 4)
    assert (gathered.kind, gathered.asynchronous) == ("all-gather", True)
    assert gathered.bytes == 64 * 64 * 4
    assert gathered.groups.tolist() == [[0, 1], [2, 3]]
    assert (reduced.kind, reduced.asynchronous) == ("all-reduce", False)
    assert reduced.groups.tolist() == [[0, 2], [1, 3]]


def test_a_slice_is_named_by_its_torus():
    assert parse_device("h100") == ("h100", None)
    assert parse_device("v5e") == ("v5e", None)
    assert parse_device("v5p:8x8x4") == ("v5p", Topology("v5p", (8, 8, 4)))
    assert parse_device("2xv5e:4x4") == ("v5e", (two := Topology("v5e", (4, 4), 2)))
    assert two.devices == 32 and two.name == "2xv5e:4x4" and two.slice == "v5e:4x4"
    topology = parse_device("v6e:16x8")[1]
    assert topology is not None and topology.devices == 128 and topology.name == "v6e:16x8"


@pytest.mark.parametrize(("text", "said"), [
    ("v7x:4x4", "--device is 'v7x'; expected: a100"),
    ("h100:8x8", "expected: h100 alone, with --devices; v5e, v5p, v6e have topologies"),
    ("v5e:4x4x4", "expected: v5e:4x4 or another topology of 2 axes"),
    ("v5p:4x4", "expected: v5p:4x4x4 or another topology of 3 axes"),
    ("v5e:0x4", "expected: v5e:4x4"),
    ("v5e:", "expected: v5e:4x4"),
])
def test_other_names_are_refused(text, said):
    with pytest.raises(ConfigError, match=said):
        parse_device(text)


@pytest.mark.parametrize(("arguments", "said"), [
    (["--device=v5e:2x2", "--devices=8"], "--devices is 8; expected: 4, which v5e:2x2 has"),
    (["--device=h100"], "--devices is missing; expected: how many h100, or the topology"),
])
def test_the_number_of_devices_is_that_of_the_topology(arguments, said, capsys):
    assert main(["plan", TINY, *arguments]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def plan_of(config, *, state, activations, available):
    return {
        "devices": config.mesh.devices, "mesh": config.mesh.sizes,
        "memory": dict(parameters=state, optimizer=0, gradients=0, activations=activations,
                       total=state + activations, available=available),
    }


def test_what_would_fit_is_tried_from_the_cheapest_change_on():
    config = dataclasses.replace(MICRO, batch_size=16, accumulate=1, mesh=MeshConfig(data=4))
    found = list(remedies.remedies(config, plan_of(config, state=10, activations=50, available=30)))
    assert [r.options for r in found] == [
        "--config.accumulate=4",
        "--config.remat=true",
        "--config.remat=true --config.accumulate=4",
        "--config.mesh=fsdp=4",
        "--config.mesh=fsdp=4 --config.remat=true",
    ]
    assert found[2].settings.remat and found[2].settings.accumulate == 4
    # No micro-batch is small enough where the state alone is too large.
    state = list(remedies.remedies(config, plan_of(config, state=40, activations=5, available=30)))
    assert [r.options for r in state] == ["--config.mesh=fsdp=4",
                                          "--config.mesh=fsdp=4 --config.remat=true"]
    # What does not divide the batch is left out.
    odd = dataclasses.replace(config, batch_size=4)
    found = list(remedies.remedies(odd, plan_of(odd, state=10, activations=50, available=30)))
    assert found[0].options == "--config.remat=true"
