"""Bigram-Backcopy against its definition and the counts of its text."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from jax_massact.data import bigram
from jax_massact.data.stream import Stream, open_stream
from jax_massact.errors import DataError

# Unigrams without the end: a 8, b 6, c 5, d 3, e 2, f 1; triggers a, b, c. Nothing follows f.
TEXT = "adabacbdacabdecabeabcacbf"


def stream(path: Path, text: str = TEXT, **settings: object) -> Stream:
    path = path / "text.txt"
    path.write_text(text)
    settings = {"tokenizer": "chars", "seed": 3, "batch_size": 512, "sequence_length": 40,
                **settings}
    return open_stream(f"bigram-backcopy:{path}", **settings)  # type: ignore


def spelled(rows: np.ndarray) -> np.ndarray:
    return np.array([*"abcdef", "^"])[rows]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    made = stream(tmp_path_factory.mktemp("bigram"))
    assert made.vocab_size == 7 and made.first_token == 6
    return spelled(np.concatenate([made.batch(step) for step in range(8)]))


def test_every_row_begins_with_the_start_token_and_only_there(rows: np.ndarray) -> None:
    assert (rows[:, 0] == "^").all() and (rows[:, 1:] != "^").all()


def test_after_a_trigger_comes_what_was_before_it(rows: np.ndarray) -> None:
    for row in rows[:500]:
        for t in range(2, len(row)):
            if row[t - 1] in "abc":
                assert row[t] == row[t - 2]


def shares(found: np.ndarray, expected: Mapping[str, float]) -> None:
    """Frequencies within 5 standard deviations, and nothing that is not expected."""
    assert set(found) <= set(expected) and len(found) > 500
    total = sum(expected.values())
    for character, weight in expected.items():
        p = weight / total
        tolerance = 5 * np.sqrt(p * (1 - p) / len(found)) + 1e-12
        assert np.mean(found == character) == pytest.approx(p, abs=tolerance)


def test_the_first_character_comes_from_the_unigrams_without_triggers(rows: np.ndarray) -> None:
    shares(rows[:, 1], {"d": 3, "e": 2, "f": 1})


@pytest.mark.parametrize("last", "def")
def test_after_others_come_the_bigrams(rows: np.ndarray, last: str) -> None:
    unigrams = {c: TEXT.count(c) for c in "abcdef"}
    following = {c: TEXT.count(last + c) for c in "abcdef" if last + c in TEXT}
    now = rows[:, 2:][rows[:, 1:-1] == last]
    shares(now, following or unigrams)


def test_pairs_across_documents_are_not_counted(tmp_path: Path) -> None:
    """The x that ends the first document is followed by nothing."""
    made = stream(tmp_path, "ababacacbcbcxyyx\n<|endoftext|>\nzxyzzabcd")
    rows = np.array([*"abcdxyz^"])[made.batch(0)]
    assert set(rows[:, 1:][rows[:, :-1] == "x"]) == {"y"}


def test_counting_in_chunks_counts_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stream(tmp_path).batch(0)
    monkeypatch.setattr(bigram, "_CHUNK", 4)
    assert stream(tmp_path).batch(0).tolist() == whole.tolist()


def test_example_i_depends_on_the_seed_and_i_alone(tmp_path: Path) -> None:
    made = stream(tmp_path)
    batch = made.batch(7)
    assert stream(tmp_path).batch(7).tolist() == batch.tolist()
    for lo, hi in ((0, 512), (0, 1), (200, 333), (511, 512)):
        assert made.rows(7, lo, hi).tolist() == batch[lo:hi].tolist()
    assert stream(tmp_path, batch_size=256).batch(15).tolist() == batch[256:].tolist()
    assert len({b.tobytes() for b in (batch, made.batch(8), made.validation(7),
                                      stream(tmp_path, seed=4).batch(7))}) == 4
    assert stream(tmp_path, seed=0).batch(0).tolist() != made.validation(0).tolist()
    assert stream(tmp_path, seed=4).validation(2, 5).tolist() == made.validation(2, 5).tolist()


def test_rows_are_not_alike() -> None:
    """But for the few that end in two triggers by turns."""
    made = open_stream("bigram-backcopy", tokenizer="chars", seed=0, batch_size=512,
                       sequence_length=63)
    rows = np.concatenate([made.batch(0), made.batch(1), made.validation(0)])
    assert len(np.unique(rows, axis=0)) > 0.98 * len(rows)


def test_bytes_do_as_well(tmp_path: Path) -> None:
    made = stream(tmp_path, tokenizer="bytes")
    assert made.vocab_size == 257 and (made.batch(0)[:, 0] == 256).all()
    assert set(made.batch(0)[:, 1]) == set(b"def")


def test_lengths_of_one_and_two(tmp_path: Path) -> None:
    assert stream(tmp_path, sequence_length=1).batch(0).shape == (512, 2)
    assert stream(tmp_path, sequence_length=2).batch(0).shape == (512, 3)


def test_too_few_different_characters(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has 4 different tokens; expected: at least 5$"):
        stream(tmp_path, "abcdabcd")


def test_an_id_beyond_the_vocabulary(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.append(np.zeros(1 << 20, np.uint16), 99))
    with pytest.raises(DataError, match="ids.npy: holds the id 99; .* from 0 to 98$"):
        open_stream(f"bigram-backcopy:{tmp_path}/ids.npy", tokenizer="ids:99", seed=0,
                    batch_size=1, sequence_length=8)


def test_too_large_a_vocabulary(tmp_path: Path) -> None:
    np.save(tmp_path / "ids.npy", np.arange(3000))
    with pytest.raises(DataError, match="has 3000 ids; expected: at most 2048"):
        open_stream(f"bigram-backcopy:{tmp_path}/ids.npy", tokenizer="ids:3000", seed=0,
                    batch_size=1, sequence_length=8)
