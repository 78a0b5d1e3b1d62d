"""The mesh as a setting: texts, sizes, what does not divide, and where slices of TPUs go."""

import dataclasses
import re

import jax
import numpy as np
import pytest
from train_runs import MICRO

from jax_massact.cli.settings import resolve
from jax_massact.errors import ConfigError
from jax_massact.mesh import arranged, slices
from jax_massact.mesh import make_mesh as mesh_of
from jax_massact.nn.transformer import abstract, parameters
from jax_massact.settings import from_mapping
from jax_massact.train.config import MeshConfig, TrainConfig
from jax_massact.train.step import compile_update, make_mesh, on_devices


def refusal(make):
    with pytest.raises(ConfigError) as error:
        make()
    return str(error.value)


def test_a_mesh_as_a_text():
    mesh = MeshConfig.from_text("data=-1, fsdp=4,model=2")
    assert mesh == MeshConfig(data=-1, fsdp=4, model=2)
    assert str(mesh) == "data=-1,fsdp=4,model=2" and str(MeshConfig()) == "data=1"
    assert mesh.on(32) == MeshConfig(data=4, fsdp=4, model=2)
    assert mesh.on(32).devices == 32


@pytest.mark.parametrize("override", [
    ["--config.mesh=fsdp=4,data=-1"], ["--config.mesh", "fsdp=4,data=-1"],
    ["--config.mesh.data=-1", "--config.mesh.fsdp=4"],
    ["--config.mesh=data=2,model=2", "--config.mesh=data=-1,fsdp=4"],
])
def test_the_mesh_on_the_command_line(override):
    assert resolve(TrainConfig, None, override).mesh == MeshConfig(data=-1, fsdp=4)


def test_a_text_names_the_whole_mesh_and_a_part_changes_it():
    override = ["--config.mesh=fsdp=4", "--config.mesh.model=2"]
    assert resolve(TrainConfig, None, override).mesh == MeshConfig(fsdp=4, model=2)
    assert from_mapping(TrainConfig, {"mesh": "dcn=2,data=8"}).mesh == MeshConfig(dcn=2, data=8)


@pytest.mark.parametrize(("text", "said"), [
    ("data", "mesh is 'data'; expected AXIS=DEVICES .* axes, each once: dcn, data, fsdp, model"),
    ("data=2,data=2", "each once"),
    ("tensor=2", "axes, each once: dcn, data, fsdp, model"),
    ("data=two", "expected AXIS=DEVICES"),
    ("data=0", "data is 0; expected: a whole number of at least 1, or -1"),
    ("data=-1,fsdp=-1", "mesh is data=-1,fsdp=-1; expected: -1 for one axis at most"),
])
def test_texts_that_are_no_mesh(text, said):
    assert re.search(said, refusal(lambda: resolve(TrainConfig, None, [f"--config.mesh={text}"])))


@pytest.mark.parametrize(("mesh", "said"), [
    ("data=3", "mesh.data is 3; expected: a divisor of batch_size / accumulate, which is 8: "
               "1, 2, 4, 8"),
    ("dcn=2,fsdp=8", "mesh.dcn x mesh.fsdp is 16; expected: a divisor of .* is 8: 1, 2, 4, 8"),
    ("model=16", r"mesh.model is 16; expected: a divisor of attention.heads \(8\), "
                 r"attention.kv_heads \(8\), mlp.hidden \(128\): 1, 2, 4, 8"),
])
def test_what_does_not_divide(mesh, said):
    mesh = MeshConfig.from_text(mesh)
    assert re.search(said, refusal(lambda: dataclasses.replace(MICRO, mesh=mesh)))


def test_a_width_that_does_not_divide():
    model = dataclasses.replace(MICRO.model, width=36)
    config = dataclasses.replace(MICRO, model=model, batch_size=40)
    said = refusal(lambda: dataclasses.replace(config, mesh=MeshConfig(fsdp=8)))
    assert said == (
        "mesh.fsdp is 8; expected: a divisor of model.width (36): 1, 2, 3, 4, 6, 9, 12, 18, 36"
    )


def test_what_is_left_is_checked_once_it_is_known():
    assert on_devices(dataclasses.replace(MICRO, mesh=MeshConfig(fsdp=-1, model=2))).mesh == (
        MeshConfig(fsdp=4, model=2)
    )
    said = refusal(lambda: MeshConfig(data=-1, model=3).on(8))
    assert said == (
        "mesh is data=-1,model=3; the axes beside data take 3 devices; expected with 8: a divisor "
        "of 8: 1, 2, 4, 8"
    )
    odd = dataclasses.replace(MICRO, batch_size=12, mesh=MeshConfig(data=-1))
    assert "mesh.data is 8" in refusal(lambda: on_devices(odd))


def test_the_slices_are_the_outermost_axis():
    mesh = make_mesh(MeshConfig(dcn=2, data=-1, model=2))
    assert dict(mesh.shape) == {"dcn": 2, "data": 2, "fsdp": 1, "model": 2}
    assert list(mesh.devices.flat) == jax.devices()
    assert set(mesh_of(data=2, dcn=2).axis_types) == {jax.sharding.AxisType.Explicit}


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    slice_index: int
    coords: tuple[int, int, int]
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    process_index: int = 0
    core_on_chip: int = 0


def test_tpus_in_slices():
    """In whatever order they come: a slice's chips differ along the inner axes alone."""
    chips = [Chip(i, slice_index=i % 2, coords=(i // 2 % 2, i // 4, 0)) for i in range(8)]
    assert slices(chips) == 2 and slices(jax.devices()) == 1
    found = arranged((2, 1, 2, 2), chips)
    of_slice = np.vectorize(lambda chip: chip.slice_index)(found)
    assert (of_slice == np.arange(2).reshape(2, 1, 1, 1)).all()
    assert sorted(chip.id for chip in found.flat) == list(range(8))
    said = refusal(lambda: arranged((1, 2, 2, 2), chips))
    assert said == "mesh.dcn is 1; the devices are in 2 slices; expected: 2"


def compiled(mesh):
    config = dataclasses.replace(MICRO, mesh=MeshConfig.from_text(mesh))
    return compile_update(config, make_mesh(config.mesh)).as_text()


def test_no_device_gets_activations_of_other_sequences():
    """Sequences stay where they are: what is gathered are parameters."""
    hlo = compiled("dcn=2,data=2,fsdp=2")
    gathered = [
        [int(n) for n in shape.split(",")]
        for shape in re.findall(r"= \w+\[([\d,]+)\]\S* all-gather\(", hlo)
    ]
    largest = max(x.size for x in parameters_of_a_layer())
    assert gathered and max(np.prod(shape) for shape in gathered) <= largest
    all_tokens = (MICRO.batch_size, MICRO.sequence_length, MICRO.model.width)
    assert np.prod(all_tokens) <= largest and list(all_tokens) not in gathered


def parameters_of_a_layer():
    for name, x in parameters(abstract(MICRO.model)).items():
        yield jax.ShapeDtypeStruct(x.shape[name.startswith("blocks."):], x.dtype)


def test_every_device_attends_with_its_own_heads():
    assert not re.search(r"= \w+\[[\d,]+\]\S* all-gather\(", compiled("data=2,model=4"))
