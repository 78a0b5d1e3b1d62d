"""Which processes make a run, what they agree on, and what each of them feeds its devices."""

import multiprocessing
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_massact.cluster import joining, sharing, store
from jax_massact.cluster.exits import exit_code
from jax_massact.cluster.lock import FILE, lock
from jax_massact.cluster.processes import Cluster, find_cluster
from jax_massact.errors import ConfigError, UserError
from jax_massact.train.checksum import checksums
from jax_massact.train.config import MeshConfig
from jax_massact.train.data import place_rows
from jax_massact.train.step import make_mesh, place


def test_flags_and_environment():
    variables = {"MASSACT_COORDINATOR": "host:1", "MASSACT_PROCESSES": "4", "MASSACT_PROCESS": "2"}
    assert find_cluster(None, None, None, {}) is None
    assert find_cluster(None, None, None, {"MASSACT_PROCESSES": ""}) is None
    four = Cluster(processes=4, coordinator="host:1", index=2)
    assert find_cluster("host:1", "4", "2", {}) == four
    assert find_cluster(None, None, None, variables) == four
    assert find_cluster(None, None, "0", variables) == Cluster(
        processes=4, coordinator="host:1", index=0
    )
    assert find_cluster("[::1]:80", 2, 1, {}) == Cluster(
        processes=2, coordinator="[::1]:80", index=1
    )
    assert find_cluster(None, 8, None, {}) == Cluster(processes=8)
    assert find_cluster(None, 1, None, {}) is None and find_cluster("a:1", 1, 0, {}) is None


@pytest.mark.parametrize(("given", "said"), [
    (("host:1", None, None), "coordinator=host:1 without --processes or MASSACT_PROCESSES and "
                             "--process or MASSACT_PROCESS"),
    (("host:1", "2", None), "--processes=2 without --process or MASSACT_PROCESS"),
    ((None, "2", "1"), "--process=1 without --coordinator or MASSACT_COORDINATOR"),
    ((None, None, "1"), "--process=1 without --coordinator"),
    (("host:1", "2", "2"), "--process is '2'; expected: a whole number from 0 to 1"),
    (("host:1", "0", "0"), "--processes is '0'; expected"),
    ((None, "two", None), "--processes is 'two'; expected"),
    (("host", "2", "1"), "--coordinator is 'host'; expected: HOST:PORT"),
    (("host:99999", "2", "1"), "--coordinator is 'host:99999'"),
])
def test_what_is_refused(given, said):
    with pytest.raises(ConfigError, match=said):
        find_cluster(*given, {})


def test_one_process_agrees_with_itself(tmp_path):
    assert sharing.gather({"a": 1}) == [{"a": 1}] and sharing.share(3) == 3
    assert sharing.on_first(lambda: [1]) == [1]
    assert sharing.together(lambda: tmp_path) == tmp_path
    sharing.check_shared(tmp_path)
    assert list(tmp_path.iterdir()) == []
    # What could not be told to others is an error with one process, too.
    with pytest.raises(TypeError, match="not JSON serializable"):
        sharing.on_first(lambda: tmp_path)
    with pytest.raises(UserError, match="no"):
        sharing.on_first(refuse)
    with pytest.raises(UserError, match="no"):
        sharing.together(refuse)


def refuse():
    raise UserError("no")


def test_exit_codes():
    codes = [exit_code(error) for error in (
        ConfigError("x"), KeyboardInterrupt(), SystemExit(75), RuntimeError(),
        jax.errors.JaxRuntimeError("UNKNOWN: in a run of one process"))]
    assert codes == [2, 130, 75, 1, 1]


