"""Tokenizers, read from the checkpoint they belong to: a GGUF file or a `tokenizer.json`."""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import tokenizers
from tokenizers import (
    AddedToken,
    Regex,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from jax_massact.errors import DataError
from jax_massact.settings import check_in

BOS_SETTINGS = ("auto", "true", "false")
END_OF_TEXT = "<|endoftext|>"

# `tokenizer.ggml.token_type`, as in the GGUF specification.
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4

_SPACE = "\u2581"  # how SentencePiece writes a space
_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class _Split(NamedTuple):
    """How text is cut before merging: each expression cuts what the one before left whole."""

    expressions: tuple[str, ...]
    ignore_merges: bool = False  # a whole word that is a token is taken as it is
    adds_bos: bool = False  # when `tokenizer.ggml.add_bos_token` is missing


# The expressions that the models' authors published, under the names of `tokenizer.ggml.pre`.
_GPT2_WORDS = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS_AND_SPACES = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

_GPT2 = _Split((_GPT2_WORDS,))
_DIGITS_SINGLY = _Split((r"\p{N}", _GPT2_WORDS))
_QWEN2 = _Split((f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}|{_SYMBOLS_AND_SPACES}",))
_LLAMA3 = _Split(
    (f"{_CONTRACTIONS}|{_LETTERS}|\\p{{N}}{{1,3}}|{_SYMBOLS_AND_SPACES}",),
    ignore_merges=True,
    adds_bos=True,
)
_TEKKEN = _Split(
    (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
        r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    ),
    ignore_merges=True,
    adds_bos=True,
)
# What llama.cpp falls back on when a file does not name its pre-tokenizer.
_DEFAULT = _Split((r"[\p{P}\$\+<=>\^~\|]+", _GPT2_WORDS, r"\p{N}+", "[0-9][0-9][0-9]"))

_SPLITS: dict[str, _Split] = {
    "default": _DEFAULT,
    **dict.fromkeys(("gpt-2", "phi-2", "olmo", "mpt", "jais"), _GPT2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        _DIGITS_SINGLY,
    ),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "stablelm2"), _QWEN2),
    **dict.fromkeys(("llama-bpe", "llama3", "llama-v3"), _LLAMA3),
    "tekken": _TEKKEN,
}


