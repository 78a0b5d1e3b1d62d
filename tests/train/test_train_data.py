"""Batches are a function of (seed, step), and the synthetic task follows its rules."""

import dataclasses

import numpy as np
import pytest
from train_runs import MICRO

from jax_massact.errors import DataError
from jax_massact.train.config import DataConfig
from jax_massact.train.data import START, open_batches

TEXT = "the quick brown fox jumps over the lazy dog; " * 40
CONFIG = dataclasses.replace(MICRO, data=DataConfig(source=TEXT))
BACKCOPY = dataclasses.replace(CONFIG, data=DataConfig(source=TEXT, task="bigram_backcopy"))


@pytest.mark.parametrize("config", [CONFIG, BACKCOPY])
def test_a_batch_is_a_function_of_seed_and_step(config):
    one, two = open_batches(config), open_batches(config)
    np.testing.assert_array_equal(one.batch(7), two.batch(7))
    assert one.batch(7).shape == (8, 17) and one.batch(7).dtype == np.int32
    assert (one.batch(7) != one.batch(8)).any()
    other = open_batches(dataclasses.replace(config, seed=1))
    assert (one.batch(7) != other.batch(7)).any()
    # Seeds are validated alike, so that their losses compare.
    np.testing.assert_array_equal(one.validation(2), other.validation(2))
    assert (one.validation(2) != one.validation(3)).any()


def test_windows_are_of_the_text_and_validation_of_its_end():
    batches = open_batches(dataclasses.replace(CONFIG, data=DataConfig(source="0" * 900 + "1" * 99
                                                                       + " 1")))
    assert {bytes(row.astype(np.uint8)) for row in batches.batch(0)} == {b"0" * 17}
    assert set(np.unique(batches.validation(0))) <= {ord("1"), ord(" "), ord("0")}
    assert ord("1") in batches.validation(0)
    text = TEXT.encode()
    assert all(bytes(row.astype(np.uint8)) in text for row in open_batches(CONFIG).batch(3))


def test_the_same_first_token():
    data = DataConfig(source=TEXT, same_first_token=True)
    same, plain = open_batches(dataclasses.replace(CONFIG, data=data)), open_batches(CONFIG)
    assert (same.batch(0)[:, 0] == START).all()
    np.testing.assert_array_equal(same.batch(0)[:, 1:], plain.batch(0)[:, 1:])


def test_bigram_backcopy():
    batches = open_batches(dataclasses.replace(BACKCOPY, batch_size=400, sequence_length=16))
    rows = batches.batch(0)
    text = np.frombuffer(TEXT.encode(), np.uint8)
    counts = np.bincount(text, minlength=256)
    triggers = set(np.argsort(-counts, kind="stable")[:3])
    pairs = set(zip(text[:-1].tolist(), text[1:].tolist(), strict=True))
    pairs.add((text[-1], text[0]))  # the text ends in a space, which is a trigger
    copied = 0
    assert (rows[:, 0] == START).all() and (rows[:, 1:] != START).any(1).all()
    assert not set(rows[:, 1].tolist()) & triggers
    for row in rows.tolist():
        for t in range(2, len(row)):
            if row[t - 1] in triggers:
                assert row[t] == row[t - 2]
                copied += 1
            else:
                assert (row[t - 1], row[t]) in pairs
    assert copied > 1000
    # "q" is followed by "u" alone, "o" by four letters, all as often as in the text.
    after_o = [b for row in rows.tolist() for a, b in zip(row[1:], row[2:], strict=False)
               if a == ord("o")]
    if ord("o") not in triggers:
        assert {chr(b) for b in after_o} == {"w", "x", "v", "g"}


def test_too_little_text():
    with pytest.raises(DataError, match="has 100 bytes, 10 of them held out; needed: more than 16"):
        open_batches(dataclasses.replace(CONFIG, data=DataConfig(source="ab c " * 20)))
    few = DataConfig(source="ab ab", task="bigram_backcopy")
    with pytest.raises(DataError, match="has 3 different bytes; needed .*: at least 5"):
        open_batches(dataclasses.replace(CONFIG, data=few))
