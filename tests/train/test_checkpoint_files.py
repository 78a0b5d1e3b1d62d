"""Checkpoints on disk: which are kept, and what happens to damaged ones."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from train_runs import MICRO

from jax_massact.errors import ConfigError, UserError
from jax_massact.train.checkpoint import DIGESTS, Checkpoints
from jax_massact.train.config import CheckpointConfig, MeshConfig
from jax_massact.train.step import abstract_state, make_mesh, new_state

# Of the tasks that Orbax leaves behind where reading fails, in whichever test they are collected.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

MESH = make_mesh(MICRO.mesh)
DATA = {"training data": "a", "tokenizer": "b"}
KEEP = CheckpointConfig(every=1, keep=2, keep_every=3)


@pytest.fixture(scope="module")
def state():
    return new_state(MICRO, MESH)


def shifted(state, step):
    """Every number of the state, moved by `step`."""
    return jax.tree.map(lambda x: x if x.dtype == bool else x + x.dtype.type(step), state)


def write(folder, state, steps, config=KEEP):
    with Checkpoints(folder, config) as checkpoints:
        for step in steps:
            checkpoints.save(step, shifted(state, step), MICRO, DATA)


def restored(folder, state):
    """(the step, checked against the values it was written with; the damaged ones)."""
    with Checkpoints(folder, KEEP) as checkpoints:
        found = checkpoints.restore(abstract_state(MICRO, MESH), MICRO, DATA)
        step = int(found.step)
        expected = shifted(state, step)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.sharding == b.sharding
        return step, checkpoints.damaged


def test_the_newest_are_kept_and_every_third(tmp_path, state):
    write(tmp_path, state, range(1, 9))
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        assert checkpoints.steps == [3, 6, 7, 8]
    assert restored(tmp_path, state) == (8, [])


def test_arrays_are_on_disk_by_names_that_do_not_change(tmp_path, state):
    """So that runs of earlier versions can be resumed."""
    write(tmp_path, state, [1])
    names = {"step", "optimizer/1/count", "optimizer/3/count"}
    for name in state.params:
        names |= {f"params/{name}", f"optimizer/1/mu/{name}", f"optimizer/1/nu/{name}"}
    assert json.loads((tmp_path / "1" / "checksums" / "metadata").read_text()).keys() == names
    assert "blocks.attn.variant.k" in state.params


def test_an_empty_folder_has_no_state(tmp_path):
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        assert checkpoints.restore(abstract_state(MICRO, MESH), MICRO, DATA) is None


def flip(folder):
    """Turns one bit of the largest file over."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_flipped_bit_sends_the_run_one_checkpoint_back(tmp_path, state):
    write(tmp_path, state, [1, 2, 3])
    flip(tmp_path / "3")
    assert restored(tmp_path, state) == (2, ["3.damaged"])
    assert restored(tmp_path, state) == (2, [])
    write(tmp_path, state, [3])
    assert restored(tmp_path, state)[0] == 3


def test_a_missing_file_is_damage_too(tmp_path, state):
    write(tmp_path, state, [1, 2])
    (tmp_path / "2" / "state" / "_METADATA").unlink()
    assert restored(tmp_path, state) == (1, ["2.damaged"])


def test_all_damaged(tmp_path, state):
    write(tmp_path, state, [1, 2])
    flip(tmp_path / "1")
    flip(tmp_path / "2")
    for _ in range(2):  # nor does a second start begin anew and write over the run's metrics
        with (
            pytest.raises(UserError, match=r"every checkpoint is damaged \(2.damaged, 1.damaged\)"),
            Checkpoints(tmp_path, KEEP) as checkpoints,
        ):
            checkpoints.restore(abstract_state(MICRO, MESH), MICRO, DATA)
    shutil.rmtree(tmp_path / "2.damaged")
    shutil.rmtree(tmp_path / "1.damaged")
    test_an_empty_folder_has_no_state(tmp_path)


def test_a_checkpoint_without_digests_counts(tmp_path, state):
    """The run was killed between the two."""
    write(tmp_path, state, [1, 2])
    (tmp_path / "2" / DIGESTS).unlink()
    assert restored(tmp_path, state) == (2, [])


def test_one_without_digests_that_cannot_be_read(tmp_path, state):
    write(tmp_path, state, [1])
    (tmp_path / "1" / DIGESTS).unlink()
    (tmp_path / "1" / "config" / "metadata").write_text("{")
    with (
        pytest.raises(UserError, match=r"every checkpoint is damaged \(1.damaged\)"),
        Checkpoints(tmp_path, KEEP) as checkpoints,
    ):
        checkpoints.restore(abstract_state(MICRO, MESH), MICRO, DATA)


@pytest.fixture(scope="module")
def three(tmp_path_factory, state):
    folder = tmp_path_factory.mktemp("three")
    write(folder, state, [1, 2], CheckpointConfig(every=1, keep=5))
    names = [p.relative_to(folder / "2") for p in (folder / "2").rglob("*") if p.is_file()]
    assert len(names) > 8
    return folder, sorted(names)


WAYS = ["flipped", "cut short", "missing"]


