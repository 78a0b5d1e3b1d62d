"""Tokenizers by name: their ids, that text comes back, and which ids mark its ends."""

import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers

from jax_massact import resources
from jax_massact.data.corpus import Corpus, Part
from jax_massact.data.pieces import BYTE_PIECES
from jax_massact.data.tokenizer import END_OF_TEXT, Tokenizer
from jax_massact.data.tokenizer_files import read_tokenizer
from jax_massact.data.vocabulary import Vocabulary, open_vocabulary
from jax_massact.errors import ConfigError, DataError

TEXTS = ["the cat sat on the mat", "the dog sat;\n\nna\u00efve \u2603 \U0001f600", "the the the"]
CORPUS = Corpus("a test", [Part(TEXTS[:1]), Part(TEXTS[1:])], "stamp")


def vocabulary(name: str | Tokenizer, cache: Path | None = None, said: list | None = None,
               corpus: Corpus | None = CORPUS) -> Vocabulary:
    say = lambda line: None if said is None else said.append(line)
    return open_vocabulary(name, corpus, cache, say)


def entries(cache: Path) -> list[Path]:
    """What a cache holds, but for lock files."""
    return [path for path in cache.iterdir() if path.suffix != ".lock"]


def back(made: Vocabulary, text: str) -> str:
    assert made.tokenizer is not None
    ids = made.tokenizer.encode(text, bos=False)
    assert ids.max(initial=0) < made.size
    pieces = made.tokenizer._backend.decode(ids.tolist(), skip_special_tokens=False)
    return pieces


@pytest.mark.parametrize("name", ["bytes", "chars", "bpe:300"])
def test_text_comes_back(name: str) -> None:
    made = vocabulary(name)
    for text in (*TEXTS, TEXTS[0] + END_OF_TEXT + TEXTS[1]):
        assert back(made, text) == text
    assert made.tokenizer is not None
    assert made.tokenizer.encode(END_OF_TEXT, bos=False).tolist() == [made.end_of_text]
    assert made.end_of_text == made.first
    assert not made.tokenizer.adds_bos
    assert f"({made.size} ids)" in made.name


def test_bytes_are_those_of_utf_8() -> None:
    made = vocabulary("bytes", corpus=None)
    assert (made.size, made.end_of_text) == (257, 256) and made.tokenizer is not None
    for text in TEXTS:
        assert made.tokenizer.encode(text, bos=False).tolist() == list(text.encode())


def test_characters_are_in_the_order_of_unicode() -> None:
    made = vocabulary("chars")
    characters = sorted(set("".join(TEXTS)))
    assert (made.size, made.end_of_text) == (len(characters) + 1, len(characters))
    assert made.tokenizer is not None
    text = "the mat\n\n\u2603 dog  "
    expected = [characters.index(c) for c in text]
    assert made.tokenizer.encode(text, bos=False).tolist() == expected
    assert made.tokenizer.encode("tQhXe", bos=False).tolist() == [
        characters.index(c) for c in "the"]  # others are dropped
    assert made.tokenizer.token_strings(range(3)) == characters[:3]


def test_a_bpe_learns_the_words_of_the_text() -> None:
    made = vocabulary("bpe:300")
    assert 257 < made.size <= 300 and made.tokenizer is not None
    pieces = made.tokenizer.token_strings(made.tokenizer.encode("the the", bos=False))
    assert pieces == ["the", " the"]
    assert vocabulary("bpe:260").size == 260
    assert vocabulary("bpe:257").size == 257


def test_a_trained_bpe_is_kept_for_its_text_and_size(tmp_path: Path) -> None:
    said: list[str] = []
    first = vocabulary("bpe:300", tmp_path, said)
    silent = Corpus("other", [], "stamp")  # would train nothing
    again = vocabulary("bpe:300", tmp_path, said, silent)
    assert len(said) == 1 and said[0].startswith("training a BPE of 300 tokens on a test")
    assert first.tokenizer is not None and again.tokenizer is not None
    assert again.tokenizer.digest() == first.tokenizer.digest()
    assert (again.size, again.end_of_text, again.first) == (
        first.size, first.end_of_text, first.first)
    vocabulary("bpe:299", tmp_path, said)
    vocabulary("bpe:300", tmp_path, said, Corpus("other", CORPUS.parts, "another stamp"))
    assert len(said) == 3 and len(entries(tmp_path)) == 3


def test_a_damaged_trained_bpe_is_made_again(tmp_path: Path) -> None:
    said: list[str] = []
    before = vocabulary("bpe:300", tmp_path)
    path = next(tmp_path.glob("*/tokenizer.json"))
    path.write_text(path.read_text()[:100])
    after = vocabulary("bpe:300", tmp_path, said)
    assert "damaged" in said[0] and said[1].startswith("training")
    assert before.tokenizer is not None and after.tokenizer is not None
    assert after.tokenizer.digest() == before.tokenizer.digest()
    assert len(entries(tmp_path)) == 1