class Tokenizer:
    """Text to token ids, and token ids to pieces that a person can read.

    BOS is never added behind the caller's back: `encode` puts it in front when told to, and
    `adds_bos` says whether the model's own tokenizer does so.

    Attributes:
      vocab_size: number of ids; every id that `encode` gives is smaller.
      bos_id, bos_token: what begins a sequence, or None where the model has no such token.
      eos_id: what ends a sequence, or None.
      adds_bos: whether the model was published to be run with BOS in front.
      FILES: the names of `files`.
    """

    FILES: ClassVar[tuple[str, str]] = ("tokenizer.json", "tokenizer_config.json")

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        source: str,
        vocab_size: int,
        bos_id: int | None,
        eos_id: int | None,
        adds_bos: bool,
        raw_piece: Callable[[int], str | None],
        readable: Callable[[str], str],
        verbatim: Iterable[int] = (),
    ) -> None:
        """Wraps a tokenizer that is already built; people call `from_gguf` or `from_file`.

        Args:
          backend: the tokenizer itself; its post-processor is never run.
          source: the file it came from, for messages.
          vocab_size: number of ids.
          bos_id: id of the token that begins a sequence.
          eos_id: id of the token that ends one.
          adds_bos: whether the model's own tokenizer puts BOS in front.
          raw_piece: id -> the piece as the vocabulary spells it, or None.
          readable: that spelling -> text.
          verbatim: ids whose spelling is text already (added and special tokens).
        """
        # A tokenizer.json may carry the truncation and padding of its authors' last call.
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._raw_piece = raw_piece
        self._readable = readable
        self._verbatim = frozenset(verbatim)
        self.source = source
        self.vocab_size = vocab_size
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.adds_bos = adds_bos and bos_id is not None

    @property
    def bos_token(self) -> str | None:
        return None if self.bos_id is None else self._raw_piece(self.bos_id)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], file: str) -> "Tokenizer":
        """Builds the tokenizer that a GGUF file describes in its `tokenizer.ggml.*` keys.

        Follows llama.cpp, which defines the format, also in what a missing key means. Supported
        are `tokenizer.ggml.model` = `gpt2` (byte-level BPE, cut as `tokenizer.ggml.pre` says) and
        `llama` (SentencePiece BPE: scores and byte fallback).

        Args:
          metadata: the file's key-values as Python strings, numbers and lists.
          file: its name, for messages.

        Raises:
          DataError: a key is missing or contradicts another, or the kind is not supported.
        """
        kind = _required(metadata, "model", file)
        if kind not in _GGUF_BUILDERS:
            raise DataError(
                f"{file}: tokenizer.ggml.model is {kind!r}; supported: {_listed(_GGUF_BUILDERS)}"
            )
        vocabulary = _GgufVocabulary.read(metadata, file)
        backend, readable, adds_bos, bos_id, eos_id = _GGUF_BUILDERS[kind](metadata, vocabulary)
        special = vocabulary.ids(_UNKNOWN, _CONTROL)
        user_defined = vocabulary.ids(_USER_DEFINED)
        tokens = vocabulary.tokens
        backend.add_special_tokens(
            [AddedToken(tokens[i], normalized=False, special=True) for i in special]
        )
        backend.add_tokens([AddedToken(tokens[i], normalized=False) for i in user_defined])
        return cls(
            backend,
            source=file,
            vocab_size=len(tokens),
            bos_id=vocabulary.special_id(metadata, "bos_token_id", bos_id),
            eos_id=vocabulary.special_id(metadata, "eos_token_id", eos_id),
            adds_bos=bool(metadata.get("tokenizer.ggml.add_bos_token", adds_bos)),
            raw_piece=lambda i: tokens[i] if 0 <= i < len(tokens) else None,
            readable=readable,
            verbatim=[*special, *user_defined],
        )

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """Reads a Hugging Face `tokenizer.json`, and `tokenizer_config.json` beside it if there.

        Without the second file, BOS is the token that the post-processor puts in front, if any.

        Raises:
          DataError: a file is missing or damaged.
        """
        path = Path(path)
        description = _read_json(path)
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises no narrower type
            raise DataError(f"{path} is not a tokenizer: {error}") from error
        config_path = path.with_name(cls.FILES[1])
        config = _read_json(config_path) if config_path.is_file() else {}
        in_front = _put_in_front(backend)
        bos_id = _configured_id(backend, config, "bos_token", config_path)
        if bos_id is None:
            bos_id = in_front
        adds_bos = config.get("add_bos_token")
        return cls(
            backend,
            source=str(path),
            vocab_size=1 + max(backend.get_vocab(with_added_tokens=True).values(), default=-1),
            bos_id=bos_id,
            eos_id=_configured_id(backend, config, "eos_token", config_path),
            adds_bos=in_front is not None if adds_bos is None else bool(adds_bos),
            raw_piece=lambda i: backend.id_to_token(i) if i >= 0 else None,
            readable=_readable_of(description),
            verbatim=backend.get_added_tokens_decoder(),
        )

    def files(self) -> dict[str, str]:
        """What `from_file` and transformers read as this tokenizer: names and contents.

        BOS and EOS stay what they are, and so does whether BOS is put in front.

        Raises:
          DataError: BOS or EOS is spelled as another token is, which only GGUF files can express.
        """
        backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        if self.adds_bos and _put_in_front(backend) is None:
            backend.post_processor = processors.Sequence(
                [*filter(None, [backend.post_processor]), self._bos_in_front()]
            )
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": self._spelled(self.bos_id),
            "eos_token": self._spelled(self.eos_id),
            "add_bos_token": self.adds_bos,
            "clean_up_tokenization_spaces": False,
        }
        texts = (backend.to_str(pretty=True), json.dumps(config, indent=2, ensure_ascii=False))
        return dict(zip(self.FILES, texts, strict=True))

    def encode(self, text: str, *, bos: bool) -> np.ndarray:
        """Token ids of a text, int32 [T]; special tokens written out in it count as themselves.

        Raises:
          DataError: `bos` is asked for and there is none, or the text is not valid Unicode.
        """
        if bos:
            self._require_bos()
        _check_unicode(text)
        ids = self._backend.encode(text, add_special_tokens=False).ids
        return np.array([self.bos_id, *ids] if bos else ids, dtype=np.int32)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of texts, without BOS, int32 [T] each; on all processors at once.

        Raises:
          DataError: a text is not valid Unicode.
        """
        for text in texts:
            _check_unicode(text)
        encoded = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, dtype=np.int32) for one in encoded]

    def digest(self) -> str:
        """A digest of all that decides which ids a text gets."""
        return hashlib.sha256(self._backend.to_str().encode()).hexdigest()

    def pieces(self) -> list[tuple[int, str]]:
        """Every id of the vocabulary and its spelling, in order."""
        vocabulary = self._backend.get_vocab(with_added_tokens=True)
        return sorted((i, piece) for piece, i in vocabulary.items())

    def with_end_of_text(self) -> "Tokenizer":
        """This tokenizer, if it has a BOS or an EOS; else a copy whose EOS is `<|endoftext|>`.

        If that is not in the vocabulary it is added, under a new id.
        """
        if self.bos_id is not None or self.eos_id is not None:
            return self
        out = copy.copy(self)
        out._backend = tokenizers.Tokenizer.from_str(self._backend.to_str())
        out._backend.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False, special=True)])
        out.eos_id = i = out._backend.get_vocab(with_added_tokens=True)[END_OF_TEXT]
        out._raw_piece = lambda j: END_OF_TEXT if j == i else self._raw_piece(j)
        out._verbatim = self._verbatim | {i}
        out.vocab_size = max(self.vocab_size, i + 1)
        return out

    def with_bos(self, bos_id: int) -> "Tokenizer":
        """A copy for a model that was trained with this id in front of every sequence."""
        out = copy.copy(self)
        out.bos_id, out.adds_bos = bos_id, True
        return out

    def token_strings(self, ids: Iterable[int]) -> list[str]:
        r"""What each id stands for: ' the' rather than 'Ġthe', and `\xNN` for part of a character.

        An id that the vocabulary does not use, as in a padded embedding table, reads `<id 50300>`.
        """
        return [self._token_string(int(i)) for i in ids]

    def resolve_bos(self, setting: str) -> bool:
        """Whether sequences begin with BOS, given the setting `auto`, `true` or `false`.

        Raises:
          ConfigError: it is none of the three.
          DataError: it is `true` and the tokenizer has no BOS token.
        """
        check_in("bos", setting, BOS_SETTINGS)
        if setting == "true":
            self._require_bos()
        return setting == "true" or (setting == "auto" and self.adds_bos)

    def _spelled(self, i: int | None) -> str | None:
        """The spelling of a special token, if no other token has the same."""
        if i is None:
            return None
        piece = self._raw_piece(i)
        found = None if piece is None else self._backend.token_to_id(piece)
        if found != i:
            raise DataError(
                f"{self.source}: token {i} is spelled {piece!r}, as token {found} is; expected "
                "in a tokenizer.json: a spelling of its own"
            )
        return piece

    def _bos_in_front(self) -> processors.TemplateProcessing:
        bos = {"id": "BOS", "ids": [self.bos_id], "tokens": [self.bos_token]}
        return processors.TemplateProcessing(
            single=["BOS", "$A"], pair=["BOS", "$A", "BOS:1", "$B:1"], special_tokens=[bos]
        )

    def _require_bos(self) -> None:
        if self.bos_id is None:
            raise DataError(f"{self.source}: BOS was asked for, and its tokenizer has none")

    def _token_string(self, i: int) -> str:
        piece = self._raw_piece(i)
        if piece is None:
            return f"<id {i}>"
        return piece if i in self._verbatim else self._readable(piece)


class _GgufVocabulary(NamedTuple):
    """`tokenizer.ggml.tokens` and their types, checked."""

    tokens: list[str]
    types: list[int]
    file: str

    @classmethod
    def read(cls, metadata: Mapping[str, Any], file: str) -> "_GgufVocabulary":
        tokens = _required_strings(metadata, "tokens", file)
        types = _per_token(metadata, "token_type", len(tokens), file)
        return cls(tokens, [_NORMAL] * len(tokens) if types is None else types, file)

    def ids(self, *types: int) -> list[int]:
        # An empty token would match everywhere; some converters leave such holes.
        return [i for i, kind in enumerate(self.types) if kind in types and self.tokens[i]]

    def by_token(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def special_id(self, metadata: Mapping[str, Any], key: str, default: int | None) -> int | None:
        value = metadata.get(f"tokenizer.ggml.{key}", default)
        if value is None or (isinstance(value, int) and 0 <= value < len(self.tokens)):
            return value
        raise DataError(
            f"{self.file}: tokenizer.ggml.{key} is {value!r}; expected: an id below the number of "
            f"tokens, {len(self.tokens)}"
        )


class _Built(NamedTuple):
    """A tokenizer, and what its kind implies where the file is silent."""

    backend: tokenizers.Tokenizer
    readable: Callable[[str], str]
    adds_bos: bool
    bos_id: int | None
    eos_id: int | None


def _byte_level_bpe(metadata: Mapping[str, Any], vocabulary: _GgufVocabulary) -> _Built:
    """GPT-2's byte-level BPE, with merges in order of rank."""
    name = metadata.get("tokenizer.ggml.pre", "default")
    if name not in _SPLITS:
        raise DataError(
            f"{vocabulary.file}: tokenizer.ggml.pre is {name!r}; supported: {_listed(_SPLITS)}"
        )
    split = _SPLITS[name]
    merges = _required_strings(metadata, "merges", vocabulary.file)
    pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in merges)]
    backend = _bpe(vocabulary, pairs, ignore_merges=split.ignore_merges)
    cuts = [pre_tokenizers.Split(Regex(e), behavior="isolated") for e in split.expressions]
    bytes_as_characters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_as_characters])
    backend.decoder = decoders.ByteLevel()
    return _Built(backend, byte_level_text, split.adds_bos, bos_id=None, eos_id=None)