@pytest.mark.parametrize("how", WAYS)
def test_any_damaged_file_sends_the_run_one_checkpoint_back(tmp_path, state, three, how, caplog):
    """Each file of a checkpoint, in one way or another, and that of the digests in every way.

    What is wrong is said, and nothing is thrown away.
    """
    source, names = three
    for number, name in enumerate(names):
        if name.name != DIGESTS and WAYS[number % 3] != how:
            continue
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        path = folder / "2" / name
        data = path.read_bytes()
        if how == "missing":
            path.unlink()
        elif how == "cut short":
            path.write_bytes(data[: len(data) // 2])
        else:
            place = len(data) // 3
            path.write_bytes(data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :])
        if how == "missing" and name.name == DIGESTS:
            assert restored(folder, state) == (2, [])  # the run was killed before they were made
            continue
        caplog.clear()
        assert restored(folder, state) == (1, ["2.damaged"]), name
        assert name.name == DIGESTS or str(name) in caplog.text
        assert len(list((folder / "2.damaged").rglob("*"))) >= len(names) - 1


def test_arrays_are_checked_where_files_have_no_digests_yet(tmp_path, state, three):
    """A flipped bit in any file either does not reach an array or is noticed."""
    source, names = three
    noticed = 0
    for number, name in enumerate(names):
        if name.parts[0] != "state":
            continue
        folder = tmp_path / str(number)
        shutil.copytree(source, folder)
        (folder / "2" / DIGESTS).unlink()
        path = folder / "2" / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        step, damaged = restored(folder, state)  # checks every number
        noticed += bool(damaged)
        assert (step, damaged) in ((2, []), (1, ["2.damaged"]))
    assert noticed


def test_an_array_that_is_not_the_one_that_was_saved(tmp_path, state, caplog):
    """Files that agree with their digests, and hold something else."""
    write(tmp_path, state, [1, 2])
    (tmp_path / "2" / DIGESTS).unlink()
    stated = tmp_path / "2" / "checksums" / "metadata"
    sums = json.loads(stated.read_text())
    name = "params/embed"
    sums[name] = f"{int(sums[name], 16) ^ 1:016x}"
    stated.write_text(json.dumps(sums))
    assert restored(tmp_path, state) == (1, ["2.damaged"])
    assert f"not as they were saved: {name}" in caplog.text


def test_a_step_that_is_damaged_twice(tmp_path, state):
    for names in (["2.damaged"], ["2.damaged1"]):
        write(tmp_path, state, [1, 2])
        flip(tmp_path / "2")
        assert restored(tmp_path, state) == (1, names)


MESHES = {
    "1": MeshConfig(), "data": MeshConfig(data=8), "fsdp": MeshConfig(fsdp=8),
    "model": MeshConfig(model=8), "all": MeshConfig(data=2, fsdp=2, model=2),
}


@pytest.mark.parametrize("before", MESHES)
def test_a_state_restored_on_every_mesh(tmp_path, state, before):
    place = lambda x, like: jax.device_put(np.asarray(x), like.sharding)
    mesh = make_mesh(MESHES[before])
    on_mesh = jax.tree.map(place, state, abstract_state(MICRO, mesh))
    with jax.set_mesh(mesh):
        write(tmp_path, on_mesh, [3], CheckpointConfig(every=1, keep=5))
    for after in MESHES if before == "1" else ("1", "all"):
        mesh = make_mesh(MESHES[after])
        with jax.set_mesh(mesh), Checkpoints(tmp_path, KEEP) as checkpoints:
            abstract = abstract_state(MICRO, mesh)
            found = checkpoints.restore(abstract, MICRO, DATA)
            assert checkpoints.damaged == []
        expected = shifted(state, 3)
        for a, b, like in zip(*map(jax.tree.leaves, (found, expected, abstract)), strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.sharding.is_equivalent_to(like.sharding, a.ndim)


def test_another_models_state(tmp_path, state):
    write(tmp_path, state, [1])
    model = dataclasses.replace(MICRO.model, depth=3)
    other = dataclasses.replace(MICRO, model=model)
    with (
        pytest.raises(UserError, match="model.depth was 2 and is 3"),
        Checkpoints(tmp_path, KEEP) as checkpoints,
    ):
        checkpoints.restore(abstract_state(other, MESH), other, DATA)


@pytest.mark.parametrize("name", DATA)
def test_other_data_or_another_vocabulary(tmp_path, state, name):
    write(tmp_path / "run", state, [1])
    said = f"{tmp_path} holds a run on other data: changed since then: {name}. Expected: the same"
    with (
        pytest.raises(ConfigError, match=said),
        Checkpoints(tmp_path / "run", KEEP) as checkpoints,
    ):
        checkpoints.restore(abstract_state(MICRO, MESH), MICRO, DATA | {name: "c"})
    assert restored(tmp_path / "run", state) == (1, [])


def test_a_checkpoint_of_an_earlier_version_has_no_digests_of_its_data(tmp_path, state):
    write(tmp_path, state, [1])
    shutil.rmtree(tmp_path / "1" / "data")
    (tmp_path / "1" / DIGESTS).unlink()
    assert restored(tmp_path, state) == (1, [])
