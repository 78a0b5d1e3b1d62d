"""Batches of a source against its tokens: exact, repeatable, divisible, and never held out."""

import json
import lzma
from pathlib import Path

import numpy as np
import pytest

from jax_massact.data.stream import Stream, open_stream
from jax_massact.errors import ConfigError, DataError

B, T = 6, 16
WORDS = "the quick brown fox jumps over a lazy dog while seven wizards look on".split()


def document(seed: int, words: int = 60) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


DOCUMENTS = [document(i) for i in range(20)]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("text") / "text.txt.xz"
    path.write_bytes(lzma.compress("\n<|endoftext|>\n".join(DOCUMENTS).encode()))
    return str(path)


def stream(source: object, **settings: object) -> Stream:
    settings = {"tokenizer": "bytes", "seed": 1, "batch_size": B, "sequence_length": T, **settings}
    return open_stream(str(source), **settings)  # type: ignore


def packed() -> bytes:
    """The tokens of `text`, with 0 for the end of text, which no document has."""
    return b"".join(document.encode() + b"\0" for document in DOCUMENTS)


def spelled(rows: np.ndarray) -> list[bytes]:
    return [bytes(np.where(row == 256, 0, row).astype(np.uint8)) for row in rows]


def test_rows_are_windows_of_the_packed_documents(text: str) -> None:
    made, tokens = stream(text), packed()
    cut = len(tokens) - round(0.1 * len(tokens))
    for step in range(200):
        batch = made.batch(step)
        assert batch.shape == (B, T + 1) and batch.dtype == np.int32
        assert all(row in tokens[:cut] for row in spelled(batch))
    for i in range(20):
        assert all(row in tokens[cut:] for row in spelled(made.validation(i)))
    assert made.vocab_size == 257 and made.end_of_text == 256 and made.first_token is None
    assert made.description == (
        f"{text}, bytes (257 ids): {cut:,} tokens for training, {len(tokens) - cut:,} for "
        "validation (the last 10%)"
    )