def _sentencepiece_bpe(metadata: Mapping[str, Any], vocabulary: _GgufVocabulary) -> _Built:
    """SentencePiece BPE: of two neighbours, those whose union scores highest merge first.

    That is BPE with one merge for each way to cut a token into two tokens, ranked by the token's
    score. Characters outside the vocabulary become their UTF-8 bytes, as `<0xNN>` tokens.
    """
    scores = _per_token(metadata, "scores", len(vocabulary.tokens), vocabulary.file)
    if scores is None:
        raise DataError(f"{vocabulary.file} has no tokenizer.ggml.scores; needed for model 'llama'")
    unknown = vocabulary.special_id(metadata, "unknown_token_id", 0)
    backend = _bpe(
        vocabulary,
        _merges_of_scores(vocabulary, scores),
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    escape_spaces = normalizers.Replace(" ", _SPACE)
    if metadata.get("tokenizer.ggml.add_space_prefix", True):
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), escape_spaces])
    else:
        backend.normalizer = escape_spaces
    unescape = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(unescape)
    return _Built(backend, _sentencepiece_text, adds_bos=True, bos_id=1, eos_id=2)


_GGUF_BUILDERS = {"gpt2": _byte_level_bpe, "llama": _sentencepiece_bpe}


def _bpe(
    vocabulary: _GgufVocabulary, merges: list[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(vocabulary.by_token(), merges, **options))
    except Exception as error:  # the library raises no narrower type
        raise DataError(f"{vocabulary.file}: its merges do not fit its tokens: {error}") from error


def _merges_of_scores(
    vocabulary: _GgufVocabulary, scores: Sequence[float]
) -> list[tuple[str, str]]:
    # Control and byte tokens are no part of a merge, however their spelling reads.
    normal = {vocabulary.tokens[i]: i for i in vocabulary.ids(_NORMAL)}
    best_first = sorted(normal.items(), key=lambda item: (-scores[item[1]], item[1]))
    return [
        (token[:cut], token[cut:])
        for token, _ in best_first
        for cut in range(1, len(token))
        if token[:cut] in normal and token[cut:] in normal
    ]


def _check_unicode(text: str) -> None:
    try:
        text.encode("utf-8")  # the library would only say that it is no string
    except UnicodeEncodeError as error:
        raise DataError(
            f"the text holds a lone surrogate at character {error.start}; expected: valid Unicode"
        ) from error


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's spelling of bytes: itself where Latin-1 prints it, else characters from U+0100."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    spelled = {chr(byte): byte for byte in printable}
    return spelled | {chr(256 + n): byte for n, byte in enumerate(others)}


_BYTES = _byte_alphabet()
BYTE_PIECES = sorted(_BYTES, key=_BYTES.__getitem__)
"""The pieces of a byte-level vocabulary that stand for the bytes 0 to 255."""


def byte_level_text(piece: str) -> str:
    """What a piece of a byte-level vocabulary reads, bytes spelled as GPT-2 does."""
    if any(character not in _BYTES for character in piece):
        return piece
    return bytes(_BYTES[c] for c in piece).decode("utf-8", errors="backslashreplace")


def _sentencepiece_text(piece: str) -> str:
    byte = _BYTE_PIECE.fullmatch(piece)
    if byte:
        return bytes([int(byte[1], 16)]).decode("utf-8", errors="backslashreplace")
    return piece.replace(_SPACE, " ")


def _readable_of(description: Mapping[str, Any]) -> Callable[[str], str]:
    """How the pieces of a `tokenizer.json` are spelled."""
    steps = json.dumps(
        [description.get(key) for key in ("normalizer", "pre_tokenizer", "decoder")],
        ensure_ascii=False,
    )
    if '"ByteLevel"' in steps:
        return byte_level_text
    return _sentencepiece_text if _SPACE in steps else lambda piece: piece


def _put_in_front(backend: tokenizers.Tokenizer) -> int | None:
    """The id that the post-processor puts before a text, if it does."""
    plain = backend.encode("a", add_special_tokens=False).ids
    whole = backend.encode("a", add_special_tokens=True).ids
    starts_alike = whole[: len(plain)] == plain
    return None if starts_alike or not whole else whole[0]


def _configured_id(
    backend: tokenizers.Tokenizer, config: Mapping[str, Any], key: str, file: Path
) -> int | None:
    token = config.get(key)
    content = token.get("content") if isinstance(token, Mapping) else token
    if content is None:
        return None
    i = backend.token_to_id(content)
    if i is None:
        raise DataError(f"{file}: {key} is {content!r}, which is not in the vocabulary")
    return i


def _required(metadata: Mapping[str, Any], key: str, file: str) -> Any:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        raise DataError(f"{file} has no tokenizer.ggml.{key}: no tokenizer can be made from it")
    return value


def _required_strings(metadata: Mapping[str, Any], key: str, file: str) -> list[str]:
    value = _required(metadata, key, file)
    if not isinstance(value, list) or not all(isinstance(entry, str) for entry in value):
        raise DataError(f"{file}: tokenizer.ggml.{key} is not a list of strings, as it has to be")
    return value


def _per_token(metadata: Mapping[str, Any], key: str, count: int, file: str) -> list[Any] | None:
    values = metadata.get(f"tokenizer.ggml.{key}")
    if values is not None and len(values) != count:
        raise DataError(
            f"{file}: tokenizer.ggml.{key} has {len(values)} entries; expected: one for each of "
            f"the {count} tokens"
        )
    return None if values is None else list(values)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds a JSON {type(value).__name__}; expected: an object")
    return value


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
