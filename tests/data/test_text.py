"""What a text source means, and how windows are cut from it."""

import gzip
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from jax_massact.data import text as text_module
from jax_massact.data import windows as windows_module
from jax_massact.data.gguf_tokenizer import gguf_tokenizer
from jax_massact.data.pieces import token_kind
from jax_massact.data.text import Documents, documents
from jax_massact.data.tokenizer import Tokenizer
from jax_massact.data.windows import windows
from jax_massact.errors import ConfigError, DataError

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
BOS = 0


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """One token for each byte, and BOS."""
    return gguf_tokenizer(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "gpt-2",
            "tokenizer.ggml.tokens": ["<s>", *ALPHABET],
            "tokenizer.ggml.token_type": [3] + [1] * 256,
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": BOS,
        },
        "bytes.gguf",
    )


def cut(
    texts: Iterable[str], tokenizer: Tokenizer, sequences: int, length: int, bos: bool = False
) -> list[str]:
    ids = windows(
        Documents("a test", texts), tokenizer, sequences=sequences, sequence_length=length, bos=bos
    )
    assert ids.dtype == np.int32 and ids.ndim == 2 and len(ids) <= sequences
    return ["".join(tokenizer.token_strings(row)) for row in ids]


# Windows


def test_first_windows_of_all_documents_come_first(tokenizer: Tokenizer) -> None:
    texts = ["aaaabbbbcccc", "ddddeeeef", "gggg"]
    order = ["aaaa", "dddd", "gggg", "bbbb", "eeee", "cccc"]
    for sequences in range(1, 7):
        assert cut(texts, tokenizer, sequences, 4) == order[:sequences]
    assert cut(texts, tokenizer, 99, 4) == order


def test_bos_is_position_0_of_every_window_and_costs_one_token(tokenizer: Tokenizer) -> None:
    assert cut(["aaabbbccc"], tokenizer, 3, 4, bos=True) == ["<s>aaa", "<s>bbb", "<s>ccc"]


def test_short_documents_are_joined_by_a_blank_line(tokenizer: Tokenizer) -> None:
    texts = ["abc", "de", "long enough", "fg", "h"]
    assert cut(texts, tokenizer, 9, 7) == ["long en", "abc\n\nde"]


def test_a_document_as_long_as_a_window_is_one(tokenizer: Tokenizer) -> None:
    assert cut(["abcd", "efg"], tokenizer, 9, 4) == ["abcd"]


def test_reading_stops_when_there_is_enough(tokenizer: Tokenizer) -> None:
    def texts() -> Iterator[str]:
        yield "aaaa"
        yield "bbbb"
        raise AssertionError("read too far")

    assert cut(texts(), tokenizer, 2, 4) == ["aaaa", "bbbb"]


