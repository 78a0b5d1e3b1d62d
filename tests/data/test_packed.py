"""Windows against the tokens they are cut from, their order, and the two parts."""

import numpy as np
import pytest

from jax_massact.data.packed import (
    Packed,
    Windows,
    permuted,
    split,
)
from jax_massact.errors import DataError

TOKENS = np.arange(1000, dtype=np.uint16)  # every id tells its own place
SIZE = 1000


def windows(
    tokens: np.ndarray = TOKENS, length: int = 7, seed: int = 0, **options: object
) -> Windows:
    settings = {"first_token": None, "vocab_size": SIZE, **options}
    return Windows(Packed([tokens]), "a test", seed=seed, length=length, **settings)  # type: ignore


@pytest.mark.parametrize("sizes", [[10], [4, 6], [1, 0, 2, 7], [3, 3, 4]])
def test_parts_read_as_one_array(sizes: list[int]) -> None:
    whole = np.arange(10, dtype=np.uint16)
    packed = Packed(np.split(whole, np.cumsum(sizes)[:-1]))
    assert len(packed) == 10 and len(Packed([])) == 0
    for start in range(10):
        for count in range(1, 11 - start):
            assert packed.read(start, count).tolist() == whole[start : start + count].tolist()


def test_a_digest_is_of_the_ids_however_they_are_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = np.arange(1000) % 97
    for block, blocks in ((1 << 14, 1024), (10, 7)):
        monkeypatch.setattr("jax_massact.data.packed._BLOCK", block)
        monkeypatch.setattr("jax_massact.data.packed._BLOCKS", blocks)
        digest = Packed([ids]).digest()
        assert Packed([part.astype("<u2") for part in np.split(ids, [3, 500])]).digest() == digest
        others = [ids[:-1], np.append(ids, 0), np.append(5, ids), np.append(5, ids[:-1])]
        others += [np.where(np.arange(1000) == i, 98, ids) for i in (0, 999)]
        assert len({Packed([other]).digest() for other in others} | {digest}) == 7
    assert Packed([]).digest() == Packed([ids[:0]]).digest() != digest


def test_a_window_is_consecutive_tokens() -> None:
    cut = windows()
    rows = cut(0, 3 * cut.count)
    assert rows.dtype == np.int32 and rows.shape == (3 * cut.count, 8)
    assert (np.diff(rows) == 1).all()
    assert rows[:, 0].tolist() == cut.starts(0, 3 * cut.count).tolist()
    assert cut(5, 5).shape == (0, 8)


def test_every_window_comes_once_in_each_epoch() -> None:
    cut = windows()
    offsets = set()
    for epoch in range(30):
        starts = np.sort(cut.starts(epoch * cut.count, (epoch + 1) * cut.count))
        assert (np.diff(starts) == 7).all()  # side by side: every target once
        offsets.add(int(starts[0]))
        assert 1000 - 7 * cut.count < 2 * 7
    assert offsets == set(range(7))  # the grid moves


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    cut = windows()
    n = cut.count
    orders = {tuple(np.argsort(windows(seed=s).starts(e * n, e * n + n)))
              for s in range(3) for e in range(3)}
    assert len(orders) == 9


def test_without_shift_one_epoch_is_repeated_and_holds_all() -> None:
    cut = windows(shift=False)
    n = cut.count
    assert n == (1000 - 1) // 7
    assert np.sort(cut.starts(0, n)).tolist() == list(range(0, 7 * n, 7))
    assert cut(0, n).tolist() == cut(n, 2 * n).tolist()
    assert cut.starts(0, n).tolist() != sorted(cut.starts(0, n).tolist())


def test_the_same_sequence_wherever_it_is_entered() -> None:
    cut = windows(seed=5)
    whole = cut(0, 600)
    for lo, hi in ((0, 1), (100, 350), (141, 143), (599, 600)):
        assert windows(seed=5)(lo, hi).tolist() == whole[lo:hi].tolist()


def test_the_first_token_takes_the_place_of_one() -> None:
    plain, fixed = windows()(0, 50), windows(first_token=999)(0, 50)
    assert (fixed[:, 0] == 999).all() and fixed[:, 1:].tolist() == plain[:, 1:].tolist()


@pytest.mark.parametrize("count", [8, 9, 14, 15, 16, 22])
@pytest.mark.parametrize("shift", [True, False])
def test_few_tokens_are_enough(count: int, shift: bool) -> None:
    rows = windows(TOKENS[:count], shift=shift)(0, 20)
    assert (np.diff(rows) == 1).all() and rows.max() < count


def test_too_few_tokens_for_a_window() -> None:
    with pytest.raises(DataError, match=r"^a test: 7 tokens; expected: at least 8, for one w"):
        windows(TOKENS[:7])


def test_an_id_beyond_the_vocabulary() -> None:
    windows(vocab_size=1000)(0, 142)
    with pytest.raises(DataError, match=r"^a test: holds the id 999; .* ids from 0 to 998$"):
        windows(TOKENS[-29:], vocab_size=999, shift=False)(0, 4)


def test_a_negative_id() -> None:
    with pytest.raises(DataError, match="holds the id -2;"):
        windows(np.full(20, -2, np.int64))(0, 1)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 64, 65, 1000])
def test_permuted_is_a_permutation(count: int) -> None:
    keys = [np.uint64(key) for key in range(6)]
    places = permuted(np.arange(count), count, keys)
    assert sorted(places.tolist()) == list(range(count))
    assert permuted(np.array([count - 1]), count, keys)[0] == places[-1]


def test_permuted_mixes() -> None:
    """Where 0 goes is uniform over keys, and neighbours do not stay neighbours."""
    rng = np.random.default_rng(0)
    places = [permuted(np.array([0, 1]), 10, list(keys))
              for keys in rng.integers(0, 2**64, (3000, 6), dtype=np.uint64)]
    first = np.bincount([p[0] for p in places], minlength=10)
    assert ((first - 300) ** 2 / 300).sum() < 33.7  # chi-squared, 9 degrees, one in 10,000
    steps = np.bincount([(p[1] - p[0]) % 10 for p in places], minlength=10)[1:]
    assert ((steps - 3000 / 9) ** 2 / (3000 / 9)).sum() < 31.8


def test_the_end_of_every_part_is_held_out() -> None:
    training, held_out, how = split(Packed([TOKENS[:100], TOKENS[100:150]]), [False] * 2, 0.1)
    read = lambda packed: packed.read(0, len(packed)).tolist()
    assert read(training) == [*range(90), *range(100, 145)]
    assert read(held_out) == [*range(90, 100), *range(145, 150)]
    assert how == "the last 10% of every file"
    assert split(Packed([TOKENS]), [False], 0.005)[2] == "the last 0.5%"


def test_parts_named_for_validation_are_held_out_whole() -> None:
    parts = [TOKENS[:10], TOKENS[10:14], TOKENS[14:20]]
    training, held_out, how = split(Packed(parts), [False, True, False], 0.1)
    assert training.read(0, 16).tolist() == [*range(10), *range(14, 20)]
    assert held_out.read(0, 4).tolist() == [*range(10, 14)]
    assert how == "1 of 3 files, by name"