def test_an_epoch_predicts_every_token_of_training_once(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(10_000, dtype=np.uint16))
    made = stream(tmp_path / "a.npy", tokenizer="ids:10000", validation_share=0.2)
    steps = 8000 // T // B - 1
    seen = np.concatenate([made.batch(step)[:, 1:].ravel() for step in range(steps)])
    assert len(np.unique(seen)) == len(seen) > 7800 and seen.max() < 8000
    held_out = np.concatenate([made.validation(i)[:, 1:].ravel() for i in range(2000 // T // B)])
    assert len(np.unique(held_out)) == len(held_out) and held_out.min() > 8000
    everything = made.validation(0, 1999 // T)  # and then it begins anew
    assert made.validation(1, 1999 // T).tolist() == everything.tolist()


def test_a_batch_depends_on_seed_and_step_alone(text: str) -> None:
    made = stream(text)
    order = [made.batch(step).tolist() for step in (5, 0, 300, 5)]
    assert order[0] == order[3]
    again = stream(text)
    assert [again.batch(step).tolist() for step in (5, 0, 300)] == order[:3]
    assert stream(text, seed=2).batch(5).tolist() != order[0]
    assert stream(text, seed=2).validation(1).tolist() == made.validation(1).tolist()


def test_digests_follow_the_content_alone(tmp_path: Path) -> None:
    def digests(name: str, text: str, **settings: object) -> dict[str, str]:
        (tmp_path / name).write_text(text)
        return dict(stream(tmp_path / name, **settings).digests)

    words = " ".join(DOCUMENTS)
    first = digests("a.txt", words)
    assert first.keys() == {"training data", "validation data", "tokenizer"}
    assert digests("b.txt", words) == first  # another place and time
    assert digests("a.txt", words, cache=tmp_path / "cache", seed=5, batch_size=3) == first
    changed = digests("a.txt", "%&" + words)
    assert all(changed[part] != first[part] for part in ("training data", "validation data"))
    assert changed["tokenizer"] == first["tokenizer"]
    last = digests("a.txt", words[:-1] + "!")
    assert {k for k in last if last[k] != first[k]} == {"validation data"}
    for tokenizer in ("chars", "bpe:300"):
        before, after = (digests("a.txt", text, tokenizer=tokenizer) for text in (
            words, "\u00a9\u00ae" + "thethe " * 99 + words))
        assert all(after[key] != before[key] for key in before)
    task = [open_stream(f"bigram-backcopy:{tmp_path}/{n}", tokenizer="chars", seed=0, batch_size=1,
                        sequence_length=8).digests for n in ("a.txt", "b.txt", "b.txt")]
    assert task[0] != task[1] == task[2]


@pytest.mark.parametrize("source", ["text", "bigram-backcopy"])
@pytest.mark.parametrize("hosts", [1, 2, 3])
def test_the_hosts_rows_make_the_batch(text: str, source: str, hosts: int) -> None:
    made = stream(text if source == "text" else source)
    each = B // hosts
    for step in (0, 7, 5000):
        rows = [made.rows(step, h * each, (h + 1) * each) for h in range(hosts)]
        assert np.concatenate(rows).tolist() == made.batch(step).tolist()
    assert made.rows(3, 2, 2).shape == (0, T + 1)


@pytest.mark.parametrize(("step", "lo", "hi"), [(0, 0, B + 1), (0, -1, 2), (0, 3, 2), (-1, 0, 1)])
def test_rows_that_do_not_exist(text: str, step: int, lo: int, hi: int) -> None:
    with pytest.raises(ValueError, match=f"no rows {lo} to {hi} of batch {step}"):
        stream(text).rows(step, lo, hi)


def test_parts_of_a_batch_are_smaller_batches(text: str) -> None:
    """What is accumulated, and what another batch size sees, is the same sequence."""
    large, small = stream(text), stream(text, batch_size=2)
    parts = [small.batch(3 * 4 + i) for i in range(3)]
    assert np.concatenate(parts).tolist() == large.batch(4).tolist()


def test_validation_takes_a_batch_size_of_its_own(text: str) -> None:
    made = stream(text)
    whole = made.validation(0, 12)
    assert np.concatenate([made.validation(i) for i in (0, 1)]).tolist() == whole.tolist()
    assert np.concatenate([made.validation(i, 4) for i in range(3)]).tolist() == whole.tolist()
    assert len(np.unique(whole, axis=0)) == 12


def test_every_row_begins_with_the_same_token(text: str) -> None:
    plain, fixed = stream(text), stream(text, same_first_token=True)
    for get in (lambda s: s.batch(3), lambda s: s.validation(0), lambda s: s.rows(2, 1, 4)):
        assert (get(fixed)[:, 0] == 256).all()
        assert get(fixed)[:, 1:].tolist() == get(plain)[:, 1:].tolist()
    assert fixed.first_token == 256 and fixed.vocab_size == 257
    assert fixed.tokenizer is not None and plain.tokenizer is not None
    assert fixed.tokenizer.adds_bos and not plain.tokenizer.adds_bos


def test_files_called_val_are_what_is_held_out(tmp_path: Path) -> None:
    np.arange(0, 500, dtype=np.uint16).tofile(tmp_path / "train.bin")
    np.arange(500, 600, dtype=np.uint16).tofile(tmp_path / "val.bin")
    made = stream(tmp_path, tokenizer="ids:600")
    assert made.description.endswith(
        "ids below 600: 500 tokens for training, 100 for validation (val.bin)")
    assert all(made.batch(step).max() < 500 for step in range(50))
    assert all(made.validation(i).min() >= 500 for i in range(20))
    assert made.tokenizer is None


def test_texts_called_val_are_what_is_held_out(tmp_path: Path) -> None:
    (tmp_path / "train.txt").write_text("a" * 200)
    (tmp_path / "val.txt").write_text("b" * 200)
    made = stream(tmp_path, tokenizer="chars")
    assert set(made.batch(0).ravel()) <= {0, 2} and set(made.validation(0).ravel()) <= {1, 2}


@pytest.mark.parametrize(
    "names", [("wiki.train.raw", "wiki.valid.raw", "wiki.test.raw"),
              ("train/0.raw", "validation/0.raw", "test/0.raw")])
def test_files_for_tests_are_left_out(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name, letter in zip(names, "abc", strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(letter * 200)
    said: list[str] = []
    made = stream(f"{tmp_path}/**/*.raw", report=said.append)
    valid, test = (Path(name).name for name in names[1:])
    assert said[-1] == made.description and said[-1].endswith(
        f"201 tokens for training, 201 for validation ({valid}; {test} left out)")
    assert {*np.unique(made.batch(0))} <= {ord("a"), 256}
    assert {*np.unique(made.validation(0))} <= {ord("b"), 256}


def test_a_single_file_is_just_data(tmp_path: Path) -> None:
    for name in ("val.bin", "test.bin"):
        np.arange(500, dtype=np.uint16).tofile(tmp_path / name)
        made = stream(tmp_path / name, tokenizer="ids:600")
        assert made.description.endswith("450 tokens for training, 50 for validation (the last 10%)"
                                         )


def test_fewer_windows_than_a_batch_are_said(tmp_path: Path) -> None:
    np.arange(1000, dtype=np.uint16).tofile(tmp_path / "a.bin")
    said: list[str] = []
    stream(tmp_path / "a.bin", tokenizer="ids:1000", report=said.append)
    stream(tmp_path / "a.bin", tokenizer="ids:1000", report=said.append, batch_size=7)
    stream(tmp_path / "a.bin", tokenizer="ids:1000", report=said.append, batch_size=90)
    assert [line for line in said if "fewer than" in line] == [
        "validation has 6 windows of 16 tokens, fewer than a batch of 7: rows of a batch repeat",
        "training has 55 windows of 16 tokens, fewer than a batch of 90: rows of a batch repeat",
        "validation has 6 windows of 16 tokens, fewer than a batch of 90: rows of a batch repeat",
    ]


@pytest.mark.parametrize("cached", [False, True])
def test_special_tokens_can_be_plain_text(tmp_path: Path, cached: bool) -> None:
    (tmp_path / "a.txt").write_text("ab<|endoftext|>cd" * 90)
    cache = tmp_path / "cache" if cached else None
    read = {
        plain: stream(tmp_path / "a.txt", special_tokens_as_text=plain, cache=cache, batch_size=9)
        for plain in (False, True)
    }
    assert (read[False].batch(0) == 256).any() and not (read[True].batch(0) == 256).any()
    assert all(row in b"ab<|endoftext|>cd" * 90 for row in spelled(read[True].batch(0)))
    assert read[True].digests["tokenizer"] == read[False].digests["tokenizer"]
    tokenizer = read[True].tokenizer
    assert tokenizer is not None and tokenizer.encode("<|endoftext|>", bos=False).tolist() == [256]


def test_the_field_of_json_lines_is_a_setting(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "a" * 99, "body": "b" * 99}) for _ in range(5)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    cache = tmp_path / "cache"
    for field, letter in (("text", "a"), ("body", "b")):
        rows = stream(tmp_path / "a.jsonl", text_field=field, cache=cache).batch(0)
        assert {*np.unique(rows)} <= {ord(letter), 256}


def test_every_file_of_a_folder_is_held_out_in_part(tmp_path: Path) -> None:
    for name, letter in (("a.txt", "a"), ("b.md", "b")):
        (tmp_path / name).write_text(letter * 999)
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": "c" * 999}))
    made = stream(tmp_path, validation_share=0.25)
    rows = np.concatenate([made.validation(i) for i in range(20)])
    assert {*map(chr, np.unique(rows))} == {*"abc", chr(256)}
    assert made.description.startswith(f"{tmp_path} (3 files), bytes")


@pytest.mark.parametrize("tokenizer", ["bytes", "chars", "bpe:280"])
def test_the_cache_changes_nothing(text: str, tmp_path: Path, tokenizer: str) -> None:
    said: list[str] = []
    rows = [
        stream(text, tokenizer=tokenizer, cache=cache, report=said.append).batch(9).tolist()
        for cache in (None, tmp_path, tmp_path)
    ]
    assert rows[0] == rows[1] == rows[2]
    assert sum(line.startswith("tokenizing") for line in said) == 2  # in memory, and once on disk


def test_pydoc_and_given_text_are_sources() -> None:
    text = "text:these few words, again and again, are a text to train on"
    words = stream(text, sequence_length=4)
    assert spelled(words.validation(0))[0] in b"these few words, again and again, are a text to" \
        b" train on\0"
    made = stream("pydoc")
    assert made.description.startswith("the help texts of Python (pydoc), bytes (257 ids): ")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seed": -1}, "seed is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"sequence_length": 0}, "sequence_length is 0"),
        ({"same_first_token": "yes"}, "same_first_token is 'yes'"),
        ({"validation_share": 0.0}, "validation_share is 0.0"),
        ({"validation_share": 0.6}, "validation_share is 0.6"),
        ({"tokenizer": "gpt5"}, "tokenizer is 'gpt5'; expected: bytes"),
    ],
)
def test_settings_out_of_range(text: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stream(text, **settings)


def test_sources_that_cannot_serve(text: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"for validation: \d+ tokens; expected: at least 2001"):
        stream(text, sequence_length=2000)
    with pytest.raises(DataError, match="no text source or file"):
        stream(tmp_path / "none.txt")
    with pytest.raises(DataError, match="is text, and the tokenizer is ids below 9"):
        stream(text, tokenizer="ids:9")
    late = np.zeros(1 << 21, np.uint16)
    late[1 << 20 :] = 300  # beyond what is looked at when the file is opened
    late.tofile(tmp_path / "late.bin")
    made = stream(tmp_path / "late.bin")
    with pytest.raises(DataError, match="late.bin, for validation: holds the id 300; .* to 256$"):
        made.validation(0)
