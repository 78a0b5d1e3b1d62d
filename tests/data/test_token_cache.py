"""Packing against encoding one document after the other, and what the cache keeps."""

import errno
import json
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from jax_massact.data import token_cache
from jax_massact.data.corpus import Corpus, Part
from jax_massact.data.packed import Packed
from jax_massact.data.token_cache import encoded, pieces_of
from jax_massact.data.vocabulary import Vocabulary, open_vocabulary
from jax_massact.errors import DataError, ResourceError

TEXTS = ["the cat sat", "na\u00efve\n\nmat\n", " \n ", "the dog"]
CORPUS = Corpus("a test", [Part(TEXTS[:1]), Part([]), Part(TEXTS[1:])], "stamp")
# The same text to the cache, and no text to the reader.
EMPTY = Corpus("a test", [], "stamp")


def quiet(line: str) -> None: ...


@pytest.fixture(scope="module")
def bpe() -> Vocabulary:
    return open_vocabulary("bpe:270", CORPUS, None, quiet)


def entries(cache: Path) -> list[Path]:
    """What a cache holds, but for lock files."""
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


def parts(tokens: Packed) -> list[list[int]]:
    return [part.tolist() for part in tokens.parts]


def expected(vocabulary: Vocabulary) -> list[list[int]]:
    """Every document that has text, and the end after it; a list for each part."""
    tokenizer, end = vocabulary.tokenizer, vocabulary.end_of_text
    assert tokenizer is not None
    return [
        [i for t in part.texts if t.strip() for i in [*tokenizer.encode(t, bos=False), end]]
        for part in CORPUS.parts
    ]


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("batch", [1, 12, 1 << 22])
def test_documents_are_packed_with_an_end_after_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bpe: Vocabulary, cached: bool, batch: int
) -> None:
    monkeypatch.setattr(token_cache, "_BATCH", batch)
    tokens = encoded(CORPUS, bpe, tmp_path if cached else None, quiet)
    assert parts(tokens) == expected(bpe)
    assert all(part.dtype == np.uint16 for part in tokens.parts)
    assert entries(tmp_path) == [] or cached


def test_long_documents_are_encoded_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "_PIECE", 20)
    monkeypatch.setattr(token_cache, "_BATCH", 50)
    rng = np.random.default_rng(0)
    parts = [*"abc \n1.", "\n\n", "the ", "  ", "\r\n", "\u3000", "'s"]
    text = "".join(rng.choice(parts, 5000))
    pieces = list(pieces_of(text))
    assert "".join(pieces) == text and len(pieces) > 50
    long = Corpus("long", [Part([text])], "-")
    bpe = open_vocabulary("bpe:500", long, None, quiet)  # has merges of white space
    tokens = encoded(long, bpe, None, quiet)
    assert bpe.tokenizer is not None
    whole = bpe.tokenizer.encode(text, bos=False)
    assert tokens.parts[0].tolist() == [*whole, bpe.end_of_text]


@pytest.mark.parametrize(
    "text", ["a" * 99, "a" * 50 + "\n", "\n" * 99, "a" * 50 + "\n\nb", "a" * 50 + "  b", "1 " * 50]
)
def test_what_cannot_be_cut_stays_whole(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(token_cache, "_PIECE", 20)
    assert list(pieces_of(text)) == [text]


def test_more_ids_than_16_bits_hold_take_32(tmp_path: Path, bpe: Vocabulary) -> None:
    large = Vocabulary("large", 70_000, 69_999, 69_999, bpe.tokenizer)
    for cache in (None, tmp_path):
        tokens = encoded(CORPUS, large, cache, quiet)
        assert tokens.parts[0].dtype == np.uint32 and tokens.parts[0][-1] == 69_999
    edge = Vocabulary("edge", 65_536, 65_535, 65_535, bpe.tokenizer)
    assert encoded(CORPUS, edge, None, quiet).parts[0].dtype == np.uint16


def test_a_text_is_encoded_once(tmp_path: Path, bpe: Vocabulary) -> None:
    said: list[str] = []
    first = encoded(CORPUS, bpe, tmp_path / "new" / "cache", said.append)
    assert said[0].startswith("tokenizing a test with BPE of the text") and "tokens/s" in said[1]
    again = encoded(EMPTY, bpe, tmp_path / "new" / "cache", said.append)
    assert parts(again) == parts(first) and len(said) == 2
    assert isinstance(again.parts[0].base, np.memmap) or isinstance(again.parts[0], np.memmap)


def test_another_text_or_tokenizer_is_another_entry(tmp_path: Path, bpe: Vocabulary) -> None:
    encoded(CORPUS, bpe, tmp_path, quiet)
    encoded(Corpus("a test", CORPUS.parts, "other"), bpe, tmp_path, quiet)
    encoded(CORPUS, open_vocabulary("bpe:260", CORPUS, None, quiet), tmp_path, quiet)
    encoded(CORPUS, open_vocabulary("bytes", None, None, quiet), tmp_path, quiet)
    assert len(entries(tmp_path)) == 4


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(1, 1))


