"""Checkpoints on disk: which are kept, and what happens to damaged ones."""

import dataclasses

import jax
import numpy as np
import pytest
from train_runs import MICRO

from jax_massact.errors import UserError
from jax_massact.train.checkpoint import DIGESTS, Checkpoints
from jax_massact.train.config import CheckpointConfig
from jax_massact.train.step import abstract_state, make_mesh, new_state

MESH = make_mesh(MICRO.mesh)
KEEP = CheckpointConfig(every=1, keep=2, keep_every=3)


@pytest.fixture(scope="module")
def state():
    return new_state(MICRO, MESH)


def write(folder, state, steps, config=KEEP):
    with Checkpoints(folder, config) as checkpoints:
        for step in steps:
            shifted = jax.tree.map(lambda x, step=step: x + x.dtype.type(step), state)
            checkpoints.save(step, shifted, MICRO)


def restored(folder, state):
    """(the step, checked against the values it was written with; the damaged ones)."""
    with Checkpoints(folder, KEEP) as checkpoints:
        found = checkpoints.restore(abstract_state(MICRO, MESH), MICRO)
        step = int(found.step)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(state), strict=True):
            np.testing.assert_array_equal(a, b + b.dtype.type(step))
            assert a.sharding == b.sharding
        return step, checkpoints.damaged


def test_the_newest_are_kept_and_every_third(tmp_path, state):
    write(tmp_path, state, range(1, 9))
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        assert checkpoints.steps == [3, 6, 7, 8]
    assert restored(tmp_path, state) == (8, [])


def test_an_empty_folder_has_no_state(tmp_path):
    with Checkpoints(tmp_path, KEEP) as checkpoints:
        assert checkpoints.restore(abstract_state(MICRO, MESH), MICRO) is None


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
    with (
        pytest.raises(UserError, match=r"every checkpoint is damaged \(2.damaged, 1.damaged\)"),
        Checkpoints(tmp_path, KEEP) as checkpoints,
    ):
        checkpoints.restore(abstract_state(MICRO, MESH), MICRO)


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
        checkpoints.restore(abstract_state(MICRO, MESH), MICRO)


def test_another_models_state(tmp_path, state):
    write(tmp_path, state, [1])
    model = dataclasses.replace(MICRO.model, depth=3)
    other = dataclasses.replace(MICRO, model=model)
    with (
        pytest.raises(UserError, match="model.depth was 2 and is 3"),
        Checkpoints(tmp_path, KEEP) as checkpoints,
    ):
        checkpoints.restore(abstract_state(other, MESH), other)
