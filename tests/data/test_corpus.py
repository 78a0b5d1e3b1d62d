"""Which files and documents a source means, and what is said of those that cannot be read."""

import gzip
import json
import lzma
import os
from pathlib import Path

import pytest

from jax_massact import resources
from jax_massact.data.corpus import Corpus, open_corpus
from jax_massact.data.files import find_files, listed, splits_of, suffix
from jax_massact.data.text import documents
from jax_massact.errors import DataError

TWO = "one\n <|endoftext|>\nstill one\n<|endoftext|>\n\ntwo <|endoftext|> two\n"
TEXTS = ["one\n <|endoftext|>\nstill one", "two <|endoftext|> two"]


def corpus(source: object) -> Corpus:
    return open_corpus(str(source), find_files(str(source)), lambda line: None)


def names(source: object) -> list[str]:
    return [path.name for path in find_files(str(source))]


def test_lines_that_read_end_of_text_separate_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + TWO.replace("\n", "\r\n").encode())
    read = corpus(path)
    assert list(read.texts) == TEXTS == list(read.texts)
    assert read.name == str(path) and [part.held_out for part in read.parts] == [False]


@pytest.mark.parametrize(("ending", "opened"), [(".xz", lzma.open), (".gz", gzip.open)])
def test_packed_files_are_unpacked(tmp_path: Path, ending: str, opened: object) -> None:
    path = tmp_path / f"a.txt{ending}"
    with opened(path, "wb") as file:  # type: ignore
        file.write(TWO.encode())
    assert list(corpus(path).texts) == TEXTS
    assert list(documents(str(path)).texts) == [TWO]
    lines = tmp_path / f"a.jsonl{ending}"
    with opened(lines, "wb") as file:  # type: ignore
        file.write(b'{"text": "x"}\n{"text": "y"}\n')
    assert list(corpus(lines).texts) == ["x", "y"] == list(documents(str(lines)).texts)


def test_a_folder_is_its_text_files_by_name(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / ".git").mkdir()
    for name in ("b.txt", "a.md", "deep/c.jsonl.xz", "README.md", "LICENSE.txt", ".hidden.txt",
                 ".git/d.txt", "e.py", "dataset_infos.json", "deep/state.json", "config.json"):
        (tmp_path / name).write_text("text")
    assert names(tmp_path) == ["a.md", "b.txt", "c.jsonl.xz"]
    assert corpus(tmp_path).name == f"{tmp_path} (3 files)"
    assert len(corpus(tmp_path).parts) == 3


def test_a_glob_is_the_files_that_match(tmp_path: Path) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text(name)
    assert names(tmp_path / "*.txt") == ["a.txt", "b.txt"]
    assert list(corpus(f"{tmp_path}/[ac].*").texts) == ["a.txt", "c.md"]
    (tmp_path / "odd[1].txt").write_text("a name, no glob")
    assert names(tmp_path / "odd[1].txt") == ["odd[1].txt"]
    assert find_files("Is this a text?") == []


@pytest.mark.parametrize(
    ("name", "expected"),
    [*((name, "validation") for name in (
        "val.bin", "validation.txt.xz", "wiki.valid.raw", "fineweb_val_000000.bin", "VAL-0.npy",
        "dev.txt", "valid/0.txt")),
     ("test/a/0.txt", "test"), ("wiki.test.raw", "test"), ("test.txt", "test"),
     *((name, "training") for name in ("train.bin", "values.txt", "interval.txt", "latest.txt"))],
)
def test_names_say_what_files_are_for(name: str, expected: str) -> None:
    train = Path("val/test/train.txt")
    assert splits_of([train, train.with_name("x.txt"), train.parent / name])[2] == expected


def test_files_of_which_none_is_for_training_are_just_data() -> None:
    for names in (["val.bin"], ["test.txt"], ["val.txt", "test.txt"], []):
        assert splits_of([Path(name) for name in names]) == ["training"] * len(names)


def test_many_files_are_listed_in_short() -> None:
    assert listed([Path("a/x.txt")]) == "x.txt"
    assert listed([Path(f"{i}.txt") for i in range(5)]) == "0.txt, 1.txt, 2.txt and 2 more"


def test_a_suffix_is_that_inside_the_compression() -> None:
    assert [suffix(n) for n in ("A.TXT", "a.txt.xz", "a.gz", "a.tar", "a")] == [
        ".txt", ".txt", "", ".tar", ""]


def test_the_stamp_changes_with_the_files(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abc")
    stamps = [corpus(path).stamp, corpus(tmp_path).stamp]
    assert stamps[0] == stamps[1]
    os.utime(path, ns=(1, 1))
    stamps.append(corpus(path).stamp)
    path.write_text("abcd")
    os.utime(path, ns=(1, 1))
    stamps.append(corpus(path).stamp)
    (tmp_path / "b.txt").write_text("abc")
    stamps.append(corpus(tmp_path).stamp)
    assert len(set(stamps)) == 4


def test_the_stamp_of_a_text_is_of_the_text() -> None:
    assert corpus("text:some words").stamp != corpus("text:some word s").stamp
    assert corpus("pydoc").stamp == corpus("pydoc").stamp


def test_a_named_resource_is_one_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "plays").mkdir()
    for name in ("plays/b.md", "a.md"):
        (tmp_path / name).write_text(name)
    monkeypatch.setattr(resources, "fetch", lambda name, report: tmp_path)
    read = open_corpus("shakespeare", [], print)
    assert [list(part.texts) for part in read.parts] == [["a.md", "plays/b.md"]]
    assert "Shakespeare" in read.name


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    packed = tmp_path / "a.txt.xz"
    packed.write_bytes(lzma.compress(os.urandom(5000).hex().encode())[:2000])
    with pytest.raises(DataError, match="a.txt.xz is damaged or cut short"):
        list(corpus(packed).texts)
    packed.write_bytes(b"plain")
    with pytest.raises(DataError, match="a.txt.xz is damaged or cut short"):
        list(corpus(packed).texts)
    with pytest.raises(DataError, match="a.txt.xz is damaged or cut short"):
        documents(str(packed))
    gz = tmp_path / "a.jsonl.gz"
    gz.write_bytes(gzip.compress(json.dumps({"text": "x" * 999}).encode())[:-12])
    with pytest.raises(DataError, match="a.jsonl.gz is damaged or cut short"):
        list(corpus(gz).texts)
    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"one\ntwo\n\xff")
    with pytest.raises(DataError, match="latin.txt is not UTF-8 text: byte 0xff .*, after line"):
        list(corpus(latin).texts)


def test_places_without_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("")
    with pytest.raises(DataError, match="has no file to read; expected: any of .bin, .json"):
        find_files(str(tmp_path))
    (tmp_path / "b.parquet").write_bytes(b"PAR1" + bytes(9))
    with pytest.raises(DataError, match="b.parquet is a Parquet table, .*pandas.read_parquet"):
        find_files(str(tmp_path))
    with pytest.raises(DataError, match="no file matches .*x"):
        find_files(f"{tmp_path}/*.x")
    with pytest.raises(DataError, match="there is no text source or file"):
        corpus(tmp_path / "none.txt")
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.bin").write_text("")
    with pytest.raises(DataError, match="both shards of ids .a.bin. and text .a.txt."):
        find_files(str(tmp_path))