def cut(path: Path) -> None:
    """As a copy that was broken off and given the time of the original."""
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    os.truncate(path, 10)
    os.utime(path, ns=times)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: cut(folder / "tokens.bin"),
        lambda folder: flip(folder / "tokens.bin"),
        lambda folder: os.truncate(folder / "tokens.bin", 10),
        lambda folder: (folder / "tokens.bin").unlink(),
        lambda folder: (folder / "layout.json").unlink(),
        lambda folder: (folder / "layout.json").write_text("{"),
        lambda folder: (folder / ".verified.json").unlink(),
        lambda folder: (folder / ".verified.json").write_text("[]"),
    ],
    ids=["cut, same time", "flipped", "cut", "no ids", "no layout", "half a layout", "no record",
         "no object"],
)
def test_a_damaged_entry_is_made_again(
    tmp_path: Path, bpe: Vocabulary, damage  # type: ignore
) -> None:
    encoded(CORPUS, bpe, tmp_path, quiet)
    (folder,) = entries(tmp_path)
    damage(folder)
    said: list[str] = []
    assert parts(encoded(CORPUS, bpe, tmp_path, said.append)) == expected(bpe)
    assert "is damaged and is made again" in said[0] and said[1].startswith("tokenizing")
    assert entries(tmp_path) == [folder]
    said.clear()
    encoded(EMPTY, bpe, tmp_path, said.append)
    assert said == []


def test_a_copied_entry_is_sound(tmp_path: Path, bpe: Vocabulary) -> None:
    encoded(CORPUS, bpe, tmp_path, quiet)
    (folder,) = entries(tmp_path)
    os.utime(folder / "tokens.bin", ns=(1, 1))
    assert parts(encoded(EMPTY, bpe, tmp_path, quiet)) == expected(bpe)


def test_an_error_or_a_kill_leaves_no_entry(tmp_path: Path, bpe: Vocabulary) -> None:
    def broken():  # type: ignore
        yield "some text"
        assert [path.name[:9] for path in entries(tmp_path)] == [".partial-"]
        raise DataError("a bad line")

    with pytest.raises(DataError, match="^a bad line$"):
        encoded(Corpus("a test", [Part(broken())], "stamp"), bpe, tmp_path, quiet)
    assert entries(tmp_path) == []


def test_of_two_at_once_one_makes_the_ids(tmp_path: Path, bpe: Vocabulary) -> None:
    said: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        waiting: list[Future] = []

        def slow():  # type: ignore
            waiting.append(pool.submit(encoded, EMPTY, bpe, tmp_path, said.append))
            while not said:
                assert not waiting[0].done()
            yield from TEXTS[:1]

        slowly = Corpus("a test", [Part(slow()), *CORPUS.parts[1:]], "stamp")
        assert parts(encoded(slowly, bpe, tmp_path, quiet)) == expected(bpe)
        assert parts(waiting[0].result()) == expected(bpe)
    assert len(said) == 1 and said[0].startswith("waiting for another process that is making")


def test_a_text_of_nothing_is_kept_too(tmp_path: Path, bpe: Vocabulary) -> None:
    blank = Corpus("blank", [Part([" \n"])], "blank")
    for _ in range(2):
        assert len(encoded(blank, bpe, tmp_path, quiet)) == 0


def test_a_file_tells_the_layout(tmp_path: Path, bpe: Vocabulary) -> None:
    encoded(CORPUS, bpe, tmp_path, quiet)
    (folder,) = entries(tmp_path)
    layout = json.loads((folder / "layout.json").read_text())
    ids = np.fromfile(folder / "tokens.bin", layout["dtype"])
    assert ids.tolist() == sum(expected(bpe), [])
    assert layout["ends"] == np.cumsum([len(p) for p in expected(bpe)]).tolist()


def test_what_cannot_be_done_is_named(tmp_path: Path, bpe: Vocabulary) -> None:
    alone = open_vocabulary("ids:300", None, None, quiet)
    with pytest.raises(DataError, match="a test is text, and the tokenizer is ids below 300"):
        encoded(CORPUS, alone, None, quiet)


def test_where_nothing_can_be_kept_ids_are_in_memory(tmp_path: Path, bpe: Vocabulary) -> None:
    said: list[str] = []
    (tmp_path / "file").write_text("")
    cache = tmp_path / "file" / "cache"
    assert parts(encoded(CORPUS, bpe, cache, said.append)) == expected(bpe)
    assert said[0].startswith(f"cache folder {cache}: ") and "Set MASSACT_CACHE" in said[0]
    assert "kept in memory" in said[0] and said[1].startswith("tokenizing")
    assert open_vocabulary("bpe:270", CORPUS, cache, quiet).size == bpe.size


def test_a_cache_that_is_read_only_serves_what_it_has(
    tmp_path: Path, bpe: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded(CORPUS, bpe, tmp_path, quiet)
    monkeypatch.setattr(token_cache, "why_unwritable", lambda cache: "read-only")
    said: list[str] = []
    assert isinstance(encoded(EMPTY, bpe, tmp_path, said.append).parts[0], np.memmap)
    assert said == []


def test_a_full_disk_is_named(
    tmp_path: Path, bpe: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_cache, "_write", full)
    with pytest.raises(ResourceError, match="no room is left on its disk. Set MASSACT_CACHE"):
        encoded(CORPUS, bpe, tmp_path, quiet)
    assert entries(tmp_path) == []