def test_gpt2_is_built_from_its_two_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [*sorted(BYTE_PIECES), "th", "the", "\u0120the", END_OF_TEXT]
    (tmp_path / "encoder.json").write_text(json.dumps({p: i for i, p in enumerate(entries)}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nt h\nth e\n\u0120 the\n", encoding="utf-8")
    monkeypatch.setattr(resources, "fetch", lambda name, report: {"gpt2-bpe": tmp_path}[name])
    made = vocabulary("gpt2", corpus=None)
    assert (made.size, made.end_of_text, made.first) == (260, 259, 259)
    assert made.tokenizer is not None
    ids = made.tokenizer.encode("the the", bos=False)
    assert made.tokenizer.token_strings(ids) == ["the", " the"]
    assert back(made, TEXTS[1]) == TEXTS[1]


def word_level(folder: Path, *words: str, **config: object) -> Path:
    """A tokenizer.json of these words."""
    backend = Backend(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


def test_a_file_or_its_folder_with_its_own_ends(tmp_path: Path) -> None:
    path = word_level(tmp_path, "the", "<s>", "</s>", bos_token="<s>", eos_token="</s>")
    for name in (str(path), str(tmp_path), read_tokenizer(path)):
        made = vocabulary(name, corpus=None)
        assert (made.size, made.first, made.end_of_text) == (3, 1, 2)


@pytest.mark.parametrize(("key", "piece"), [("bos_token", "<s>"), ("eos_token", "</s>")])
def test_one_end_serves_as_the_other(tmp_path: Path, key: str, piece: str) -> None:
    made = vocabulary(str(word_level(tmp_path, "the", piece, **{key: piece})), corpus=None)
    assert (made.size, made.first, made.end_of_text) == (2, 1, 1)


def test_without_ends_one_is_added_under_a_new_id(tmp_path: Path) -> None:
    path = word_level(tmp_path, "the", "cat")
    original = read_tokenizer(path)
    made = vocabulary(original)
    assert (made.size, made.first, made.end_of_text) == (3, 2, 2)
    assert made.tokenizer is not None and made.tokenizer.token_strings([0, 2]) == [
        "the", END_OF_TEXT]
    assert (original.vocab_size, original.eos_id) == (2, None)
    assert END_OF_TEXT not in original.files()["tokenizer.json"]
    assert END_OF_TEXT in made.tokenizer.files()["tokenizer_config.json"]


def test_an_end_of_text_in_the_vocabulary_is_used(tmp_path: Path) -> None:
    made = vocabulary(str(word_level(tmp_path, "the", END_OF_TEXT, "cat")))
    assert (made.size, made.end_of_text) == (3, 1)


def test_bos_in_front_is_saved_with_the_tokenizer(tmp_path: Path) -> None:
    made = vocabulary("bytes").tokenizer
    assert made is not None
    for name, text in made.with_bos(256).files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    read = read_tokenizer(tmp_path / "tokenizer.json")
    assert read.adds_bos and read.bos_id == 256 and not made.adds_bos
    assert read.encode("ab", bos=True).tolist() == [256, 97, 98]


def test_a_batch_is_encoded_as_its_texts_are() -> None:
    made = vocabulary("bpe:300").tokenizer
    assert made is not None
    for ids, text in zip(made.encode_batch([*TEXTS, ""]), [*TEXTS, ""], strict=True):
        assert ids.dtype == np.int32 and ids.tolist() == made.encode(text, bos=False).tolist()
    with pytest.raises(DataError, match="lone surrogate at character 1"):
        made.encode_batch(["a", "b\udc00"])


def test_ids_alone() -> None:
    made = vocabulary("ids:50304", corpus=None)
    assert (made.size, made.end_of_text, made.tokenizer) == (50304, 50303, None)


def test_wrong_names_are_named(tmp_path: Path) -> None:
    for name in ("gpt3", "bpe", "bpe:many", "ids:", "byte", ""):
        with pytest.raises(ConfigError, match="expected: bytes, chars, gpt2, bpe:SIZE, ids:SIZE"):
            vocabulary(name)
    with pytest.raises(ConfigError, match="bpe:SIZE is 256; expected: .* at least 257"):
        vocabulary("bpe:256")
    with pytest.raises(ConfigError, match="ids:SIZE is 0"):
        vocabulary("ids:0")
    with pytest.raises(DataError, match="none.json does not exist"):
        vocabulary(str(tmp_path / "none.json"))
    for name in ("chars", "bpe:300"):
        with pytest.raises(DataError, match=f"tokenizer {name} is made from the text"):
            vocabulary(name, corpus=None)


def test_what_is_wrong_with_the_text_is_told_by_training(tmp_path: Path) -> None:
    def broken():  # type: ignore
        yield "text"
        raise DataError("a bad line")

    for name in ("chars", "bpe:300"):
        with pytest.raises(DataError, match="^a bad line$"):
            vocabulary(name, tmp_path, corpus=Corpus("a test", [Part(broken())], "stamp"))
    assert entries(tmp_path) == []