def test_that_another_process_is_gone_is_read_from_what_jax_raises(monkeypatch):
    """Its own error, or, where a collective of CPUs fails as a program starts, a ValueError."""
    gloo = "UNKNOWN: Gloo AllGather failed: pair.cc:538] Read error: Connection reset by peer"
    errors = [
        jax.errors.JaxRuntimeError("UNAVAILABLE: Socket closed"), ValueError(gloo),
        ValueError("shapes differ"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: memory"),
    ]
    assert [exit_code(error) for error in errors] == [1, 1, 1, 1]
    monkeypatch.setattr(store, "client", lambda: Store())
    assert [exit_code(error) for error in errors] == [75, 75, 1, 1]


class Store:
    """In the place of JAX's key-value store: what others have set, and what is asked for."""

    def __init__(self, *told):
        self.values = {f"massact/told/{i}": text for i, text in enumerate(told)}
        self.asked = []

    def key_value_set(self, key, value):
        self.values[key] = value

    def blocking_key_value_get(self, key, milliseconds):
        self.asked.append(key)
        value = self.values.get(key, "UNAVAILABLE: Connection reset by peer")
        if not value.isdecimal():
            raise jax.errors.JaxRuntimeError(value)
        return value


@pytest.mark.parametrize(("index", "told", "said", "last"), [
    # Process 0 ends only when the other has heard of it, too.
    (0, ["", "3"], "process 0 was told --processes=2 and process 1 --processes=3", "heard/1"),
    (1, ["3", ""], "process 1 was told --processes=2 and process 0 --processes=3", "told/0"),
    (1, ["DEADLINE_EXCEEDED: late", ""], "process 0 did not come within 4 s", "told/0"),
    (1, ["UNAVAILABLE: gone", ""], "process 0 ended before all were there; it says why", "told/0"),
])
def test_processes_that_were_told_different_numbers(monkeypatch, index, told, said, last):
    told_by_all = Store(*told)
    monkeypatch.setattr(store, "client", lambda: told_by_all)
    monkeypatch.setattr(store, "size", lambda: (2, index))
    with pytest.raises(UserError, match=said):
        joining._check_count(2, 4)
    assert told_by_all.asked[-1] == f"massact/{last}"
    assert told_by_all.values[f"massact/told/{index}"] == "2"


@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2), (1, 4, 2), (1, 1, 8)])
def test_rows_are_where_place_puts_them(sizes, parts):
    batch = np.arange(8 * 17, dtype=np.int32).reshape(8, 17)
    mesh = make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], model=sizes[2]))
    asked = []

    def rows(lo, hi):
        asked.append((lo, hi))
        return batch[lo:hi]

    found, expected = place_rows(rows, (parts, 8 // parts, 17), mesh), place(batch, parts, mesh)
    np.testing.assert_array_equal(found, expected)
    assert found.sharding == expected.sharding and asked == [(0, 8)]


def test_a_process_makes_only_the_rows_of_its_devices(monkeypatch):
    batch = np.arange(8 * 3, dtype=np.int32).reshape(8, 3)
    mesh = make_mesh(MeshConfig(data=4, model=2))
    kept, asked = [], []
    local = set(mesh.devices.reshape(4, 2)[1:3].flat)
    whole = jax.sharding.NamedSharding.addressable_devices_indices_map

    def mine(self, shape):
        indices = whole(self, shape)
        return {d: i for d, i in indices.items() if d in local}

    def make(shape, sharding, shard):
        kept.extend(shard(index) for index in mine(sharding, shape).values())

    def rows(lo, hi):
        asked.append((lo, hi))
        return batch[lo:hi]

    monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", mine)
    monkeypatch.setattr(jax, "make_array_from_callback", make)
    place_rows(rows, (2, 4, 3), mesh)
    assert asked == [(1, 3), (5, 7)]
    expected = [batch[[1, 5]], batch[[1, 5]], batch[[2, 6]], batch[[2, 6]]]
    np.testing.assert_array_equal(np.stack(kept)[:, :, 0], expected)


def test_checksums_are_those_of_the_numbers_alone():
    x = np.random.default_rng(0).standard_normal((16, 8, 4)).astype(np.float32)
    first = checksums({"x": jnp.asarray(x)})["x"]
    assert len(first) == 16 and int(first, 16) > 0
    for sizes in ((8, 1, 1), (2, 2, 2), (1, 4, 2)):
        mesh = make_mesh(MeshConfig(data=sizes[0], fsdp=sizes[1], model=sizes[2]))
        spec = jax.sharding.PartitionSpec(("data", "fsdp"), "model")
        spread = jax.device_put(x, jax.sharding.NamedSharding(mesh, spec))
        with jax.set_mesh(mesh):
            assert checksums({"x": spread})["x"] == first
    seen = {first}
    for index in np.ndindex(2, 2, 4):
        for bit in (0, 13, 31):
            other = x.copy()
            other.view(np.uint32)[index] ^= np.uint32(1 << bit)
            seen.add(checksums({"x": jnp.asarray(other)})["x"])
    for other in (x[::-1], x.transpose(1, 0, 2).reshape(x.shape), np.roll(x, 1), -x):
        seen.add(checksums({"x": jnp.asarray(np.ascontiguousarray(other))})["x"])
    assert len(seen) == 1 + 16 * 3 + 4


def test_checksums_of_other_types():
    arrays = {"half": jnp.arange(7, dtype=jnp.bfloat16), "count": jnp.int32(5),
              "flag": jnp.array([True, False])}
    changed = {"half": arrays["half"].at[3].add(1), "count": jnp.int32(6),
               "flag": jnp.array([False, True])}
    a, b = checksums(arrays), checksums(changed)
    assert all(a[name] != b[name] for name in arrays)


def test_a_lock_keeps_others_out_until_it_is_left(tmp_path):
    with lock(tmp_path):
        with pytest.raises(UserError, match=f"is in use by process {os.getpid()} on "):
            with lock(tmp_path):
                pass
    with lock(tmp_path):
        pass


def test_the_lock_of_a_process_that_died_holds_nobody(tmp_path):
    child = multiprocessing.get_context("spawn").Process(target=die_with, args=(tmp_path,))
    child.start()
    child.join()
    assert child.exitcode == 3 and (tmp_path / FILE).read_text().startswith("{")
    with lock(tmp_path):
        assert str(os.getpid()) in (tmp_path / FILE).read_text()


def die_with(folder):
    with lock(folder):
        os._exit(3)


def test_a_folder_in_which_nothing_can_be_locked(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(UserError, match="cannot write to "):
        with lock(tmp_path):
            pass
