"""Tokenizers for training: by name, trained on the text, or read from a file."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, trainers

from jax_massact import resources
from jax_massact.cache import Report, make_once, why_unwritable
from jax_massact.data.corpus import Corpus
from jax_massact.data.pieces import BYTE_PIECES, byte_level_text
from jax_massact.data.tokenizer import END_OF_TEXT, Tokenizer
from jax_massact.data.tokenizer_files import read_tokenizer
from jax_massact.errors import ConfigError, DataError
from jax_massact.settings import check_int

_SMALLEST_BPE = 257  # the bytes and the end of text
# The most text that a BPE is trained on: more changes its merges little and takes long.
_TRAINING_CHARACTERS = 256 * 2**20


@dataclasses.dataclass(frozen=True, slots=True)
class Vocabulary:
    """A tokenizer as training sees it: its ids and their number.

    Attributes:
      name: the tokenizer, in words.
      size: every id is below this.
      end_of_text: the id that stands after every document.
      first: the id that begins every sequence, where all begin alike.
      tokenizer: None if only the number of ids is known.
    """

    name: str
    size: int
    end_of_text: int
    first: int
    tokenizer: Tokenizer | None

    def digest(self) -> str:
        """A digest of the pieces and special roles of all ids."""
        pieces = [] if self.tokenizer is None else self.tokenizer.pieces()
        text = json.dumps([self.size, self.end_of_text, self.first, pieces])
        return hashlib.sha256(text.encode()).hexdigest()


def open_vocabulary(
    name: str | Tokenizer,
    corpus: Corpus | None,
    cache: Path | None,
    say: Report,
) -> Vocabulary:
    """Opens a tokenizer.

    `name` is a tokenizer, or one of

    - `bytes`: the 256 bytes of UTF-8, and the end of text;
    - `chars`: the characters of the text, in the order of Unicode, and the end of text; others are
      dropped;
    - `gpt2`: GPT-2's byte-level BPE, a named resource;
    - `bpe:SIZE`: a byte-level BPE of at most SIZE tokens, cut into words as GPT-2's, trained on the
      first 256 Mi characters of the text, held out or not;
    - `ids:SIZE`: no tokenizer: ids below SIZE, the last of which is the end of text;
    - the path of a `tokenizer.json`, or of a folder with one.

    A tokenizer without BOS and EOS gets `<|endoftext|>`, under a new id if need be.

    Args:
      corpus: the text; None where the source holds ids already.
      cache: where a trained tokenizer is kept; None: nowhere.
      say: called with a line of text before anything that takes time.

    Raises:
      ConfigError: there is no such tokenizer.
      DataError: its file cannot be read, or there is no text to train it on.
      ResourceError: a named resource could not be fetched.
    """
    if isinstance(name, Tokenizer):
        return _of(name, name.source)
    kind, _, size = name.partition(":")
    if kind == "ids" and size.isdecimal():
        check_int("tokenizer ids:SIZE", int(size), 1)
        last = int(size) - 1
        return Vocabulary(f"ids below {int(size)}", last + 1, last, last, None)
    if name == "bytes":
        return _of(_bytes(), "bytes")
    if name == "gpt2":
        return _of(_gpt2(resources.fetch("gpt2-bpe", report=say)), "GPT-2's BPE")
    if name == "chars":
        return _of(_chars(_required(corpus, name)), "characters")
    if kind == "bpe" and size.isdecimal():
        check_int("tokenizer bpe:SIZE", int(size), _SMALLEST_BPE)
        return _of(_trained(_required(corpus, name), int(size), cache, say), "BPE of the text")
    path = Path(name).expanduser()
    if not name or (path.suffix != ".json" and not path.exists()):
        raise ConfigError(
            f"tokenizer is {name!r}; expected: bytes, chars, gpt2, bpe:SIZE, ids:SIZE, or the path "
            "of a tokenizer.json"
        )
    if path.is_dir():
        path = path / Tokenizer.FILES[0]
    return _of(read_tokenizer(path), str(path))


def _of(tokenizer: Tokenizer, name: str) -> Vocabulary:
    tokenizer = tokenizer.with_end_of_text()
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    end = bos if eos is None else eos
    first = eos if bos is None else bos
    assert end is not None and first is not None  # with_end_of_text sees to it
    size = tokenizer.vocab_size
    return Vocabulary(f"{name} ({size:,} ids)", size, end, first, tokenizer)


def _required(corpus: Corpus | None, name: str) -> Corpus:
    if corpus is None:
        raise DataError(
            f"tokenizer {name} is made from the text, and the source holds ids; expected: the "
            "tokenizer they come from, or ids:SIZE"
        )
    return corpus


# Byte-level


def _bytes() -> Tokenizer:
    vocabulary = {piece: byte for byte, piece in enumerate(BYTE_PIECES)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _byte_level(backend, "bytes")


def _gpt2(folder: Path) -> Tokenizer:
    model = models.BPE.from_file(str(folder / "encoder.json"), str(folder / "vocab.bpe"))
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return _byte_level(backend, "gpt2")


def _byte_level(backend: tokenizers.Tokenizer, source: str) -> Tokenizer:
    backend.decoder = decoders.ByteLevel()
    return _with_end(backend, source, byte_level_text)


def _with_end(
    backend: tokenizers.Tokenizer, source: str, readable: Callable[[str], str]
) -> Tokenizer:
    backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
    end = backend.get_vocab(with_added_tokens=True)[END_OF_TEXT]
    return Tokenizer(
        backend,
        source=source,
        vocab_size=backend.get_vocab_size(with_added_tokens=True),
        bos_id=end,
        eos_id=end,
        adds_bos=False,
        raw_piece=lambda i: backend.id_to_token(i) if i >= 0 else None,
        readable=readable,
        verbatim=[end],
    )


# Made from the text


def _chars(corpus: Corpus) -> Tokenizer:
    found: set[str] = set()
    for text in corpus.texts:
        found.update(text)
    vocabulary = {character: i for i, character in enumerate(sorted(found))}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), behavior="merged_with_next")
    backend.decoder = decoders.Fuse()
    return _with_end(backend, "chars", lambda piece: piece)


def _trained(corpus: Corpus, size: int, cache: Path | None, say: Report) -> Tokenizer:
    def train() -> Tokenizer:
        say(f"training a BPE of {size} tokens on {corpus.name}")
        return _train(corpus.texts, size)

    key = hashlib.sha256(f"bpe {size} {corpus.stamp}".encode()).hexdigest()[:16]
    if cache is None or (not (cache / f"tokenizer-{key}").is_dir() and why_unwritable(cache)):
        return train()

    def fill(folder: Path) -> None:
        for name, text in train().files().items():
            (folder / name).write_text(text, encoding="utf-8")

    folder = make_once(cache, f"tokenizer-{key}", fill, say)
    return read_tokenizer(folder / Tokenizer.FILES[0])


def _train(texts: Iterable[str], size: int) -> Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(BYTE_PIECES),
    )
    backend.train_from_iterator(_first(texts, _TRAINING_CHARACTERS), trainer)
    return _byte_level(backend, f"bpe:{size}")


def _first(texts: Iterable[str], characters: int) -> Iterator[str]:
    for text in texts:
        yield text[:characters]
        characters -= len(text)
        if characters <= 0:
            return