def test_a_long_document_is_not_encoded_whole(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    longest = 0
    encode = Tokenizer.encode

    def spy(self: Tokenizer, text: str, *, bos: bool) -> np.ndarray:
        nonlocal longest
        longest = max(longest, len(text))
        return encode(self, text, bos=bos)

    monkeypatch.setattr(Tokenizer, "encode", spy)
    text = "".join(f"{i} " for i in range(200_000))
    assert "".join(cut([text], tokenizer, 5, 100)) == text[:500]
    assert longest < 20_000


def test_a_cut_text_gives_the_same_windows_as_the_whole(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first guess is too short and has to be doubled, and cuts fall inside tokens.
    monkeypatch.setattr(windows_module, "_CHARACTERS_PER_TOKEN", 1)
    for length in range(120, 140):
        assert cut(["<s>" * 2_000], tokenizer, 1, length) == ["<s>" * length]


def test_one_short_document_is_a_sequence_of_its_own_length(tokenizer: Tokenizer) -> None:
    assert cut(["abc"], tokenizer, 5, 512, bos=True) == ["<s>abc"]


def test_too_little_text_says_how_much_there_is(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="2 documents with 5 tokens; expected: at least 99"):
        cut(["abc", "  ", "de"], tokenizer, 1, 99)
    with pytest.raises(DataError, match="0 documents with 0 tokens"):
        cut(["", "\n"], tokenizer, 1, 99)


def test_numbers_out_of_range_are_errors(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="sequences is 0"):
        cut(["abc"], tokenizer, 0, 4)
    with pytest.raises(ConfigError, match="sequence_length is 1; expected.*2"):
        cut(["abc"], tokenizer, 1, 1, bos=True)


# Sources


def test_pydoc_is_english_in_many_documents_and_can_be_read_twice() -> None:
    source = documents("pydoc")
    texts = list(source.texts)
    assert len(texts) > 50 and sum(map(len, texts)) > 300_000
    assert any("assignment" in t for t in texts)
    assert list(source.texts) == texts and not source.literal


def test_the_pinned_help_texts_are_the_same_everywhere() -> None:
    source = documents("help-3.11")
    texts = list(source.texts)
    assert len(texts) == 79 and sum(map(len, texts)) == 464_891 and texts == list(source.texts)
    assert texts[0].startswith('The "assert" statement')
    if sys.version_info[:3] == (3, 11, 7):
        assert texts == list(documents("pydoc").texts)


@pytest.mark.parametrize("text", ["Hello world.", "pydoc", "see docs/x.txt for more", "text:"])
def test_a_text_itself_is_marked(text: str) -> None:
    source = documents(f"text:{text}")
    assert list(source.texts) == [text] and source.literal


@pytest.mark.parametrize(("source", "said"), [
    ("pydco", r"no text source or file 'pydco'. Did you mean pydoc\? Expected: help-3.11, pydoc"),
    ("help3.11", r"Did you mean help-3.11\?"),
    ("shakespeare", "no text source or file 'shakespeare'. Expected:"),
    ("my bok.txt", r"Did you mean my book.txt\?"),
    ("./my bok.txt", r"Did you mean ./my book.txt\?"),
    (r"C:\Users\me\book.txt", "no text source or file"),
    ("nowhere/prose", "no text file 'nowhere/prose', nor its folder"),
    ("A sentence of some words.", "or text:... for the text itself"),
    ("", "no text source or file ''"),
])
def test_a_typing_error_is_no_text(source: str, said: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my book.txt").write_text("A book.")
    with pytest.raises(DataError, match=said):
        documents(source)


def test_a_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "my prose"
    path.write_bytes("\ufeffline\r\né\n".encode())
    source = documents(str(path))
    assert list(source.texts) == ["line\né\n"] and not source.literal
    assert source.description == str(path)


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "a.txt").write_text("at home", encoding="utf-8")
    assert list(documents("~/a.txt").texts) == ["at home"]


def test_bytes_that_are_not_utf8_are_located(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"caf\xe9 au lait")
    with pytest.raises(DataError, match=r"latin\.txt.*0xe9 at offset 3"):
        documents(str(path))


def test_a_file_is_read_up_to_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_module, "MAX_FILE_BYTES", 4)
    path = tmp_path / "long.txt"
    path.write_bytes("abcéd".encode())  # the cap falls inside é
    source = documents(str(path))
    assert list(source.texts) == ["abc"] and source.description.startswith("the first")
    path.write_bytes(b"abc\xc3")  # the file itself ends inside a character
    with pytest.raises(DataError, match="offset 3"):
        documents(str(path))


def test_folders_and_blank_texts_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        documents(str(tmp_path))
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt is empty"):
        documents(str(tmp_path / "empty.txt"))
    with pytest.raises(DataError, match="the text is empty"):
        documents("text:")
    with pytest.raises(DataError, match="only white space"):
        documents("text: \n\t\u00a0")
    with pytest.raises(DataError, match="surrogate at character 2"):
        documents("text:a \udcff")


def test_jsonl_is_a_document_per_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "one"}\n\n{"id": 2, "text": "two\\n"}\n', encoding="utf-8")
    source = documents(str(path))
    assert list(source.texts) == ["one", "two\n"] == list(source.texts)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{", "line 2 is not JSON in UTF-8"),
        (b"\xff", "line 2 is not JSON in UTF-8"),
        (b"[1]", "line 2 holds a list"),
        (b'{"body": "x", "n": 1}', "line 2: the field 'text' is missing; expected: an object with "
         "a text in the field 'text'; text_field can name 'body'$"),
        (b'{"text": 3}', "line 2: the field 'text' is 3;.* in the field 'text'$"),
        (b'{"text": null, "id": "a"}', "the field 'text' is null; .*; text_field can name 'id'$"),
        (b'{"text": "\\ud800"}', "line 2 holds a lone surrogate"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "good"}\n' + line + b"\n")
    with pytest.raises(DataError, match=message):
        list(documents(str(path)).texts)


def test_a_json_file_is_lines_too(tmp_path: Path) -> None:
    """C4's own files are called c4-train.00000-of-01024.json.gz."""
    lines = b"".join(json.dumps({"text": text, "body": text * 2}).encode() + b"\n" for text in "ab")
    (tmp_path / "a.json").write_bytes(lines)
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(lines))
    for name in ("a.json", "a.json.gz"):
        assert list(documents(str(tmp_path / name)).texts) == ["a", "b"]
        assert list(documents(str(tmp_path / name), "body").texts) == ["aa", "bb"]
    (tmp_path / "a.json").write_text(json.dumps([{"text": "a"}], indent=1))
    with pytest.raises(DataError, match="a.json, line 1 is not JSON .*; expected: an object with"):
        list(documents(str(tmp_path / "a.json")).texts)


@pytest.mark.parametrize(
    ("name", "head", "message"),
    [
        ("a.jsonl.zst", b"\x28\xb5\x2f\xfd", "is packed with zstandard, .* not read; .* zstd -d"),
        ("a.parquet", b"PAR1", "is a Parquet table, .*pandas.read_parquet.'.*/a.parquet'"),
        ("a.txt", b"PAR1", "is a Parquet table"),
        ("a.arrow", b"ARROW1", "is an Arrow table, .*read_feather"),
        ("a.jsonl", b"PK\x03\x04", "is a zip archive, which is not read; .* unzip"),
        ("a.txt", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
        ("a.txt.gz", b"version https://git-lfs.github.com/spec/v1\noid", "is a Git LFS pointer"),
    ],
)
def test_formats_that_are_not_read_are_named(
    tmp_path: Path, name: str, head: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(head + bytes(99))
    with pytest.raises(DataError, match=message):
        list(documents(str(tmp_path / name)).texts)


# Delimiters


@pytest.mark.parametrize("piece", [".", ",", ";", ":", " .", "...", ".\n", "\n\n", " ", "。", "?!"])
def test_delimiters(piece: str) -> None:
    assert token_kind(piece) == "delimiter"


@pytest.mark.parametrize("piece", ["", "the", " and", ".com", "3.", "(", '."', r"\xe2", "<s>", "-"])
def test_other_tokens(piece: str) -> None:
    assert token_kind(piece) == "other"
